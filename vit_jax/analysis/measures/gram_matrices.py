"""Gram matrices of the layers over minibatches of images."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.analysis.measures.encoder import Captured, Measured, Variables, measure_blocks
from vit_jax.analysis.measures.images import ImageStream
from vit_jax.analysis.measures.result import NotApplicableError
from vit_jax.analysis.measures.token_norms import num_prefix
from vit_jax.config.model import ResnetConfig
from vit_jax.models import Resnet
from vit_jax.models.resnet import Root, Unit
from vit_jax.parallel.constraints import constrain

MINIBATCH = 64
POOLS = ("all", "mean")
_SMALLEST = 4  # HSIC's unbiased estimator needs four examples.


def minibatch_grams(
    models: Sequence[Measured], streams: Sequence[ImageStream], size: int, pool: str
) -> Iterator[tuple[Float[np.ndarray, "layer n n"], ...]]:
    """Yields the Gram matrices of each model's layers, one minibatch of images after the other.

    Layer 0 is the embedding, layer i the output of block i; of a ResNet, layer 0 is the root's
    output, layer i that of unit i. n is the number of the minibatch's images that can be read. A
    minibatch with fewer than half of `size` is left out, unless it is the only one.

    Args:
      models: one or more.
      streams: the images, for each model as it is to be given them.
      size: images of a minibatch.
      pool: "all": a representation is all patch tokens of an image, or all points of a feature map,
        as one vector; "mean": their mean.

    Raises:
      NotApplicableError: the size is less than four, or all minibatches are left out.
    """
    if size < _SMALLEST:
        raise NotApplicableError(
            f"batch_size is {size}: the unbiased estimate needs at least {_SMALLEST} images."
        )
    is_empty = True
    fewest = _SMALLEST if len(streams[0]) <= size else max(_SMALLEST, (size + 1) // 2)
    for batches in zip(*(stream.batches(size) for stream in streams), strict=True):
        good = np.logical_and.reduce([batch.good for batch in batches])
        if good.sum() >= fewest:
            is_empty = False
            yield tuple(
                _grams(model, batch.images, pool)[:, good][:, :, good]
                for model, batch in zip(models, batches, strict=True)
            )
    if is_empty:
        raise NotApplicableError(
            f"Its unbiased estimate needs at least {fewest} images that can be read in a minibatch."
        )


def _grams(
    model: Measured, images: Float[Array, "n height width channels"], pool: str
) -> Float[np.ndarray, "layer n n"]:
    """Returns the Gram matrices of the embedding and of each block's output, float64."""
    if isinstance(model.config, ResnetConfig):
        grams = jax.device_get(_grams_of_units(model.model, model.variables, images, pool))
        return np.asarray(grams, np.float64)
    measure = _measure_of(num_prefix(model.config), pool)
    grams = measure_blocks(model.model, model.variables, images, measure, ("blocks",))
    inputs, outputs = (np.asarray(gram, np.float64) for gram in jax.device_get(grams))
    return np.concatenate([inputs[:1], outputs])


@functools.cache  # The program is compiled for the function that this returns.
def _measure_of(prefix: int, pool: str):
    def measure(captured: Captured) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
        inputs, outputs = captured["input"][:, prefix:], captured["blocks"][:, prefix:]
        return _gram(inputs, pool), _gram(outputs, pool)

    return measure


@functools.partial(jax.jit, static_argnames=("model", "pool"))
def _grams_of_units(
    model: Resnet, variables: Variables, images: Float[Array, "n height width channels"], pool: str
) -> Float[Array, "layer n n"]:
    """Returns the Gram matrices of a ResNet's root and units, in their order."""
    _, state = model.apply(
        variables,
        images,
        capture_intermediates=lambda module, _: isinstance(module, Root | Unit),
        mutable=["intermediates"],
    )
    outputs: Any = state["intermediates"]
    units = [
        outputs[f"stage{stage + 1}"][f"unit{unit + 1}"]
        for stage, count in enumerate(model.config.units)
        for unit in range(count)
    ]
    maps = [output["__call__"][0] for output in (outputs["root"], *units)]
    grams = [_gram(x.reshape(len(x), -1, x.shape[-1]), pool) for x in maps]
    return constrain(jnp.stack(grams))  # Each process reads all of them.


def _gram(tokens: Float[Array, "n tokens width"], pool: str) -> Float[Array, "n n"]:
    x = tokens.mean(axis=1) if pool == "mean" else tokens.reshape(len(tokens), -1)
    # HSIC does not change, and the float32 products round less.
    x = x - x.mean(axis=0)
    return jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)
