"""Paths with *, ? and [ in them are taken literally, not as patterns."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax import storage
from vit_jax.checkpoints.store import Store
from vit_jax.data.files import find_images
from vit_jax.data.image_folder import ImageFolder
from vit_jax.data.tfds_source import find_builder
from vit_jax.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.medium

NAMES = ("exp[1]", "exp*", "exp[")


def arrays(value):
    return {"params": {"w": jnp.full(3, value, jnp.float32)}, "opt_state": {}, "ema": {}}


def restored(folder):
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {"params": {"w": jax.ShapeDtypeStruct((3,), np.float32, sharding=where)}}
    with Store(folder, read_only=True) as store:
        step, arrays_of_step, _ = store.restore_newest(target)
    return step, arrays_of_step["params"]["w"].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_in_a_folder_of_any_name(tmp_path, name):
    # Other folders that match the name as a pattern are neither changed nor read.
    for i, folder in enumerate((name, "exp1", "b")):
        with Store(tmp_path / folder / "checkpoints") as store:
            store.save(i + 1, arrays(i), {}, metrics={})
            store.finish()
    for i, folder in enumerate((name, "exp1", "b")):
        assert restored(tmp_path / folder / "checkpoints") == (i + 1, [i] * 3)


@pytest.mark.parametrize(("name", "message"), [("a\\b", "backslash"), ("\udcff", "not UTF-8")])
def test_a_path_that_tensorstore_changes_or_cannot_encode_is_refused(tmp_path, name, message):
    with pytest.raises(CheckpointError, match=message):
        Store(tmp_path / name / "checkpoints")
    assert not list(tmp_path.iterdir())


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


@pytest.mark.parametrize("name", NAMES)
def test_images_in_folders_and_files_of_any_name(tmp_path, name):
    for folder in (name, "exp1"):
        write_image(tmp_path / folder / "train" / name / f"{name}.png")
        write_image(tmp_path / folder / "train" / "other" / "0.png")
    source = ImageFolder(tmp_path / name, split="train")
    assert set(source.class_names) == {name, "other"} and len(source) == 2
    file = tmp_path / name / "train" / name / f"{name}.png"
    assert find_images([str(file)]) == [file]
    assert find_images([str(file.parent)]) == [file]


def test_a_pattern_in_an_object_store_is_refused_before_any_request():
    for use in (storage.as_path, lambda path: find_builder("cifar10", data_dir=path)):
        with pytest.raises(ConfigError, match=r"'\[' '\]' would be read as a pattern"):
            use("gs://bucket/exp[1]")


# After its last save a run checks that the checkpoint can be found again.


def saved(folder):
    store = Store(folder)
    store.save(7, arrays(0), {}, metrics={})
    store._manager.wait_until_finished()
    return store


def test_a_save_that_is_not_found_again_is_an_error(tmp_path):
    store = saved(tmp_path / "damaged")
    pathlib.Path(tmp_path / "damaged" / "7" / "params" / "manifest.ocdbt").unlink()
    with pytest.raises(CheckpointError, match="cannot be found there"):
        store.finish()
    store = saved(tmp_path / "intact")
    store.finish()
    assert restored(tmp_path / "intact") == (7, [0] * 3)
