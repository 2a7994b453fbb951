"""Losses against the reference's, and the definition of label smoothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import xlogy

from vit_jax.errors import ConfigError
from vit_jax.optim import loss_by_name, sigmoid_xent, smooth_labels, softmax_xent

pytestmark = pytest.mark.medium


@pytest.fixture
def reference(training_golden):
    entry, _, inputs, expected = training_golden("losses")

    def check(name, got):
        np.testing.assert_allclose(
            got, expected[name], rtol=0, atol=entry["expected_arrays"][name]["tol"]
        )

    return inputs, check


def test_losses_equal_big_vision(reference):
    inputs, check = reference
    logits, labels = jnp.asarray(inputs["logits"]), jnp.asarray(inputs["labels"])
    soft, multi = jnp.asarray(inputs["soft"]), jnp.asarray(inputs["multi"])
    onehot = np.eye(10, dtype=np.float32)[inputs["labels"]]
    softmax, sigmoid = jax.jit(softmax_xent), jax.jit(sigmoid_xent)
    for one in (labels, onehot):
        check("softmax_xent_onehot", softmax(logits, one))
        check("sigmoid_xent_onehot", sigmoid(logits, one))
    check("softmax_xent_soft", softmax(logits, soft))
    entropy = -xlogy(inputs["soft"], inputs["soft"]).sum(-1)
    check("softmax_xent_soft_kl", np.asarray(softmax(logits, soft)) - entropy)
    check("sigmoid_xent_multi", sigmoid(logits, multi))
    check("sigmoid_xent_multi_mean", np.asarray(sigmoid(logits, multi)).mean()[None])


def test_relation_of_our_smoothing_to_big_visions(reference):
    """It spreads s over the V - 1 wrong classes; we spread it over all V."""
    inputs, check = reference
    theirs, v = 0.1, 10
    ours = theirs * v / (v - 1)
    logits, labels = jnp.asarray(inputs["seq_logits"]), jnp.asarray(inputs["seq_labels"])
    xent = jax.jit(functools.partial(softmax_xent, label_smoothing=ours))
    flat = xent(logits.reshape(-1, v), labels.reshape(-1))
    check("weighted_softmax_xent_ls01", np.asarray(flat).reshape(labels.shape).mean(-1))


def test_smoothing_spreads_a_fraction_over_all_classes():
    got = smooth_labels(jnp.eye(4)[None, 1], 0.2)
    np.testing.assert_allclose(got, [[0.05, 0.85, 0.05, 0.05]], rtol=1e-6)
    two = smooth_labels(jnp.asarray([[1.0, 1.0, 0.0, 0.0]]), 0.2)
    np.testing.assert_allclose(two, [[0.9, 0.9, 0.1, 0.1]], rtol=1e-6)


@pytest.mark.parametrize("loss", [softmax_xent, sigmoid_xent])
def test_losses_against_float64(loss):
    rng = np.random.default_rng(0)
    z, labels = 5 * rng.normal(size=(7, 11)), rng.integers(11, size=7)
    y = 0.9 * np.eye(11)[labels] + 0.1 / 11
    if loss is softmax_xent:
        want = (np.log(np.exp(z).sum(-1, keepdims=True)) - z) * y
    else:
        want = np.log1p(np.exp(-z)) * y + np.log1p(np.exp(z)) * (1 - y)
    got = jax.jit(functools.partial(loss, label_smoothing=0.1))(np.float32(z), labels)
    assert got.shape == (7,) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, want.sum(-1), rtol=2e-6)


@pytest.mark.parametrize("loss", [softmax_xent, sigmoid_xent])
def test_half_precision_and_huge_logits_are_safe(loss):
    z = jnp.asarray([[1e4, -1e4, 0.0]], jnp.bfloat16)
    value, grad = jax.jit(jax.value_and_grad(lambda z: loss(z, jnp.asarray([1])).sum()))(z)
    assert value.dtype == jnp.float32
    assert np.isfinite(value) and np.isfinite(np.float32(grad)).all()


def test_a_loss_is_found_by_name():
    assert loss_by_name("sigmoid_xent") is sigmoid_xent
    with pytest.raises(ConfigError, match='Did you mean "softmax_xent"'):
        loss_by_name("softmaxxent")
