"""Similarity of layers and linear probes, against slow formulas and known cases."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.measured_models import FAMILIES, expected, family, inputs, small
from vit_jax import analysis
from vit_jax.analysis.measures.images import open_images
from vit_jax.analysis.measures.layer_probes import LayerProbes, split
from vit_jax.analysis.measures.layer_similarity import hsic
from vit_jax.analysis.measures.result import NotApplicableError
from vit_jax.errors import ConfigError
from vit_jax.evals import probe as probe_module
from vit_jax.evals.intervals import wilson
from vit_jax.evals.probe import fit_probe
from vit_jax.models.resnet import Root

pytestmark = pytest.mark.medium


def u_statistic(k, m):
    """HSIC_1 by its definition: the mean of a kernel over all ordered quadruples of examples."""
    total, count = 0.0, 0
    for i, j, q, r in itertools.permutations(range(len(k)), 4):
        total += k[i, j] * m[i, j] + k[i, j] * m[q, r] - 2 * k[i, j] * m[i, q]
        count += 1
    return total / count


def slow_hsic(k, m):
    """Song et al. 2012, equation 5, entry by entry."""
    n, trace, sums, between = len(k), 0.0, [0.0, 0.0], 0.0
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            trace += k[i, j] * m[j, i]
            sums[0] += k[i, j]
            sums[1] += m[i, j]
            between += sum(k[i, j] * m[j, q] for q in range(n) if q != j)
    return (trace + sums[0] * sums[1] / ((n - 1) * (n - 2)) - 2 * between / (n - 2)) / (n * (n - 3))


def slow_cka(first, second, size):
    """CKA of two layers' representations [image, features], from complete minibatches."""
    sums = np.zeros(3)
    for start in range(0, len(first) // size * size, size):
        grams = [x[start : start + size] @ x[start : start + size].T for x in (first, second)]
        k, m = grams
        sums += slow_hsic(k, m), slow_hsic(k, k), slow_hsic(m, m)
    return sums[0] / math.sqrt(sums[1] * sums[2])


def test_the_estimate_is_the_mean_over_all_quadruples():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 4)) + 2
    k, m = x @ x.T, y @ y.T
    want = u_statistic(k, m)
    np.testing.assert_allclose(hsic(k[None], m[None]), [[want]], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(slow_hsic(k, m), want, rtol=1e-10, atol=1e-12)
    shift = rng.normal(size=6)
    shifted = k + shift + shift[:, None]
    np.testing.assert_allclose(hsic(shifted[None], m[None]), [[want]], rtol=1e-9, atol=1e-11)


def test_independent_representations_have_no_similarity():
    """500 draws of n = 32 normal examples of 8 features: unbiased 0, biased about 0.2."""
    rng = np.random.default_rng(0)
    sums, biased = np.zeros(3), np.zeros(3)
    centre = np.eye(32) - 1 / 32
    for _ in range(500):
        x, y = rng.normal(size=(2, 32, 8))
        grams = [x @ x.T, y @ y.T]
        for i, (k, m) in enumerate([grams, [grams[0]] * 2, [grams[1]] * 2]):
            sums[i] += hsic(k[None], m[None])[0, 0]
            biased[i] += np.trace(centre @ k @ centre @ m)
    assert abs(sums[0] / math.sqrt(sums[1] * sums[2])) < 0.01
    assert biased[0] / math.sqrt(biased[1] * biased[2]) == pytest.approx(0.198, abs=0.01)


@pytest.mark.parametrize("name", [*FAMILIES, "vt_npz/mixer"])
def test_similarity_equals_the_slow_formula_on_the_references_blocks(name):
    """The goldens have two images, and HSIC needs four: so these, mirrored and negated, too."""
    pretrained, images = family(name), inputs(name)
    images = np.concatenate([images, images[:, ::-1], images[:, :, ::-1], -images])
    with jax.default_matmul_precision("highest"):
        result = analysis.layer_similarity(pretrained, images, batch_size=4)
        captured = pretrained(images, capture=("embed", "blocks"))[1]
    blocks = np.array(captured["blocks"], np.float64)
    for layer, reference in enumerate(expected(name, "block")):
        blocks[layer, :2] = reference
    layers = [np.asarray(captured["embed"], np.float64), *blocks]
    prefix = getattr(pretrained.config, "num_prefix", 0)
    layers = [layer[:, prefix:].reshape(8, -1) for layer in layers]
    assert result.num_images == 8
    first = 1 if getattr(pretrained.config, "pre_norm", False) else 0
    for i, j in itertools.product(range(first, len(layers)), repeat=2):
        want = slow_cka(layers[i], layers[j], 4)
        np.testing.assert_allclose(result.cka[i, j], want, rtol=3e-5, atol=1e-5)


def random_images(count, height=32, width=32):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, height, width, 3)).astype(np.float32)


@pytest.mark.slow
def test_root_and_units_of_a_resnet_are_layers():
    """The root's output by its module, and that of the last unit, the feature map of v1."""
    resnet, images = family("bv_npz/bit_v1"), inputs("bv_npz/bit_v1")
    images = np.concatenate([images, images[:, ::-1], images[:, :, ::-1], -images])
    with jax.default_matmul_precision("highest"):
        result = analysis.layer_similarity(resnet, images, batch_size=8)
        root = Root(resnet.config, "float32").apply(
            {"params": resnet.params["root"]}, jnp.asarray(images)
        )
        last = resnet(images, capture=("feature_map",))[1]["feature_map"]
    assert len(result.cka) == 1 + sum(resnet.config.units)
    first, last = (np.asarray(x, np.float64).reshape(8, -1) for x in (root, last))
    np.testing.assert_allclose(result.cka[0, -1], slow_cka(first, last, 8), rtol=3e-5, atol=1e-5)


@pytest.mark.slow
def test_two_models_and_means_of_tokens():
    one = small(image_size=32)
    two = small(image_size=32, depth=2, registers=1, width=48, num_heads=3)
    images = random_images(19)
    result = analysis.layer_similarity(one, images, two, pool="mean", batch_size=8)
    assert result.cka.shape == (2, 3) and result.num_images == 16
    assert result.notes == ("3 images left out: unreadable, or less than half a minibatch",)
    with jax.default_matmul_precision("highest"):
        first, second = (
            [np.asarray(layer, np.float64)[:, model.config.num_prefix :].mean(axis=1)
             for layer in (captured["embed"], *captured["blocks"])]
            for model in (one, two)
            for captured in [model(images, capture=("embed", "blocks"))[1]]
        )  # fmt: skip
    for i, j in itertools.product(range(2), range(3)):
        want = slow_cka(first[i], second[j], 8)
        np.testing.assert_allclose(result.cka[i, j], want, rtol=1e-4, atol=1e-4)
    low, high = result.interval
    assert (low <= high).all()


def test_each_model_has_its_own_preprocessing():
    """Pixels, as a stream of one model, are prepared for the other, too; prepared ones must fit."""
    one, two = small(image_size=32), small(image_size=48)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), np.uint8)
    result, streamed = (
        analysis.layer_similarity(one, images, two, batch_size=8)
        for images in (pixels, open_images(one, pixels))
    )
    np.testing.assert_array_equal(result.cka, streamed.cka)
    assert result.summary() == {"cka_last_layers": result.cka[-1, -1]}
    with pytest.raises(ConfigError, match="48, 48, 3"):
        analysis.layer_similarity(one, random_images(8), two, batch_size=8)


def test_a_model_resembles_itself(tmp_path):
    result = analysis.layer_similarity(small(image_size=32), random_images(17), batch_size=8)
    np.testing.assert_allclose(np.diag(result.cka), 1, rtol=1e-12)
    np.testing.assert_allclose(result.cka, result.cka.T, rtol=1e-12)
    # A function of the replicates of three means, with the same weights: always 1 on the diagonal.
    np.testing.assert_allclose(np.diagonal(result.interval, axis1=1, axis2=2), 1, rtol=1e-12)
    other = dataclasses.replace(result, other="runs/a_long_name_of_a_run_of_$another$_model")
    other.save(tmp_path)


def test_images_that_cannot_be_read_are_in_no_minibatch():
    pretrained, images = small(image_size=32), random_images(8)
    want = analysis.layer_similarity(pretrained, images, batch_size=8)
    assert not want.notes
    broken = np.insert(images, [2, 6], np.nan, axis=0)
    result = analysis.layer_similarity(pretrained, broken, batch_size=10)
    np.testing.assert_allclose(result.cka, want.cka, rtol=1e-5)
    assert result.num_images == want.num_images == 8
    # Two of the last five can be read: less than half a minibatch.
    few = np.concatenate([random_images(8), broken[2:3], broken[:2]])
    result = analysis.layer_similarity(pretrained, few, batch_size=8)
    np.testing.assert_allclose(result.cka, want.cka, rtol=1e-5)
    # All images that can be read, if they are fewer than a minibatch.
    result = analysis.layer_similarity(pretrained, broken)
    assert result.num_images == result.minibatch == 8 and "all 8 are" in result.notes[0]


def test_what_cannot_be_compared_is_named():
    pretrained, images = small(image_size=32), random_images(5)
    for fields, text in (
        ({"batch_size": 3}, "needs at least 4 images"),
        ({"pool": "men"}, 'Did you mean "mean"'),
    ):
        with pytest.raises(ConfigError, match=text):
            analysis.layer_similarity(pretrained, images, **fields)
    with pytest.raises(NotApplicableError, match="needs at least 4 images that can be read in"):
        analysis.layer_similarity(pretrained, images[:3])


# --------------------------------------------------------------------------------------- probes


@pytest.fixture(scope="module")
def scikit_learn():
    """Imports it, which takes seconds."""
    return pytest.importorskip("sklearn.linear_model")


@pytest.mark.slow
def test_probes_equal_fits_on_captured_tokens(scikit_learn, monkeypatch):
    monkeypatch.setattr(probe_module, "_EXPONENTS", (-2.0, 0.0, 2.0))  # A shorter search.
    monkeypatch.setattr(probe_module, "_FINEST_STEP", 2.0)
    pretrained = small(image_size=32, num_classes=10, registers=1)
    result = analysis.layer_probes(pretrained, "digits:test", num_images=40, batch_size=32)
    images, labels = prepared_digits(pretrained, 40)
    is_train = split(labels, 0.5)
    assert result.num_train == is_train.sum() and result.num_test == (~is_train).sum()
    for label in range(10):  # Halves of each class.
        half = (labels == label).sum() / 2
        assert abs(is_train[labels == label].sum() - half) <= 0.5
    captured = pretrained(images, capture=("embed", "blocks"))[1]
    tokens = [np.asarray(captured["embed"]), np.asarray(captured["blocks"][0])]
    for x, accuracy in (
        (tokens[1][:, 2:].mean(axis=1), result.accuracy["patches"][1]),
        (tokens[1][:, 0], result.accuracy["class"][1]),
        (np.asarray(captured["pre_logits"]), result.final_accuracy[0]),
    ):
        probe = fit_probe(x[is_train], labels[is_train], num_classes=10)
        hits = probe.logits(x[~is_train]).argmax(axis=1) == labels[~is_train]
        # Rounding may turn one prediction.
        assert abs(accuracy - hits.mean()) <= 1.01 / len(hits)
    assert "the accuracies are rough" in result.notes[0]  # Two test images of a class.
    count = result.num_test
    low, high = wilson(round(result.accuracy["patches"][1] * count), count)
    np.testing.assert_allclose(result.interval["patches"][:, 1], (low, high))
    # The class token of the embedding is the same for all images.
    assert result.accuracy["class"][0] <= result.chance < result.accuracy["patches"][1]


def test_files_of_probes(tmp_path):
    accuracy = np.linspace(0.1, 0.9, 25)
    values = {"patches": accuracy, "class": accuracy**2}
    result = LayerProbes(
        checkpoint="tiny", num_images=40, accuracy=values,
        interval={name: np.stack([a - 0.05, a + 0.05]) for name, a in values.items()},
        final_accuracy=np.array([0.8, 0.7, 0.9]), num_train=20, num_test=20, chance=0.1,
    )  # fmt: skip
    assert len(result.save(tmp_path)) == 4
    assert list(result.to_dataframe().columns[:2]) == ["layer", "accuracy_patches"]


def prepared_digits(pretrained, count):
    """The prepared images and labels that a measure gets."""
    stream = open_images(pretrained, "digits:test", num_images=count)
    batches = list(stream.batches(count))
    images = np.concatenate([np.asarray(batch.images)[batch.good] for batch in batches])
    return images, np.concatenate([batch.labels[batch.good] for batch in batches])


def test_images_without_labels_are_named():
    pretrained = small(image_size=32)
    with pytest.raises(ConfigError, match="Probes need labels, and these images have none"):
        analysis.layer_probes(pretrained, random_images(4))
    with pytest.raises(ConfigError, match=r"train_fraction is 1\.0: give a number between"):
        analysis.layer_probes(pretrained, "digits:test", train_fraction=1.0)
    with pytest.raises(NotApplicableError, match=r"3 images of \d classes are too few"):
        analysis.layer_probes(pretrained, "digits:test", num_images=3)
    with pytest.raises(NotApplicableError, match="is a Resnet"):
        analysis.layer_probes(family("bv_npz/bit_v1"), "digits:test")
