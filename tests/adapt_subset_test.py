"""Some classes, a few examples of each: of any source, with labels numbered again."""

import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tests.small_run import dataset, run, small_config
from vit_jax.config import base_config
from vit_jax.data.sources import open_source
from vit_jax.data.subset import few_shot, random_subset
from vit_jax.errors import ConfigError, DataError
from vit_jax.inference.evaluate import evaluate


def opened(split="train", **changes):
    c = base_config().data
    c.update(changes)
    return open_source(c, split=split)


def examples(subset):
    return {subset.describe(i) for i in range(len(subset))}


def test_classes_are_numbered_in_the_order_given():
    whole, part = opened(), opened(classes=(7, 2))
    assert part.class_names == ("7", "2") and part.num_classes == 2
    labels = [whole[i]["label"] for i in range(len(whole))]
    kept = [i for i, label in enumerate(labels) if label in (7, 2)]
    assert len(part) == len(kept)
    for i, original in enumerate(kept):
        np.testing.assert_array_equal(part[i]["image"], whole[original]["image"])
        assert part[i]["label"] == part.label(i) == (7, 2).index(labels[original])
        assert part.describe(i) == whole.describe(original)
    again = pickle.loads(pickle.dumps(part))
    assert again[3]["label"] == part[3]["label"] and again.fingerprint == part.fingerprint
    prints = {opened(classes=c).fingerprint for c in ((), (7, 2), (2, 7), (7,), (7, 2, 1))}
    assert len(prints) == 5


def test_shots_are_balanced_nested_and_of_the_seed():
    source = opened(classes=(1, 3, 5))
    few, more = few_shot(source, 4, seed=0), few_shot(source, 9, seed=0)
    assert Counter(few[i]["label"] for i in range(len(few))) == {0: 4, 1: 4, 2: 4}

    assert examples(few) < examples(more) and examples(few) == examples(few_shot(source, 4, seed=0))
    assert len(examples(few) & examples(few_shot(source, 4, seed=1))) < 6
    assert few.fingerprint != few_shot(source, 4, seed=1).fingerprint != more.fingerprint
    assert few_shot(source, 0, seed=0) is source


def test_a_random_subset_is_nested_and_depends_on_the_seed():
    source = opened()
    few, more = random_subset(source, 10, seed=0), random_subset(source, 100, seed=0)

    assert len(examples(few)) == 10 and len(examples(more)) == 100
    assert examples(few) < examples(more) and examples(few) == examples(
        random_subset(source, 10, seed=0)
    )
    # Ten of 1,497 twice: that four are common has a chance below 1e-6.
    assert len(examples(few) & examples(random_subset(source, 10, seed=1))) < 4
    prints = {few.fingerprint, more.fingerprint, random_subset(source, 10, seed=1).fingerprint}
    assert len(prints) == 3 and source.fingerprint not in prints
    assert random_subset(source, 0, seed=0) is source
    assert examples(random_subset(source, len(source), seed=5)) == examples(source)
    # The classes are those of the whole, though some of them have no example here.
    assert random_subset(source, 1, seed=0).class_names == source.class_names


def test_more_examples_than_there_are_are_refused():
    with pytest.raises(DataError, match=r"data\.examples is 2,000, but digits, train, has 1,\d+"):
        random_subset(opened(), 2000, seed=0)


def test_of_a_folder_of_images_no_file_is_read(tmp_path, monkeypatch):
    for name in ("cat", "dog", "eel"):
        (tmp_path / name).mkdir()
        for i in range(40):
            Image.new("RGB", (9, 9), (i, i, i)).save(tmp_path / name / f"{i}.png")
    with monkeypatch.context() as patch:
        patch.setattr("vit_jax.data.image_folder.read_file", None)
        part = opened(source="image_folder", data_dir=str(tmp_path), classes=(2, 0))
        part = few_shot(part, 5, seed=3)
    assert part.class_names == ("eel", "cat") and len(part) == 10
    assert "eel" in part.describe(next(i for i in range(10) if part[i]["label"] == 0))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"classes": (3, 10)}, ConfigError, "class ids of digits, from 0 to 9"),
        ({"classes": (3, 3)}, ConfigError, "write different class ids"),
        ({"split": "train[:3]", "classes": (9,)}, DataError, "has no example of class 9, 9"),
    ],
)
def test_invalid_classes_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        opened(**changes)


def test_more_shots_than_examples_are_refused():
    with pytest.raises(
        DataError, match=r"data\.shots is 200, but digits, train, has 14\d examples"
    ):
        few_shot(opened(), 200, seed=0)


def test_several_labels_cannot_be_chosen_by():
    source = opened()
    source.multi_label = True
    with pytest.raises(
        ConfigError, match=r"data\.shots is set, but an example of digits may be of"
    ):
        few_shot(source, 2, seed=0)


@pytest.mark.slow
def test_a_run_of_few_examples_is_evaluated_on_its_classes(tmp_path):
    run(tmp_path, data__classes=(8, 1), data__shots=16, data__split="train", total_steps=4)
    assert dataset(tmp_path)["class_names"] == ["8", "1"]
    assert dataset(tmp_path)["num_examples"] == 32
    whole = small_config(data__classes=(8, 1)).data
    assert evaluate(tmp_path).count == len(open_source(whole, split="test[:50]"))
