"""The gradient of one update, with gradient accumulation and sharpness-aware minimisation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from vit_jax.errors import ConfigError

# (params, batch, rng) -> mean loss over the examples of the batch, and metrics: a tree of arrays
# that are means over the examples, too.
LossFn = Callable[[PyTree, PyTree, Any], tuple[Any, PyTree]]


def value_and_grad(
    loss_fn: LossFn,
    params: PyTree,
    batch: PyTree,
    rng: PRNGKeyArray,
    *,
    accum_steps: int = 1,
    sam_rho: float = 0.0,
    frozen: PyTree | None = None,
) -> tuple[tuple[Float[Array, ""], PyTree], PyTree]:
    """Computes loss, metrics and gradient of a batch.

    With `accum_steps` > 1 the batch is processed in microbatches, one after the other, and the
    results are averaged: without randomness, to those of the whole batch. Microbatch i consists of
    the examples i, i + accum_steps, i + 2 accum_steps, ... So the examples of a sharded batch do
    not move between devices if each device has a multiple of accum_steps examples.

    With `sam_rho` > 0 the gradient is taken after a step of length sam_rho along the gradient of
    the whole batch (Foret et al. 2020, arXiv 2010.01412); loss and metrics are those before that
    step. Both passes use the same keys, so the same dropout masks.

    Args:
      loss_fn: (params, batch, rng) -> (mean loss over the examples, metrics that are such means).
      params: parameters to differentiate by.
      batch: tree of arrays [B, ...].
      rng: microbatch i gets `jax.random.fold_in(rng, i)`, even if it is the only one.
      accum_steps: number of microbatches; must divide B.
      sam_rho: radius; 0: the ordinary gradient.
      frozen: tree of bool. True: the parameter is a constant, its gradient is 0, and the backward
        pass omits computations that only it needs.

    Returns:
      (loss, metrics), gradient: the gradient in the dtype of the parameters.

    Raises:
      ConfigError: accum_steps does not divide the batch.
    """

    def differentiate(point):
        return _accumulate(loss_fn, point, batch, rng, accum_steps=accum_steps, frozen=frozen)

    values, grads = differentiate(params)
    if sam_rho:
        # Avoids 0 / 0: if the gradient is exactly 0, the step is 0.
        norm = jnp.maximum(optax.tree.norm(grads), jnp.finfo(jnp.float32).tiny)
        uphill = jax.tree.map(lambda p, g: p + (sam_rho * g / norm).astype(p.dtype), params, grads)
        _, grads = differentiate(uphill)
    return values, grads


def stop_frozen_gradients(params: PyTree, frozen: PyTree) -> PyTree:
    """Makes the parameters constant for a gradient where a tree of bool is true."""
    return jax.tree.map(
        lambda p, is_frozen: jax.lax.stop_gradient(p) if is_frozen else p, params, frozen
    )


def _accumulate(loss_fn, params, batch, rng, *, accum_steps, frozen):
    def loss(params, *args):
        params = params if frozen is None else stop_frozen_gradients(params, frozen)
        return loss_fn(params, *args)

    differentiate = jax.value_and_grad(loss, has_aux=True)
    if accum_steps == 1:
        return differentiate(params, batch, jax.random.fold_in(rng, 0))

    size = jax.tree.leaves(batch)[0].shape[0]
    if accum_steps < 1 or size % accum_steps:
        raise ConfigError(
            f"optim.accum_steps={accum_steps} must divide the batch of {size} examples."
        )
    split = jax.tree.map(lambda x: x.reshape(size // accum_steps, accum_steps, *x.shape[1:]), batch)

    def microbatch(i):
        examples = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False), split
        )
        return differentiate(params, examples, jax.random.fold_in(rng, i))

    def add(total, i):
        return jax.tree.map(jnp.add, total, microbatch(i)), None

    # A scan instead of a Python loop keeps the program as small as that of one microbatch.
    shapes = jax.eval_shape(microbatch, 0)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, jnp.arange(accum_steps))
    return jax.tree.map(lambda x: x / accum_steps, total)
