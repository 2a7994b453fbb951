"""The gradient of one update: over microbatches, and sharpness-aware if asked."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from vit_jax.errors import ConfigError

# loss_fn(params, batch, rng) gives the mean loss over the examples of the batch, and metrics: a
# tree of arrays that are such means too.
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
    """Loss, metrics and gradient of a batch.

    With `accum_steps` > 1 the batch is worked off in microbatches, one after the other, and what
    comes out is their mean: without randomness, that of the whole batch. Microbatch i takes every
    accum_steps-th example, starting with example i, so that a batch that is split over devices
    stays where it is as long as each device holds a multiple of accum_steps examples.

    With `sam_rho` > 0 the gradient is taken where a step of length sam_rho up the gradient of the
    whole batch leads (Foret et al. 2020, arXiv 2010.01412); loss and metrics are those of the
    parameters themselves. Both passes use the same keys, so the same dropout masks.

    Args:
      loss_fn: (params, batch, rng) -> (mean loss over the examples, metrics that are such means).
      params: differentiated.
      batch: tree of arrays [B, ...].
      rng: microbatch i gets `jax.random.fold_in(rng, i)`, also if there is only one.
      accum_steps: number of microbatches; must divide B.
      sam_rho: radius; 0: the ordinary gradient.
      frozen: tree of bool. Where true, the parameter counts as a constant: its gradient is 0, and
        the backward pass leaves out what only it needs.

    Returns:
      (loss, metrics), gradient: the gradient in the dtype of the parameters.

    Raises:
      ConfigError: accum_steps does not divide the batch.
    """

    def differentiate(at):
        return _accumulate(loss_fn, at, batch, rng, accum_steps=accum_steps, frozen=frozen)

    values, grads = differentiate(params)
    if sam_rho:
        # A gradient of exactly 0 has no direction: stay.
        norm = jnp.maximum(optax.tree.norm(grads), jnp.finfo(jnp.float32).tiny)
        uphill = jax.tree.map(lambda p, g: p + (sam_rho * g / norm).astype(p.dtype), params, grads)
        _, grads = differentiate(uphill)
    return values, grads


def hold(params: PyTree, frozen: PyTree) -> PyTree:
    """The parameters, those constant for a gradient where a tree of bool is true."""
    return jax.tree.map(lambda p, held: jax.lax.stop_gradient(p) if held else p, params, frozen)


def _accumulate(loss_fn, params, batch, rng, *, accum_steps, frozen):
    def constants_held(params, *args):
        return loss_fn(params if frozen is None else hold(params, frozen), *args)

    differentiate = jax.value_and_grad(constants_held, has_aux=True)
    if accum_steps == 1:
        return differentiate(params, batch, jax.random.fold_in(rng, 0))

    size = jax.tree.leaves(batch)[0].shape[0]
    if accum_steps < 1 or size % accum_steps:
        raise ConfigError(
            f"optim.accum_steps={accum_steps} must divide the batch of {size} examples."
        )
    split = jax.tree.map(lambda x: x.reshape(size // accum_steps, accum_steps, *x.shape[1:]), batch)

    def microbatch(i):
        part = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False), split
        )
        return differentiate(params, part, jax.random.fold_in(rng, i))

    def add(total, i):
        return jax.tree.map(jnp.add, total, microbatch(i)), None

    # A scan, not a Python loop: the program stays as small as that of one microbatch.
    shapes = jax.eval_shape(microbatch, 0)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, jnp.arange(accum_steps))
    return jax.tree.map(lambda x: x / accum_steps, total)
