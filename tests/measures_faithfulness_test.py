"""Deletion and insertion against a slow loop, and on a model that looks at one patch."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.measured_models import small
from vit_jax import analysis, create
from vit_jax.analysis.measures.deletion import RANDOM_ORDERS, removed_counts
from vit_jax.analysis.measures.explanation_maps import METHODS

pytestmark = pytest.mark.medium


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def slow_curves(model, image, order, target, size=16):
    """Probabilities as patches of a size are removed, and put back, one after the other."""
    columns = image.shape[1] // size
    mean = image.astype(np.float64).mean(axis=(0, 1))
    deleted, inserted = image.copy(), np.broadcast_to(mean, image.shape).astype(np.float32).copy()
    steps = [(deleted.copy(), inserted.copy())]
    for patch in order:
        y, x = patch // columns * size, patch % columns * size
        for row in range(y, y + size):
            for column in range(x, x + size):
                deleted[row, column] = mean
                inserted[row, column] = image[row, column]
        steps.append((deleted.copy(), inserted.copy()))
    logits = np.asarray(model(np.concatenate(list(zip(*steps, strict=True))))[0], np.float64)
    if model.loss == "sigmoid_xent":
        probabilities = 1 / (1 + np.exp(-logits))
    else:
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities[:, target].reshape(2, -1)


def slow_area(curve):
    return sum((curve[i] + curve[i + 1]) / 2 for i in range(len(curve) - 1)) / (len(curve) - 1)


@pytest.mark.parametrize("loss", ["softmax_xent", "sigmoid_xent"])
def test_curves_and_areas_equal_a_loop_over_patches(loss):
    model = dataclasses.replace(small(image_size=(32, 48), num_classes=3), loss=loss)
    images = np.random.default_rng(0).normal(size=(2, 32, 48, 3)).astype(np.float32)
    methods = ("attention", "rollout")
    result = analysis.faithfulness(model, images, methods=methods)
    assert result.methods == (*methods, "random") and result.num_images == 2
    curves, areas = [], []
    for number, image in enumerate(images):
        explained = analysis.explanations(model, image[None], methods=methods)
        rng = np.random.default_rng((0, number))
        # Where each patch is removed in a random order.
        positions = [list(rng.permutation(6)) for _ in range(RANDOM_ORDERS)]
        orders = [
            sorted(range(6), key=lambda p, values=values: (-values[p], positions[0][p]))
            for values in explained.maps.reshape(2, 6)
        ]
        orders += [[position.index(i) for i in range(6)] for position in positions]
        by_order = [slow_curves(model, image, order, explained.target) for order in orders]
        by_method = [*by_order[:2], np.mean(by_order[2:], axis=0)]
        curves.append(by_method)
        areas.append([[slow_area(curve) for curve in method] for method in by_method])
        if number == 0:  # An explanation has the orders of a first image.
            for i, curve in enumerate(("deletion", "insertion")):
                want = [method[i] for method in areas[0]]
                np.testing.assert_allclose(explained.areas[curve], want[:2], atol=1e-6)
                np.testing.assert_allclose(explained.random_areas[curve], want[2], atol=1e-6)
    for i, curve in enumerate(("deletion", "insertion")):
        want = np.mean(curves, axis=0)[:, i]
        np.testing.assert_allclose(result.mean[curve], want, atol=1e-6)
        area = np.asarray(areas)[..., i]
        np.testing.assert_allclose(result.mean[f"{curve}_area"], area.mean(axis=0), atol=1e-6)
        sign = 1 if curve == "insertion" else -1
        gain = sign * (area - area[:, 2:])
        np.testing.assert_allclose(result.mean[f"{curve}_gain"], gain.mean(axis=0), atol=1e-6)


@functools.cache
def model_of_one_patch():
    """Attention is uniform and copies normalised tokens; the class is whether one is unusual."""
    model = create("mu/16", image_size=64, num_classes=2)
    params = jax.tree.map(np.array, model.params)
    rng, width = np.random.default_rng(0), model.config.width
    usual, unusual = rng.normal(size=(2, width))
    params["embedding"]["bias"][:] = usual
    # The mean colour is 0; patches that begin with 1 are unusual.
    params["embedding"]["kernel"][:] = 0
    params["embedding"]["kernel"][0, 0, 0] = unusual - usual
    params["pos_embedding"][:] = 0
    attention = params["encoder"]["blocks"]["attn"]
    for name in ("query", "key"):
        attention[name]["kernel"][:] = 0
    for name in ("value", "out"):
        attention[name]["kernel"][:] = np.eye(width).reshape(attention[name]["kernel"].shape)
    params["encoder"]["blocks"]["mlp"]["fc2"]["kernel"][:] = 0
    params["head"]["kernel"][:, 1] = 0.3 * (unusual - usual)
    normalised = (usual - usual.mean()) / usual.std()
    params["head"]["bias"][1] = -1 - normalised @ params["head"]["kernel"][:, 1]
    return dataclasses.replace(model, params=params)


@pytest.mark.slow
def test_gradients_find_the_only_patch_that_matters():
    images = np.zeros((2, 64, 64, 3), np.float32)
    places = [(1, 2), (3, 0)]
    for image, (row, column) in zip(images, places, strict=True):
        image[16 * row, 16 * column] = 1
        image[16 * row + 1, 16 * column] = -1  # The mean stays 0.
    model = model_of_one_patch()
    for image, place in zip(images, places, strict=True):
        result = analysis.explanations(model, image[None], target=1)
        maps = dict(zip(result.methods, result.maps, strict=True))
        for method in ("relevance", "grad_cam"):
            assert np.unravel_index(maps[method].argmax(), (4, 4)) == place, method
        assert np.ptp(maps["attention"]) < 1e-6
        assert any(note.startswith("attention has the same value") for note in result.notes)
    result = analysis.faithfulness(model, images, target=1)
    gradients = [METHODS.index("relevance"), METHODS.index("grad_cam")]
    with_patch, without = result.mean["deletion"][0, [0, -1]]
    assert with_patch > without + 0.1
    # The best that is possible: all is gone, or there, after the first of 16 steps.
    best = without + (with_patch - without) / 32
    np.testing.assert_allclose(result.mean["deletion_area"][gradients], best, atol=1e-6)
    best = with_patch - (with_patch - without) / 32
    np.testing.assert_allclose(result.mean["insertion_area"][gradients], best, atol=1e-6)
    assert (result.mean["deletion_gain"][gradients] > 0.05).all()
    # Ties are broken as in a random order, so a map that says nothing is no better than chance.
    assert abs(result.mean["deletion_gain"][METHODS.index("attention")]) < with_patch - without


def test_large_grids_have_16_steps_and_small_ones_one_for_each_patch():
    assert removed_counts(6).tolist() == [0, 1, 2, 3, 4, 5, 6]
    counts = removed_counts(196)
    assert len(counts) == 17 and counts[0] == 0 and counts[-1] == 196
    np.testing.assert_allclose(np.diff(counts), 196 / 16, atol=0.76)


@pytest.mark.slow
def test_files_table_and_figure(tmp_path):
    model = small(image_size=(32, 48), num_classes=3)
    result = analysis.faithfulness(model, "digits:test", num_images=3, methods="rollout")
    assert result.num_images == 3 and "too few to tell whether" in result.notes[0]
    result.save(tmp_path)
    table = result.to_dataframe()
    assert list(table["method"]) == ["rollout", "random"]
    assert (table["deletion_area_low"] <= table["deletion_area"]).all()
    assert table["insertion_gain"][1] == 0
    head = jax.tree.map(np.zeros_like, model.params["head"])
    untrained = dataclasses.replace(model, params={**model.params, "head": head})
    flat = analysis.faithfulness(untrained, "digits:test", num_images=3, methods="rollout")
    np.testing.assert_allclose(flat.mean["deletion"], 1 / 3, rtol=1e-6)
    assert "as those of a new head of zeros" in flat.notes[0]
    with np.load(tmp_path / "faithfulness.npz") as arrays:
        np.testing.assert_array_equal(arrays["deletion"], result.mean["deletion"])
        np.testing.assert_allclose(arrays["removed"], np.arange(7) / 6)
