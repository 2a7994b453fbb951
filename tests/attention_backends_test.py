"""The attention back ends compute the same: outputs and gradients, in both dtypes.

cuDNN's kernel needs an NVIDIA GPU. A CPU can test that our own attention equals the function of
JAX of which cuDNN is one implementation, and that the model calls that function correctly, with
XLA's implementation in place of cuDNN's.
"""

import functools
import types

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_models import images, random_params
from vit_jax.config import base_config
from vit_jax.models import Vit, attention, read_section
from vit_jax.models.attention import dot_product_attention

pytestmark = pytest.mark.medium

SHAPE = (2, 17, 4, 8)  # batch, tokens, heads, head width


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(function, inputs, gradient_of_output):
    value, vjp = jax.vjp(function, *inputs)
    return value, vjp(gradient_of_output)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_our_attention_equals_jaxs(dtype, tolerance):
    rng = np.random.default_rng(0)
    q, k, v, out = (jnp.asarray(rng.normal(size=SHAPE), dtype) for _ in range(4))

    def ours(q, k, v):
        return dot_product_attention(q, k, v)[0]

    theirs = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    (got, got_gradients), (want, want_gradients) = (
        value_and_gradients(function, (q, k, v), out) for function in (ours, theirs)
    )
    assert got.dtype == want.dtype == dtype
    for a, b in zip((got, *got_gradients), (want, *want_gradients), strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), rtol=0)


def test_either_back_end_gives_the_same_model_outputs(monkeypatch):
    calls = []

    def stand_in(*args, implementation, **kwargs):
        calls.append(implementation)
        return original(*args, implementation="xla", **kwargs)

    original = jax.nn.dot_product_attention
    monkeypatch.setattr(attention.jax.nn, "dot_product_attention", stand_in)
    c = base_config()
    c.model.update({"variant": "mu/4", "image_size": (16,), "depth": 1, "num_heads": 4})
    config = read_section(c.model, num_classes=10)
    x, params = images(config, batch=4), random_params(config)

    def loss_and_gradient(backend):
        # In float32, which cuDNN does not support: rounding is then smaller than any error.
        monkeypatch.setattr(attention, "resolve_backend", lambda *args, **kwargs: backend)
        calls.clear()

        def loss(params):
            logits, _ = Vit(config).apply({"params": params}, x, train=True)
            return jax.nn.logsumexp(logits, axis=-1).mean()

        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
        return value, jax.flatten_util.ravel_pytree(gradient)[0], set(calls)

    xla, xla_gradient, xla_calls = loss_and_gradient("xla")
    cudnn, cudnn_gradient, cudnn_calls = loss_and_gradient("cudnn")
    assert not xla_calls and cudnn_calls == {"cudnn"}
    np.testing.assert_allclose(cudnn, xla, rtol=1e-6)
    assert np.linalg.norm(cudnn_gradient - xla_gradient) < 2e-6 * np.linalg.norm(xla_gradient)


@pytest.mark.parametrize(
    ("capability", "want"), [("9.0", "cuda"), ("8.0", "cuda"), ("7.5", "gpu"), ("gfx942", "gpu")]
)
def test_the_kinds_of_gpu(monkeypatch, capability, want):
    device = types.SimpleNamespace(compute_capability=capability, platform="gpu")
    monkeypatch.setattr(attention.jax, "devices", lambda: [device])
    assert attention.current_platform() == want
