"""What a run takes from its checkpoint's preprocessing, and where it finds its data."""

import numpy as np
import pytest
from PIL import Image

from tests.config_cases import get_config
from tests.small_run import small_config
from vit_jax.data import inherit
from vit_jax.data.image_folder import ImageFolder
from vit_jax.errors import ConfigError
from vit_jax.training.evaluations import Evaluation
from vit_jax.training.init_from import inherit_model

PUBLISHED = (
    {"op": "decode", "channels": 3, "exif": False},
    {"op": "resize_small", "size": (36, 36), "method": "bicubic"},
    {"op": "center_crop", "size": (32, 32)},
    {"op": "normalize", "mean": (0.4,), "std": (0.2,)},
)
ALL = {"op": "inherit"}
AUGMENTED = (
    {"op": "inherit", "part": "decode"},
    {"op": "random_resized_crop", "method": "inherit"},
    {"op": "flip_lr"},
    {"op": "inherit", "part": "normalization"},
)


def test_transforms_are_the_checkpoints_where_they_say_so():
    assert inherit.resolve((ALL,), PUBLISHED, key="k") == PUBLISHED
    resolved = inherit.resolve(AUGMENTED, PUBLISHED, key="k")
    crop = {"op": "random_resized_crop", "method": "bicubic"}
    assert resolved == (PUBLISHED[0], crop, {"op": "flip_lr"}, PUBLISHED[-1])
    assert not inherit.inherits(resolved) and inherit.inherits(AUGMENTED)
    assert inherit.resolve(resolved, (), key="k") == resolved
    with pytest.raises(ConfigError, match=r'k\[0\].*no part "crop"'):
        inherit.resolve(({"op": "inherit", "part": "crop"},), PUBLISHED, key="k")
    with pytest.raises(ConfigError, match=r"k\[3\]: .*has no normalization"):
        inherit.resolve(AUGMENTED, PUBLISHED[:-1], key="k")


@pytest.mark.medium
def test_a_resumed_run_keeps_them_for_its_image_size_only(plain_run):
    config = small_config(init_from="gone", data__eval_transforms=(ALL,), model__image_size=(16,))
    with pytest.raises(ConfigError, match=r"another config:\nmodel.image_size: \[8\] -> \[16\]"):
        inherit_model(config, plain_run)


def test_a_resumed_run_keeps_what_it_took_and_shows_what_was_changed():
    earlier = inherit.resolve(AUGMENTED, PUBLISHED, key="k")
    assert inherit.keep(AUGMENTED, earlier) == earlier
    assert inherit.keep((ALL, {"op": "flip_lr"}), (*PUBLISHED, {"op": "flip_lr"})) == (
        *PUBLISHED, {"op": "flip_lr"},
    )  # fmt: skip
    changed = (*AUGMENTED[:2], {"op": "flip_lr", "prob": 0.1}, AUGMENTED[3])
    assert inherit.keep(changed, earlier)[2] == {"op": "flip_lr", "prob": 0.1}


def make(root, *folders, each=5):
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(root / folder / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("splits", "train", "evals"),
    [
        ((), "train", {"test": "test"}),
        (("train", "test"), "train", {"test": "test"}),
        (("train", "valid"), "train", {"val": "valid"}),
        (("train", "validation", "test"), "train", {"val": "validation", "test": "test"}),
        (("train",), "train[:80%]", {"val": "train[80%:]"}),
    ],
)
def test_the_splits_of_a_folder_need_no_flag(tmp_path, splits, train, evals):
    folders = [f"{s}/{c}" for s in splits or ("",) for c in ("a", "b")]
    make(tmp_path / "dogs, cats", *(folder.strip("/") for folder in folders))
    for name in ("finetune", "image_folder"):
        c = get_config(name, f"root={tmp_path}/dogs, cats")
        assert c.data.split == train
        assert {name: entry.split for name, entry in c.evals.items()} == evals
    for split in (train, *evals.values()):
        assert len(ImageFolder(c.data.data_dir, split=split)) > 0


def test_other_data_are_found_and_batches_fit(tmp_path):
    table = tmp_path / "birds.csv"
    rows = [f"images/a/{i}.png,{'ab'[i % 2]}" for i in range(200)]
    make(tmp_path / "images", "a", each=200)
    table.write_text("\n".join(["image,label", *rows]))
    c = get_config("finetune", f"root={table}")
    assert (c.data.source, c.data.data_dir) == ("table", str(table))
    assert (c.data.split, c.evals.test.split) == ("train", "test")
    assert c.batch_size == 16
    assert get_config("finetune", "root=/nowhere").batch_size == 8


def test_every_class_of_several_images_is_trained_on_and_tested(tmp_path):
    make(tmp_path, *(f"class {i}" for i in range(40)), each=2)
    for split in ("train", "test"):
        source = ImageFolder(tmp_path, split=split, test_fraction=0.2)
        assert {source.label(i) for i in range(len(source))} == set(range(40))


def test_the_precision_of_a_small_split_is_said():
    evaluation = Evaluation(0, 27, "", lambda params, progress, on_bad: {})
    assert evaluation.precision(num_trained_on=107) == (
        "27 of 134 images (20%); its accuracy has a 95% interval of up to +-18 points"
    )
