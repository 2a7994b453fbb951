"""Random images and parameters for small models; compiles each model's program once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models import ModelConfig, build, param_shapes


def images(config: ModelConfig, batch=2, seed=0) -> jax.Array:
    """Returns random images of the config's size: float32 [batch, height, width, channels]."""
    shape = (batch, *config.image_size, config.channels)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_params(config: ModelConfig, seed=0):
    """Returns random nonzero parameters: every branch contributes, unlike at initialisation."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: np.asarray(rng.normal(size=s.shape) * 0.2, s.dtype), param_shapes(config)
    )


@functools.cache
def _compiled(config, train, capture):
    def forward(params, x, rng):
        rngs = None if rng is None else {"dropout": rng}
        return build(config).apply({"params": params}, x, train=train, capture=capture, rngs=rngs)

    return jax.jit(forward)


def apply(config: ModelConfig, params, x, *, train=False, capture=(), rng=None):
    """Returns (logits, intermediates); compiles one program per config and arguments.

    Without jit, every operation would be compiled separately, for each shape.
    """
    return _compiled(config, train, tuple(capture))(params, x, rng)


def fresh_head(config: ModelConfig):
    """Returns the head's initial parameters; XLA does not compute the others."""

    def head(key):
        x = jnp.zeros((1, *config.image_size, config.channels))
        return build(config).init(key, x)["params"]["head"]

    return jax.jit(head)(jax.random.key(0))


@functools.cache
def loss_and_gradient(config: ModelConfig):
    """Returns a compiled (params, images) -> (sum of squared logits, its gradient)."""
    model = build(config)

    def loss(params, x):
        return (model.apply({"params": params}, x)[0] ** 2).sum()

    return jax.jit(jax.value_and_grad(loss))


def unscan(params, depth):
    """Converts parameters of a scanned encoder to those of an unrolled one."""
    encoder = dict(params["encoder"])
    blocks = encoder.pop("blocks")
    for i in range(depth):
        encoder[f"block_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], blocks)
    return {**params, "encoder": encoder}
