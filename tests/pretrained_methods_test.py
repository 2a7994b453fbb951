"""Predictions, features and attention of a model in one line, against the model's own call."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.conftest import slow
from tests.measured_models import FAMILIES, family, inputs, small
from vit_jax.errors import CheckpointError, ConfigError, DataError, NonFiniteError

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def images():
    """Three images of odd sizes and modes."""
    rng = np.random.default_rng(0)
    shapes = (31, 57, 3), (90, 20, 3), (7, 7)
    return [rng.integers(0, 256, shape, np.uint8) for shape in shapes]


@pytest.mark.parametrize("loss", ["softmax_xent", "sigmoid_xent"])
def test_predictions_are_those_of_the_logits_and_of_predict(images, loss, tmp_path):
    labels = tuple(f"name {i}" for i in range(10))
    model = small(image_size=(32, 48), num_classes=10)
    model = dataclasses.replace(model, loss=loss, labels=labels)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image).save(path)
    predictions = model.predict(paths, top_k=3)
    logits = np.asarray(model(model.preprocess(images))[0], np.float64)
    shares = 1 / (1 + np.exp(-logits))
    if loss == "softmax_xent":
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for prediction, row, path in zip(predictions, shares, paths, strict=True):
        best = np.argsort(-row)[:3]
        assert prediction.path == str(path)
        assert prediction.classes == tuple(labels[i] for i in best)
        np.testing.assert_allclose(prediction.probabilities, row[best], rtol=1e-5)
    if loss == "softmax_xent":  # One comparison with `predict` is enough: it takes seconds.
        return
    for ours, theirs in zip(predictions, vit_jax.predict(model, paths, top_k=3), strict=True):
        assert (ours.path, ours.classes) == (theirs.path, theirs.classes)
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, rtol=1e-5)
        np.testing.assert_allclose(ours.features, theirs.features, rtol=1e-5, atol=1e-5)


def test_every_form_of_images_gives_the_same(images):
    model = small(image_size=(32, 48), num_classes=10)
    prepared = model.preprocess(images)
    expected = np.asarray(model(prepared)[1]["pre_logits"])
    assert model.features(images).dtype == np.float32
    for form in (images, [Image.fromarray(image) for image in images], prepared):
        np.testing.assert_allclose(model.features(form), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(
        model.features(images[0]), model.features(jax.numpy.asarray(images[0]))
    )


def test_many_images_are_two_batches_of_one_size(monkeypatch):
    model = small(image_size=32, num_classes=10)
    prepared = np.random.default_rng(0).normal(size=(70, 32, 32, 3)).astype(np.float32)
    sizes, call = [], type(model).__call__

    def counted(self, images, **kwargs):
        sizes.append(len(images))
        return call(self, images, **kwargs)

    monkeypatch.setattr(type(model), "__call__", counted)
    predictions = model.predict(prepared, top_k=1)
    assert sizes == [64, 64] and len(predictions) == 70
    assert predictions[69].path == "image 69"
    np.testing.assert_allclose(
        np.stack([prediction.features for prediction in predictions]),
        np.asarray(call(model, prepared)[1]["pre_logits"]), rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    model.features(prepared[:5])
    assert sizes[2:] == [8]
    lines = repr(predictions).splitlines()
    assert lines[0].split() == ["image", "probability", "class"] and len(lines) == 22
    assert lines[-1] == "... and 50 more"


def test_the_table_of_a_notebook_escapes_names():
    model = small(image_size=32, num_classes=2)
    model = dataclasses.replace(model, labels=("<b>&\x1b[2J", "a\nb"))
    text = model.predict(np.zeros((32, 32, 3), np.uint8))._repr_html_()
    assert "&lt;b&gt;&amp;" in text and "a b" in text and "\x1b" not in text
    assert text.count("<tr>") == 3  # The header and two classes.


def test_a_thousand_outputs_without_names_are_imagenets():
    model = small(image_size=32)
    names = model.predict(np.zeros((32, 32, 3), np.uint8), top_k=1000)[0].classes
    assert len(names) == 1000 and "tench, Tinca tinca" in names


def expected_maps(model, images):
    """Maps of the first image, with loops over captured weights."""
    config = model.config
    _, captured = model(images, capture=("attention", "pool_attention"))
    weights = np.asarray(captured["attention"], np.float64)[:, 0]
    if "map" in config.pool:
        weights = np.asarray(captured["pool_attention"], np.float64)
        queries, prefix = [0], config.num_prefix if config.pool == "map" else 0
    else:
        prefix = config.num_prefix
        queries = range(prefix, weights.shape[-2]) if config.pool == "gap" else [0]
    rows, columns = config.grid
    maps = np.zeros((*weights.shape[:2], rows, columns))
    for row in range(rows):
        for column in range(columns):
            for query in queries:
                key = prefix + row * columns + column
                maps[..., row, column] += weights[..., query, key] / len(queries)
    return maps


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_of_every_family(name):
    model, images = family(name), inputs(name)[:1]
    maps = model.attention(images)
    np.testing.assert_allclose(maps, expected_maps(model, images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", ["token", "gap", "map", slow("map_patches"), slow("token_gap")])
def test_attention_of_every_pooling_of_a_non_square_image(pool):
    model = small(pool=pool, class_token=True, registers=2, image_size=(32, 48), scan=False)
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    maps = model.attention(image)
    assert maps.dtype == np.float32 and maps.shape == (1, 2, 2, 3)
    assert (maps.sum(axis=(2, 3)) < 1 + 1e-5).all()
    expected = expected_maps(model, model.preprocess(image))
    np.testing.assert_allclose(maps, expected, rtol=1e-5, atol=1e-6)


def test_mistakes_are_named(tmp_path):
    model = small(image_size=32, num_classes=3)
    image = np.zeros((32, 32, 3), np.uint8)
    headless = dataclasses.replace(model.config, num_classes=0)
    mixer = dataclasses.replace(family("vt_npz/mixer").config, image_size=(32, 32))
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    nan = jax.tree.map(lambda leaf: leaf * np.nan, model.params)
    huge = jax.tree.map(lambda leaf: np.full_like(leaf, 1e38), model.params)
    for error, call, text in (
        (CheckpointError, lambda: dataclasses.replace(model, config=headless).predict(image),
         r"has no head.*Call \.features\(images\)"),
        (CheckpointError, lambda: dataclasses.replace(model, loss="").predict(image),
         r"is for regression.*Call \.features\(images\)"),
        (CheckpointError, lambda: dataclasses.replace(model, labels=("a",)).predict(image),
         "3 outputs, but 1 labels"),
        (CheckpointError, lambda: dataclasses.replace(model, params=nan).features(image),
         "parameters are not finite"),
        (NonFiniteError, lambda: dataclasses.replace(model, params=huge).features(image),
         "they overflow in float32"),
        (ConfigError, lambda: model.predict(image, top_k=0), "top_k is 0"),
        (ConfigError, lambda: model.attention([image, image]), "one image, not 2"),
        (ConfigError, lambda: dataclasses.replace(model, config=mixer).attention(image),
         "is a Mixer: it has no attention"),
        (ConfigError, lambda: model.features(np.zeros((1, 16, 16, 3), np.float32)), "takes"),
        (DataError, lambda: model.features([]), "No image was given"),
        (DataError, lambda: model.predict([image, broken]), re.escape(str(broken))),
    ):  # fmt: skip
        with pytest.raises(error, match=f"(?s){text}"):
            call()
