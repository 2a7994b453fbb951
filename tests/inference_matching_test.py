"""The classes of a data set find the outputs of a model that stand for them."""

import re

import numpy as np
import pytest

from tests.references import reference
from vit_jax.data.base import Source
from vit_jax.errors import DataError
from vit_jax.inference.class_matching import Matched, match_classes
from vit_jax.pretrained import imagenet
from vit_jax.pretrained.class_names import name_outputs

IDS, NAMES = zip(*imagenet.synsets(), strict=True)


def outputs(class_names, labels, num_outputs=None):
    matching = match_classes(class_names, labels, num_outputs=num_outputs or len(labels))
    return [(match.output, match.how) for match in matching.matches]


def test_the_table_is_imagenets():
    assert len(set(IDS)) == 1000 and list(IDS) == sorted(IDS)
    assert (IDS[0], NAMES[0]) == ("n01440764", "tench, Tinca tinca")
    assert NAMES[281] == "tabby, tabby cat" and NAMES[999].startswith("toilet tissue")


@pytest.mark.slow
def test_the_table_has_the_names_of_timm():
    reference("timm")
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    assert [info.index_to_label_name(i) for i in range(1000)] == list(IDS)
    theirs = [info.label_name_to_description(i, detailed=False) for i in IDS]
    assert theirs == list(NAMES)


@pytest.mark.parametrize(
    ("class_names", "labels", "expected"),
    [
        (["dog", "cat"], ["cat", "dog"], [(1, "name"), (0, "name")]),
        (["Tinca-tinca", "GOLD_fish"], ["gold fish", "tench, Tinca tinca"],
         [(1, "lemma"), (0, "lemma")]),
        # By id: the model has 1,000 labels in the usual order, in other words.
        (["n01440764", "n02085620-Chihuahua"], [name.split(",")[0] for name in NAMES],
         [(0, "synset"), (151, "synset")]),
        (["n01440764", "tabby cat"], list(IDS), [(0, "name"), (281, "lemma")]),
        # The id of a class of ImageNet, for a model that has its name alone.
        (["n01440764", "n01443537"], ["goldfish", "tench", "cat"], [(1, "lemma"), (0, "lemma")]),
        # Without labels: ImageNet's classes, or in TensorFlow's models those after a background.
        (["tench", "n15075141"], None, [(0, "lemma"), (999, "synset")]),
        (["crane", "n02012849", "n03126707"], None,
         [(None, "fits several outputs, 134, 517: name it by its synset"), (134, "synset"),
          (517, "synset")]),
    ],
)  # fmt: skip
def test_names_find_outputs(class_names, labels, expected):
    assert outputs(class_names, labels, 1000 if labels is None else len(labels)) == expected


def test_a_background_comes_before_imagenets_classes():
    assert outputs(["tench"], None, 1001) == [(1, "lemma")]
    assert outputs(["tench"], ["background", *NAMES]) == [(1, "lemma")]


def test_what_has_no_output_is_reported_and_what_is_assumed_is_said():
    matching = match_classes(["tench", "unicorn", "Tinca tinca"], None, num_outputs=1000)
    assert matching.outputs == (0,) and matching.is_subset
    assert [match.data_class for match in matching.unmatched] == ["unicorn", "Tinca tinca"]
    assert "matched with tench already" in matching.unmatched[1].how
    assert matching.summary().startswith(
        "1 of 3 classes matched (1 by lemma); the model has 1,000. Without an output: unicorn (no"
    )
    assert "1,000 outputs are taken for ImageNet's" in matching.assumption
    assert name_outputs(["LABEL_0", "LABEL_1"], 2) == (None, "")


def test_unnamed_classes_are_matched_by_position_if_there_are_as_many():
    matching = match_classes(["0", "1", "2"], ["LABEL_0", "LABEL_1", "LABEL_2"], num_outputs=3)
    assert matching.outputs == (0, 1, 2) and not matching.is_subset
    assert "by their position" in matching.assumption
    assert match_classes(["a", "b"], None, num_outputs=2).labels == ("a", "b")
    with pytest.raises(DataError, match=r"names none of its 7 classes, and the data set has 2: a"):
        match_classes(["a", "b"], None, num_outputs=7)


def test_no_match_names_both_and_what_to_do():
    with pytest.raises(DataError) as error:
        match_classes(["aaa", "bbb"], list(NAMES), num_outputs=1000)
    message = str(error.value)
    assert re.search(r"has aaa, bbb; the model has tench, Tinca tinca; goldfish", message)
    assert "method knn" in message and "n01440764" in message


class Labels(Source):
    """Examples with given labels."""

    name, split = "labels", "test"

    def __init__(self, labels, class_names):
        self._labels, self.class_names = labels, class_names
        self.multi_label = np.ndim(labels) == 2

    def __len__(self):
        return len(self._labels)

    def __getitem__(self, index):
        return {"image": index, "label": self._labels[index]}


def test_examples_of_other_classes_are_left_out():
    matching = match_classes(["cat", "unicorn", "dog"], ["dog", "cat"], num_outputs=2)
    source = Matched(Labels([0, 1, 2, 1, 0], ("cat", "unicorn", "dog")), matching)
    assert [(e["image"], e["label"]) for e in map(source.__getitem__, range(len(source)))] == [
        (0, 1), (2, 0), (4, 1),
    ]  # fmt: skip
    assert source.class_names == ("dog", "cat") and source.describe(1) == "labels test[2]"
    many = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 1]], np.float32)
    source = Matched(Labels(many, ("cat", "unicorn", "dog")), matching)
    np.testing.assert_array_equal([source.label(i) for i in range(len(source))], [[0, 1], [1, 1]])
    with pytest.raises(DataError, match="a split without labels"):
        Matched(Labels([-1], ("cat", "unicorn", "dog")), matching)
