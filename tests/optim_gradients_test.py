"""Microbatches against the whole batch, their keys and their sharding, SAM, frozen parameters."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.conftest import slow
from vit_jax.errors import ConfigError
from vit_jax.optim import value_and_grad

pytestmark = pytest.mark.medium

CLASSES, FEATURES, HIDDEN = 4, 6, 5


def parameters(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {
        "body": rng.normal(size=(FEATURES, HIDDEN)).astype(dtype),
        "head": rng.normal(size=(HIDDEN, CLASSES)).astype(dtype),
    }


def data(size, dtype=np.float32):
    rng = np.random.default_rng(1)
    return {
        "image": rng.normal(size=(size, FEATURES)).astype(dtype),
        "label": rng.integers(CLASSES, size=size).astype(np.int32),
    }


def smooth_loss(params, batch, rng):
    """A deterministic network in the dtype of its parameters."""
    logits = jnp.tanh(batch["image"] @ params["body"]) @ params["head"]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], axis=1)
    right = jnp.argmax(logits, -1) == batch["label"]
    return -chosen.mean(), {"top1": right.mean(), "logits": logits.mean(0)}


def compiled(loss, **options):
    """Returns a compiled `value_and_grad` of (params, batch, rng) with these options."""
    return jax.jit(functools.partial(value_and_grad, loss, **options))


SINGLE, DOUBLE = (np.float32, 3e-7), (np.float64, 1e-14)


@pytest.mark.parametrize(
    ("dtype", "tol", "accum_steps", "sam_rho"),
    [
        (*SINGLE, 3, 0.1), (*DOUBLE, 24, 0.1), (*DOUBLE, 3, 0.0),
        *(slow(*kind, n, rho) for kind in (SINGLE, DOUBLE) for n, rho in ((24, 0.0),)),
        slow(*SINGLE, 3, 0.0), slow(*SINGLE, 24, 0.1), slow(*DOUBLE, 3, 0.1),
    ],
)  # fmt: skip
def test_microbatches_give_the_whole_batchs_loss_metrics_and_gradient(
    dtype, tol, accum_steps, sam_rho
):
    with jax.enable_x64(dtype == np.float64):
        args = (parameters(dtype), data(24, dtype), jax.random.key(0))
        big = compiled(smooth_loss, sam_rho=sam_rho)(*args)
        small = compiled(smooth_loss, accum_steps=accum_steps, sam_rho=sam_rho)(*args)
        for a, b in zip(jax.tree.leaves(big), jax.tree.leaves(small), strict=True):
            assert a.dtype == b.dtype and a.dtype in (dtype, np.float32)
            rounding = tol if a.dtype == dtype else 3e-7
            np.testing.assert_allclose(a, b, rtol=0, atol=rounding)


def test_the_gradient_equals_jaxs():
    params, batch, rng = parameters(), data(8), jax.random.key(0)
    (loss, metrics), grads = compiled(smooth_loss)(params, batch, rng)
    jax_own = jax.jit(jax.value_and_grad(smooth_loss, has_aux=True))
    (want_loss, want_metrics), want = jax_own(params, batch, rng)
    jax.tree.map(
        np.testing.assert_array_equal, (loss, metrics, grads), (want_loss, want_metrics, want)
    )


def test_every_microbatch_has_its_own_dropout_key():
    """Features of 1 and a linear loss: the gradient of `body` is the mean dropout mask."""

    def loss(params, batch, rng):
        mask = jax.random.bernoulli(rng, 0.5, (64,)).astype(jnp.float32)
        return (params["w"] * mask * batch["image"].mean()).sum(), {}

    params, batch, rng = {"w": np.ones(64, np.float32)}, {"image": np.ones(8)}, jax.random.key(3)
    accumulated = compiled(loss, accum_steps=4)
    _, grads = accumulated(params, batch, rng)

    @jax.jit
    def mask(i):
        return jax.random.bernoulli(jax.random.fold_in(rng, i), 0.5, (64,))

    masks = [np.asarray(mask(i)) for i in range(4)]
    np.testing.assert_allclose(grads["w"], np.mean(masks, axis=0), rtol=1e-6)
    assert len({mask.tobytes() for mask in masks}) == 4
    _, again = accumulated(params, batch, rng)
    np.testing.assert_array_equal(grads["w"], again["w"])
    _, alone = compiled(loss)(params, batch, rng)
    np.testing.assert_array_equal(alone["w"], masks[0])


def test_microbatches_of_a_sharded_batch_stay_on_their_devices():
    """Devices exchange no examples: no collective is larger than the gradient."""
    mesh = Mesh(np.asarray(jax.devices()).reshape(8), ("data",))
    rows, copied = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("data",), ()))
    batch, params = jax.device_put(data(64), rows), jax.device_put(parameters(), copied)
    step = jax.jit(
        lambda params, batch, rng: value_and_grad(smooth_loss, params, batch, rng, accum_steps=4),
        in_shardings=(copied, rows, copied),
        out_shardings=copied,
    )
    rng = jax.device_put(jax.random.key(0), copied)
    program = step.lower(params, batch, rng).compile().as_text()
    crossing = re.findall(r"= .*? (all-gather|all-to-all|collective-permute)\(", program)
    assert not crossing and " all-reduce(" in program
    got = step(params, batch, rng)
    want = compiled(smooth_loss)(parameters(), data(64), jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-7), got, want)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="accum_steps=5 must divide the batch of 24"):
        value_and_grad(smooth_loss, parameters(), data(24), jax.random.key(0), accum_steps=5)


def test_sam_equals_its_definition_in_float64():
    """Softmax regression: the analytic gradient at w + rho g / |g|."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(10, FEATURES)), rng.normal(size=(FEATURES, CLASSES))
    labels = rng.integers(CLASSES, size=10)

    def by_hand(w):
        p = np.exp(x @ w)
        p /= p.sum(1, keepdims=True)
        return x.T @ (p - np.eye(CLASSES)[labels]) / len(x)

    g = by_hand(w)
    want = by_hand(w + 0.3 * g / np.linalg.norm(g))
    assert np.abs(want - g).max() > 1e-3

    def loss(params, batch, rng):
        logits = batch["image"] @ params["w"]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], axis=1)
        return -chosen.mean(), {}

    with jax.enable_x64(True):
        batch = {"image": jnp.asarray(x), "label": jnp.asarray(labels)}
        (value, _), grads = compiled(loss, accum_steps=5, sam_rho=0.3)(
            {"w": jnp.asarray(w)}, batch, jax.random.key(0)
        )
        np.testing.assert_allclose(grads["w"], want, atol=1e-13)
        p = np.exp(x @ w)
        chosen = (p / p.sum(1, keepdims=True))[np.arange(10), labels]
        np.testing.assert_allclose(value, -np.log(chosen).mean(), rtol=1e-6)


def test_sam_makes_no_step_where_the_gradient_is_zero():
    def flat_loss(params, batch, rng):
        return (0.0 * params["w"]).sum(), {}

    _, grads = compiled(flat_loss, sam_rho=0.1)(
        {"w": np.ones(3, np.float32)}, {"image": np.ones(2, np.float32)}, jax.random.key(0)
    )
    np.testing.assert_array_equal(grads["w"], 0.0)


def test_frozen_parameters_have_no_gradient_and_no_part_in_sam():
    params, batch, rng = parameters(), data(8), jax.random.key(0)
    grad_fn = compiled(smooth_loss, sam_rho=0.2, frozen={"body": True, "head": False})
    _, grads = grad_fn(params, batch, rng)
    assert not np.any(grads["body"])

    def head_only(head, batch, rng):
        return smooth_loss({"body": params["body"], "head": head["head"]}, batch, rng)

    _, want = compiled(head_only, sam_rho=0.2)({"head": params["head"]}, batch, rng)
    np.testing.assert_allclose(grads["head"], want["head"], rtol=1e-6)
