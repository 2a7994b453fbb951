"""The operations with backward passes of their own, against float64 and against the plain forms."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_models import images, random_params
from vit_jax.models import Vit, VitConfig, operations
from vit_jax.models.attention import dot_product_attention

pytestmark = pytest.mark.medium

WIDTH = 24


def plain_layer_norm(x, scale, bias):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.square(wide - mean).mean(-1, keepdims=True)
    y = (wide - mean) / jnp.sqrt(variance + 1e-6) * scale + bias
    return y.astype(x.dtype)


def plain_attention(query, key, value):
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), value)


def normal(*shape, scale=1.0):
    return np.random.default_rng(shape).normal(size=shape, scale=scale)


# name: (ours, the plain form, inputs).
OPERATIONS = {
    "gelu": (
        lambda x: operations.gelu(x, approximate=False),
        lambda x: x * 0.5 * (1 + jax.scipy.special.erf(x / np.sqrt(2))),
        (np.linspace(-8, 8, 2001),),
    ),
    "gelu tanh": (
        lambda x: operations.gelu(x, approximate=True),
        lambda x: nn.gelu(x, approximate=True),
        (np.linspace(-8, 8, 2001),),
    ),
    "layer norm": (
        lambda x, scale, bias: operations.layer_norm(
            x, scale, bias, epsilon=1e-6, dtype=str(x.dtype)
        ),
        plain_layer_norm,
        (normal(2, 5, WIDTH) + 3, normal(WIDTH), normal(WIDTH, scale=0.1)),
    ),
    "attention": (
        operations.attend,
        plain_attention,
        (normal(2, 9, 3, 8, scale=3), normal(2, 9, 3, 8, scale=2), normal(2, 9, 3, 8)),
    ),
    "attention of one query": (
        operations.attend,
        plain_attention,
        (normal(2, 1, 3, 8), normal(2, 9, 3, 8), normal(2, 9, 3, 8)),
    ),
    "dense": (
        lambda x, w: operations.project(x, w, axes=1, sum_dtype="bfloat16"),
        lambda x, w: jnp.einsum("bnc,cd->bnd", x, w),
        (normal(2, 9, WIDTH), normal(WIDTH, 16)),
    ),
    "dense of heads": (
        lambda x, w: operations.project(x, w, axes=2, sum_dtype="bfloat16"),
        lambda x, w: jnp.einsum("bnhd,hdw->bnw", x, w),
        (normal(2, 9, 3, 8), normal(3, 8, 32)),
    ),
}


def output_and_gradients(function, inputs):
    """Returns the output, and the gradients of its product with fixed random numbers."""
    output, vjp = jax.vjp(function, *inputs)
    cotangent = normal(*output.shape)
    return [np.asarray(x, np.float64) for x in (output, *vjp(jnp.asarray(cotangent, output.dtype)))]


@pytest.mark.parametrize("name", OPERATIONS)
def test_errors_against_float64_are_those_of_the_plain_form(name):
    ours, plain, inputs = OPERATIONS[name]
    with jax.enable_x64(True):
        exact = output_and_gradients(plain, [jnp.asarray(x, jnp.float64) for x in inputs])
    inputs = [jnp.asarray(x, jnp.float32) for x in inputs]
    for got, other, want in zip(
        output_and_gradients(ours, inputs),
        output_and_gradients(plain, inputs),
        exact,
        strict=True,
    ):
        largest = np.abs(want).max()
        # Float32 has an epsilon of 1.2e-7; the slope of the GELU is exact to 7.5e-8.
        assert np.abs(got - want).max() <= 2 * np.abs(other - want).max() + 2e-7 * largest


@pytest.mark.parametrize("name", [name for name in OPERATIONS if "gelu" in name])
def test_gelu_in_the_tails(name):
    """Finite, with the slope's limits 0 and 1, and the dtype of the input."""
    ours, _, _ = OPERATIONS[name]
    x = jnp.asarray([-1e4, -60.0, 0.0, 60.0, 1e4])
    output, gradient = output_and_gradients(ours, [x])
    np.testing.assert_allclose(output, np.maximum(np.asarray(x), 0), atol=1e-6)
    np.testing.assert_allclose(gradient / normal(5), [0, 0, 0.5, 1, 1], atol=1e-6)
    assert ours(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_attention_with_weights_returned_equals_that_without():
    query, key, value = (jnp.asarray(x, jnp.float32) for x in OPERATIONS["attention"][2])
    got, (want, _) = operations.attend(query, key, value), dot_product_attention(query, key, value)
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-7 * np.abs(want).max())


TINY = VitConfig(
    image_size=(32, 32), patch_size=(8, 8), num_classes=5, width=32, depth=2, mlp_dim=128,
    num_heads=4,
)  # fmt: skip


def memory_of(program):
    analysis = program.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


@functools.cache
def gradient_program(**fields):
    """Returns a model's compiled gradient, and its value."""
    config = dataclasses.replace(TINY, **fields)
    params, x = random_params(config), images(config)

    def loss(params):
        return jnp.sum(Vit(config).apply({"params": params}, x)[0] ** 2)

    program = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
    return program, program(params)


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_named_rematerialisation_changes_memory_alone(mlp):
    (kept, value), (recomputed, same) = (
        gradient_program(mlp=mlp, remat=remat) for remat in ("none", "named")
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max()),
        value,
        same,
    )
    memory = [memory_of(program) for program in (kept, recomputed)]
    assert memory[1] < 0.8 * memory[0]
