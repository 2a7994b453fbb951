"""A data set that differs from that of the checkpoint is refused before the run goes on."""

import json
import re
import shutil

import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from tests.data_sources_test import make_folder, open_, open_fashion, small_idx, write_image
from tests.small_run import run, small_config, train_on_one
from vit_jax.config import classification_eval
from vit_jax.data import fashion_mnist
from vit_jax.data.base import digest
from vit_jax.errors import ConfigError

__all__ = ["small_idx"]  # A fixture.

TRANSFORMS = ({"op": "decode"}, {"op": "resize"}, {"op": "value_range"})


def on(folder, **changes):
    return {
        "data__source": "image_folder", "data__data_dir": str(folder), "model__channels": 3,
        "data__train_transforms": TRANSFORMS, "data__eval_transforms": TRANSFORMS,
        "evals": ConfigDict(), "model__depth": 1, "total_steps": 1,
        "optim__schedule__warmup_steps": None, **changes,
    }  # fmt: skip


def rename(folder):
    (folder / "train" / "cat" / "3.png").rename(folder / "train" / "cat" / "three.png")


def move(folder):
    (folder / "train" / "cat" / "3.png").rename(folder / "train" / "dog" / "333.png")


def add_class(folder):
    for split in ("train", "test"):
        write_image(folder / split / "ant" / "0.png")


def nothing(folder):
    write_image(folder / "train" / "cat" / "3.png", 200)  # Names are compared, not contents.


SAYS = {
    rename: "",
    move: "",
    add_class: r"class_names: \['cat', 'dog'\] -> \['ant', 'cat', 'dog'\]",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of images, and the work directory of a run on it."""
    root = tmp_path_factory.mktemp("trained")
    make_folder(root / "images")
    run(root / "run", **on(root / "images"))
    return root


@pytest.mark.medium
@pytest.mark.parametrize("change", [*SAYS, nothing])
def test_a_changed_folder_is_refused_with_the_difference(trained, tmp_path, change):
    shutil.copytree(trained, tmp_path / "copy", symlinks=True)
    # The same path, so only the change differs.
    (trained / "images").rename(trained / "kept")
    shutil.copytree(trained / "kept", trained / "images")
    try:
        change(trained / "images")
        config = small_config(**on(trained / "images"))
        if change is nothing:
            assert train_on_one(config, tmp_path / "copy" / "run") == 0
            return
        with pytest.raises(ConfigError) as error:
            train_on_one(config, tmp_path / "copy" / "run")
        message = str(error.value)
        assert re.search(r"fingerprint: '[0-9a-f]{32}' -> '[0-9a-f]{32}'", message)
        assert re.search(SAYS[change], message), message
        assert "files were added, removed, renamed or moved" in message
        assert "Restore them, and the run continues exactly." in message
        assert "--allow_config_change" in message
    finally:
        shutil.rmtree(trained / "images")
        (trained / "kept").rename(trained / "images")


@pytest.mark.medium
def test_another_evaluation_set_is_refused(tmp_path):
    make_folder(tmp_path / "images")
    evals = ConfigDict({"test": classification_eval(split="test")})
    config = {**on(tmp_path / "images"), "evals": evals}
    run(tmp_path / "run", **config)
    more = ConfigDict({"test": evals.test, "again": classification_eval(split="test")})
    with pytest.raises(ConfigError, match=r"evals.again: '\(absent\)' -> ") as error:
        train_on_one(small_config(**{**config, "evals": more}), tmp_path / "run")
    assert "Another fingerprint" not in str(error.value)
    path = next((tmp_path / "images" / "test").rglob("*.png"))
    path.rename(path.with_name("another.png"))
    other = r"evals.test: '[0-9a-f]{32}' -> '[0-9a-f]{32}'\nAnother fingerprint"
    with pytest.raises(ConfigError, match=other):
        train_on_one(small_config(**config), tmp_path / "run")


@pytest.mark.medium
def test_a_run_of_the_first_release_has_nothing_to_compare(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    path = tmp_path / "run" / "dataset.json"
    dataset = json.loads(path.read_text())
    assert dataset.pop("fingerprint") and dataset.pop("evals") == {}
    path.write_text(json.dumps(dataset))
    assert train_on_one(small_config(**on(trained / "images")), tmp_path / "run") == 0


@pytest.mark.slow
def test_another_version_of_a_tfds_data_set_is_refused(tmp_path, small_idx, monkeypatch):
    open_fashion(tmp_path, small_idx)
    changes = {
        "data__source": "tfds", "data__name": "fashion_mnist_idx",
        "data__data_dir": str(tmp_path / "tfds"), "evals": ConfigDict(), "total_steps": 1,
        "model__depth": 1, "optim__schedule__warmup_steps": None,
    }  # fmt: skip
    run(tmp_path / "run", **changes)
    monkeypatch.setattr(fashion_mnist.FashionMnistIdx, "VERSION", tfds.core.Version("1.0.1"))
    open_fashion(tmp_path, small_idx)
    assert sorted(p.name for p in (tmp_path / "tfds" / "fashion_mnist_idx").iterdir()) == [
        "1.0.0", "1.0.1",
    ]  # fmt: skip
    with pytest.raises(ConfigError) as error:
        train_on_one(small_config(**changes), tmp_path / "run")
    message = str(error.value)
    assert "name: 'fashion_mnist_idx/1.0.0' -> 'fashion_mnist_idx/1.0.1'" in message
    assert "another version of the data set" in message and "fingerprint: " in message
    pinned = small_config(**changes | {"data__name": "fashion_mnist_idx:1.0.0"})
    with pytest.raises(ConfigError, match=r"data\.name: 'fashion_mnist_idx' ->") as error:
        train_on_one(pinned, tmp_path / "run")
    assert "fingerprint" not in str(error.value)  # The data are those of the run.


def test_a_fingerprint_depends_on_everything_that_determines_the_order(tmp_path, small_idx):
    open_fashion(tmp_path, small_idx)
    shards = open_fashion(tmp_path, None)
    prints = {
        "train": open_().fingerprint,
        "test": open_("test").fingerprint,
        "slice": open_("train[:90%]").fingerprint,
        "tfds": shards.fingerprint,
    }
    shards._shards = (30, 30)
    prints["other shards"] = shards.fingerprint
    assert len(set(prints.values())) == len(prints)
    assert open_().fingerprint == prints["train"]
    # Pinned, because later releases must resume runs.
    assert prints["train"] == "3f7f490f69578205a197aeed0d30a33b"
    assert digest("a", "b") != digest("ab") != digest("ab", "")


@pytest.mark.medium
def test_a_run_continues_with_other_loader_options(run_copy):
    """They change no number of it."""
    changes = {"data__threads": 3, "data__prefetch": 5, "data__cache": "ram"}
    assert train_on_one(small_config(**changes), run_copy) == 0
    with pytest.raises(ConfigError, match=r"data\.split: 'train' -> 'train\[:50%\]'"):
        train_on_one(small_config(data__threads=3, data__split="train[:50%]"), run_copy)
