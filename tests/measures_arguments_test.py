"""What a measure says of arguments of the wrong type, which the type checks of tests hide."""

from pathlib import Path

import numpy as np
import pytest

from tests.measured_models import small
from vit_jax.analysis.measures.arguments import positive_norm, whole_number
from vit_jax.analysis.measures.classes import class_number
from vit_jax.analysis.measures.encoder import measured
from vit_jax.analysis.measures.images import open_images
from vit_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("last", 'layer is "last": the model has 3 layers, it must be -3 to 2, a whole number'),
        (1.5, "layer is 1.5"), (None, "layer is None"), (True, "layer is True"),
        (3, "the model has 3 layers, it must be -3 to 2."),
    ],
)  # fmt: skip
def test_numbers_that_are_not_whole_or_not_in_the_range_are_named(value, text):
    with pytest.raises(ConfigError, match=text):
        whole_number("layer", value, low=-3, high=2, reason="the model has 3 layers")


def test_numpys_whole_numbers_are_accepted():
    assert type(whole_number("k", np.int64(5))) is int


@pytest.mark.parametrize("value", ["x", 0, float("nan"), True])
def test_a_threshold_is_a_positive_number(value):
    with pytest.raises(ConfigError, match="give a positive norm, or None"):
        positive_norm("threshold", value)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("runs/a", r'"runs/a" is a path, not a model: load_pretrained\("runs/a"\)'),
        (Path("runs/a"), r'load_pretrained\("runs/a"\)'),
        ({"params": 0}, "type dict, not a model"),
    ],
)
def test_what_is_no_model_is_refused(model, text):
    with pytest.raises(ConfigError, match=text):
        measured(model)


def test_a_number_of_images_is_positive():
    with pytest.raises(ConfigError, match=r"num_images \(None: all\) is 0: it must be at least 1"):
        open_images(small(image_size=32), np.zeros((1, 32, 32, 3), np.float32), num_images=0)


def test_a_class_is_named_by_its_number_its_name_or_a_synonym_of_its_own():
    labels = ("tench, Tinca tinca", "crane", "crane, lifting device")

    def number(value):
        return class_number("target", value, labels=labels, num_classes=3)

    assert [number(x) for x in (2, "crane", "tinca Tinca", "lifting-device")] == [2, 1, 0, 2]
    with pytest.raises(ConfigError, match=r'several classes have this name, 1 \("crane"\), 2'):
        number("Crane")
    with pytest.raises(ConfigError) as error:
        number("tench, Tinca")
    assert str(error.value).endswith(
        'Did you mean "tench, Tinca tinca"? Accepted: "tench, Tinca tinca", "crane", '
        '"crane, lifting device".'
    )
    with pytest.raises(ConfigError, match="the names of the model's classes are unknown"):
        class_number("target", "crane", labels=None, num_classes=3)


def test_pixels_that_are_not_prepared_are_noted_and_channels_first_refused(monkeypatch):
    model, notes = small(image_size=32), []
    monkeypatch.setattr("vit_jax.analysis.measures.images.note", notes.append)
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0, 1, (2, 32, 32, 3)).astype(np.float32)
    open_images(model, pixels * 2 - 1)
    assert not notes
    open_images(model, pixels)
    assert "look unprepared" in notes[0] and "gives -1 to 1" in notes[0]
    levels = rng.integers(0, 256, (2, 3, 40, 48), np.uint8)
    with pytest.raises(ConfigError, match=r"channels are last: \[n, height, width, 3\]"):
        open_images(model, levels)
    with pytest.raises(ConfigError, match=r"transpose\(1, 2, 0\)"):
        open_images(model, levels[0])
    assert len(open_images(model, levels.transpose(0, 2, 3, 1))) == 2
