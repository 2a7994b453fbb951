"""Deletion and insertion: the probability of a class as patches are removed in a map's order."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vit_jax.analysis.measures.encoder import Measured, Model, Variables
from vit_jax.optim.losses import probabilities

STEPS = 16  # At most; a grid of fewer patches has a step for each patch.
RANDOM_ORDERS = 3  # Of an image; their mean is the curve of chance.
CURVES = ("deletion", "insertion")

DEFINITION = (
    "Deletion: patches are removed, those of the largest values first, and the probability of the "
    "target class is computed again: a faithful map has a small area under the curve. Insertion: "
    "patches are put back into an image without any, in the same order: a large area. A removed "
    "patch gets the image's mean colour after the preprocessing; zeros would be a colour that "
    "depends on the normalisation; so insertion begins with that colour, where the paper begins "
    f"with a blurred image. At most {STEPS} steps; the area is over the share of patches, "
    "by the trapezoidal rule, from 0 to 1. Patches of equal values are removed in a random order, "
    f'the same for all methods. "random": the mean of {RANDOM_ORDERS} random orders of each image.'
)
SOURCE = "Petsiuk et al. 2018 (RISE), arXiv 1806.07421"


def removed_counts(num_patches: int) -> Int[np.ndarray, " steps"]:
    """Returns how many patches are removed at each step, from 0 to all."""
    steps = min(STEPS, num_patches)
    return np.rint(np.linspace(0, num_patches, steps + 1)).astype(np.int64)


def removal_ranks(
    maps: Float[np.ndarray, "methods patches"], image: int
) -> Int[np.ndarray, "orders patches"]:
    """Returns the position of each patch in the order of removal: by each map, then random ones.

    Args:
      maps: the largest value is removed first; equal values in the order of the first random one.
      image: number of the image; its random orders depend on nothing else.
    """
    rng = np.random.default_rng((0, image))
    random = np.stack([rng.permutation(maps.shape[1]) for _ in range(RANDOM_ORDERS)])
    orders = [np.lexsort((random[0], -values)) for values in maps]
    return np.stack([*(np.argsort(order) for order in orders), *random])


def image_curves(
    model: Measured,
    image: Float[np.ndarray, "height width channels"],
    maps: Float[np.ndarray, "methods rows columns"],
    *,
    target: int,
    number: int,
    loss: str,
) -> Float[np.ndarray, "2 methods_and_random steps"]:
    """Returns the deletion and insertion curves of an image's maps, and last that of chance.

    Args:
      model: that the maps are of.
      image: prepared.
      maps: of the image.
      target: class.
      number: of the image, for its random orders.
      loss: of the head.
    """
    grid = (maps.shape[1], maps.shape[2])
    ranks = removal_ranks(maps.reshape(len(maps), -1), number)
    curves = np.asarray(
        _curves(model.model, model.variables, image, ranks, target, grid=grid, loss=loss),
        np.float64,
    )
    by_method, random = curves[: len(maps)], curves[len(maps) :].mean(axis=0, keepdims=True)
    return np.concatenate([by_method, random]).swapaxes(0, 1)


@partial(jax.jit, static_argnames=("model", "grid", "loss"))
def _curves(
    model: Model,
    variables: Variables,
    image: Float[Array, "height width channels"],
    ranks: Int[Array, "orders patches"],
    target: Int[Array, ""] | int,
    *,
    grid: tuple[int, int],
    loss: str,
) -> Float[Array, "orders 2 steps"]:
    """Classifies an image with removed patches: all steps of an order at once."""
    height, width, _ = image.shape
    # The patch of each pixel; cells of a feature map that do not divide the image differ by one.
    rows, columns = (np.arange(n) * k // n for n, k in zip((height, width), grid, strict=True))
    counts = jnp.asarray(removed_counts(grid[0] * grid[1]))[:, None]
    mean = image.mean(axis=(0, 1))

    def of_order(rank):
        first = rank < counts  # [steps, patches]
        removed = jnp.concatenate([first, ~first]).reshape(-1, *grid)
        removed = removed[:, rows[:, None], columns[None], None]
        logits, _ = model.apply(variables, jnp.where(removed, mean, image))
        return probabilities(logits, loss_name=loss)[:, target].reshape(2, -1)

    return jax.lax.map(of_order, ranks)


def area(
    curves: Float[np.ndarray, "*axes steps"], shares: Float[np.ndarray, " steps"]
) -> Float[np.ndarray, "*axes"]:
    """Returns the area under each curve, by the trapezoidal rule."""
    return ((curves[..., 1:] + curves[..., :-1]) / 2 * np.diff(shares)).sum(axis=-1)
