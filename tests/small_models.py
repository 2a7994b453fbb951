"""Random images and parameters for small models, and each model's program, compiled once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models import ModelConfig, build, param_shapes


def images(cfg: ModelConfig, batch=2, seed=0) -> jax.Array:
    """Random images of the config's size: float32 [batch, height, width, channels]."""
    shape = (batch, *cfg.image_size, cfg.channels)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_params(cfg: ModelConfig, seed=0):
    """Random parameters without the zeros of the initialisation, so that every branch counts."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: np.asarray(rng.normal(size=s.shape) * 0.2, s.dtype), param_shapes(cfg)
    )


@functools.cache
def _compiled(cfg, train, capture):
    def forward(params, x, rng):
        rngs = None if rng is None else {"dropout": rng}
        return build(cfg).apply({"params": params}, x, train=train, capture=capture, rngs=rngs)

    return jax.jit(forward)


def apply(cfg: ModelConfig, params, x, *, train=False, capture=(), rng=None):
    """(logits, intermediates) of a model; one compiled program for a config and its arguments.

    Without compilation every operation would be compiled by itself, for each shape.
    """
    return _compiled(cfg, train, tuple(capture))(params, x, rng)


def fresh_head(cfg: ModelConfig):
    """The head's parameters as a run starts with them; of the others nothing is computed."""

    def head(key):
        x = jnp.zeros((1, *cfg.image_size, cfg.channels))
        return build(cfg).init(key, x)["params"]["head"]

    return jax.jit(head)(jax.random.key(0))


@functools.cache
def loss_and_gradient(cfg: ModelConfig):
    """Compiled (params, images) -> (sum of squared logits, its gradient)."""
    model = build(cfg)

    def loss(params, x):
        return (model.apply({"params": params}, x)[0] ** 2).sum()

    return jax.jit(jax.value_and_grad(loss))


def unscan(params, depth):
    """Parameters of a scanned encoder as those of an unrolled one."""
    encoder = dict(params["encoder"])
    blocks = encoder.pop("blocks")
    for i in range(depth):
        encoder[f"block_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], blocks)
    return {**params, "encoder": encoder}
