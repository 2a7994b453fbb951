"""Mixup and CutMix against NumPy and against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import stats

from vit_jax.data.mixing import mix

pytestmark = pytest.mark.medium

BATCH, HEIGHT, WIDTH, CLASSES = 8, 12, 10, 8


@pytest.fixture(scope="module")
def batch():
    """Returns images of distinct values, and one-hot labels."""
    images = np.random.default_rng(0).normal(size=(BATCH, HEIGHT, WIDTH, 3)).astype(np.float32)
    return images, np.eye(CLASSES, dtype=np.float32)


jit_mix = jax.jit(mix, static_argnames=("mixup_alpha", "cutmix_alpha"))


def run(seed, batch, weights=None, **alphas):
    weights = np.ones(BATCH, np.float32) if weights is None else weights
    return [np.asarray(array) for array in jit_mix(jax.random.key(seed), *batch, weights, **alphas)]


def is_cutmix(images, batch):
    return bool(np.all(np.isin(images, batch[0])))


def test_off_changes_nothing(batch):
    images, labels = run(0, batch, mixup_alpha=0.0, cutmix_alpha=0.0)
    np.testing.assert_array_equal(images, batch[0])
    np.testing.assert_array_equal(labels, batch[1])


@pytest.mark.parametrize("seed", range(4))
def test_mixup_equals_its_formula(batch, seed):
    images, labels = run(seed, batch, mixup_alpha=0.5, cutmix_alpha=0.0)
    share = float(labels[0, 0])  # The image's own label.
    assert 0.5 <= share <= 1
    for original, mixed in zip(batch, (images, labels), strict=True):
        original = original.astype(np.float64)
        expected = [share * original[i] + (1 - share) * original[i - 1] for i in range(BATCH)]
        np.testing.assert_allclose(mixed, expected, atol=1e-6)


def own_shares(images, labels, **alphas):
    """Returns a compiled function from keys to the weight of the first image's own label."""
    batch = [jnp.asarray(array) for array in (images, labels, np.ones(2, np.float32))]
    return jax.jit(jax.vmap(lambda key: mix(key, *batch, **alphas)[1][0, 0]))


def test_mixup_ratio_has_the_folded_beta_distribution(batch):
    keys = jax.random.split(jax.random.key(0), 2000)
    images, labels = (array[:2] for array in batch)
    shares = own_shares(images, labels, mixup_alpha=0.4, cutmix_alpha=0.0)(keys)
    beta = stats.beta(0.4, 0.4)
    assert stats.kstest(np.asarray(shares), lambda x: beta.cdf(x) - beta.cdf(1 - x)).pvalue > 1e-3


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_pastes_a_box_and_weighs_labels_by_it(batch, seed):
    images, labels = run(seed, batch, mixup_alpha=0.0, cutmix_alpha=1.0)
    own = (images == batch[0]).all(-1)
    pasted = (images == np.roll(batch[0], 1, axis=0)).all(-1)
    assert np.all(own ^ pasted)  # Every pixel is from one of the two.
    assert np.all(pasted == pasted[0])  # One box for the batch.
    rows, columns = pasted[0].any(1), pasted[0].any(0)
    np.testing.assert_array_equal(pasted[0], rows[:, None] & columns[None, :])
    assert np.abs(np.diff(rows.astype(int))).sum() <= 2  # Without gaps.
    assert np.abs(np.diff(columns.astype(int))).sum() <= 2
    share = 1 - pasted[0].mean()
    expected = share * np.eye(BATCH) + (1 - share) * np.roll(np.eye(BATCH), 1, axis=0)
    np.testing.assert_allclose(labels, expected, atol=1e-6)


def test_cutmix_boxes_vary_and_have_the_mean_area_of_their_definition(batch):
    keys = jax.random.split(jax.random.key(1), 4000)
    size, images, labels = 32, np.zeros((2, 32, 32, 1), np.float32), batch[1][:2]
    shares = own_shares(images, labels, mixup_alpha=0.0, cutmix_alpha=1.0)(keys)
    rng = np.random.default_rng(0)
    half = (np.sqrt(rng.uniform(size=(100_000, 1))) * size).astype(int) // 2
    centre = rng.integers(0, size, (100_000, 2))
    sides = np.minimum(centre + half, size) - np.maximum(centre - half, 0)
    pasted = sides.prod(1) / size**2
    assert np.mean(1 - np.asarray(shares)) == pytest.approx(pasted.mean(), abs=0.01)
    assert np.std(np.asarray(shares)) == pytest.approx(pasted.std(), abs=0.01)


def test_mixup_and_cutmix_are_equally_frequent(batch):
    keys = jax.random.split(jax.random.key(2), 400)
    mix_one = jax.vmap(
        lambda key, *batch: mix(key, *batch, jnp.ones(BATCH), mixup_alpha=0.8, cutmix_alpha=1.0)[0],
        in_axes=(0, None, None),
    )
    images = jax.jit(mix_one)(keys, *batch)
    num_cutmix = sum(is_cutmix(mixed, batch) for mixed in np.asarray(images))
    assert 150 < num_cutmix < 250


@pytest.mark.parametrize("alphas", [(0.5, 0.0), (0.0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("bad", [[0], [7], [2, 3, 6]])
def test_a_bad_row_is_mixed_into_no_other(batch, alphas, bad):
    """The image after it is not mixed; all others are mixed as without it."""
    alphas = dict(zip(("mixup_alpha", "cutmix_alpha"), alphas, strict=True))
    weights = np.ones(BATCH, np.float32)
    weights[bad] = 0
    images, labels = batch[0].copy(), batch[1].copy()
    images[bad] = labels[bad] = 0
    got, usual = run(5, (images, labels), weights, **alphas), run(5, batch, **alphas)
    for own, mixed, otherwise in zip((images, labels), got, usual, strict=True):
        for row in set(range(BATCH)) - set(bad):
            expected = own if row - 1 in bad or (row == 0 and BATCH - 1 in bad) else otherwise
            np.testing.assert_array_equal(mixed[row], expected[row])


def test_result_does_not_depend_on_the_mesh(batch):
    alphas = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    kinds = set()
    for seed in range(6):
        whole = run(seed, batch, **alphas)
        kinds.add(is_cutmix(whole[0], batch))
        for one, eight in zip(whole, run(seed, split, **alphas), strict=True):
            np.testing.assert_array_equal(one, eight)
    assert kinds == {True, False}


def test_dtypes_are_kept(batch):
    images = jax.ShapeDtypeStruct(batch[0].shape, jnp.bfloat16)
    mixed = jax.eval_shape(
        lambda images, labels: mix(
            jax.random.key(0), images, labels, jnp.ones(BATCH), mixup_alpha=0.2, cutmix_alpha=1.0
        ),
        images,
        batch[1],
    )
    assert [array.dtype for array in mixed] == [jnp.bfloat16, np.float32]
