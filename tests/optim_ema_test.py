"""The moving average of the parameters against its definition."""

import functools

import jax
import numpy as np
import pytest

from vit_jax.optim import ema


def histories(steps):
    rng = np.random.default_rng(0)
    return [{"w": rng.normal(size=(3, 2)).astype(np.float32)} for _ in range(steps + 1)]


@pytest.mark.medium
@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_average_equals_the_weighted_sum(decay):
    history = histories(60)
    average = ema.init(history[0])
    update = jax.jit(lambda a, p, n: ema.update(a, p, decay=decay, count=n))
    for n, params in enumerate(history[1:], 1):
        average = update(average, params, n)
        weights = np.float64(decay) ** np.arange(n - 1, -1, -1)
        want = sum(w * np.float64(p["w"]) for w, p in zip(weights, history[1:], strict=False))
        np.testing.assert_allclose(average["w"], want / weights.sum(), rtol=0, atol=2e-6)
        assert average["w"].dtype == np.float32


@pytest.mark.medium
def test_the_average_is_unbiased_from_the_first_update_on():
    history = histories(1)
    average = ema.init(history[0])
    np.testing.assert_array_equal(average["w"], history[0]["w"])
    average = jax.jit(functools.partial(ema.update, decay=0.9999))(average, history[1], count=1)
    np.testing.assert_allclose(average["w"], history[1]["w"], rtol=1e-6)


def test_the_initial_average_is_a_copy():
    """Otherwise the parameters could not be donated."""
    params = {"w": jax.numpy.ones(3)}
    assert ema.init(params)["w"] is not params["w"]
