"""Transformations that depend on a parameter's block: scanned blocks, layer-wise decay.

A scanned encoder stacks the parameters of all its blocks along a leading axis. Everything here
gives the same update for scanned and unrolled blocks.
"""

import re
from collections.abc import Callable

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from vit_jax.errors import ConfigError
from vit_jax.optim import paths

# Parameters of layers after the encoder's blocks. All others are in a block or before the blocks.
_AFTER_BLOCKS = re.compile(r"(encoder/norm|norm|map_head|pre_logits|head|head_dist)/.*")
_ONE_BLOCK = re.compile(r"encoder/block_(\d+)/.*")


def is_scanned(path: str) -> bool:
    """Whether the parameter's first axis is that of the scanned encoder blocks."""
    return path.startswith("encoder/blocks/")


def per_layer(
    tx: optax.GradientTransformation, params: PyTree, *, where: Callable[[str], bool]
) -> optax.GradientTransformation:
    """Applies a transformation to some parameters, separately to each block of scanned ones.

    For transformations that depend on a whole parameter, such as on its norm.

    Args:
      tx: transforms every parameter independently of the others.
      params: parameters, or their shapes.
      where: from a path to whether the parameter is transformed.
    """

    def label(path, _):
        return "other" if not where(path) else "scanned" if is_scanned(path) else "single"

    labels = paths.map_with_path(label, params)
    over_blocks = optax.GradientTransformation(jax.vmap(tx.init), jax.vmap(tx.update))
    transforms = {"scanned": over_blocks, "single": tx, "other": optax.identity()}
    present = set(jax.tree.leaves(labels))  # vmap over nothing is an error.
    return optax.partition({name: transforms[name] for name in sorted(present)}, labels)


def layer_decay_multipliers(params: PyTree, *, decay: float) -> PyTree:
    """Returns the learning rate multipliers of layer-wise decay.

    With `depth` blocks, the layers are numbered as in BEiT (arXiv 2106.08254) and MAE (2111.06377):
    layer 0 is everything before the blocks (embedding, class token, position embedding, a
    convolutional stem), layer i + 1 is block i, and layer depth + 1 is everything after the blocks
    (final norm, pooling, head). The multiplier of layer n is decay**(depth + 1 - n): 1 for the
    head, decay for the last block, decay**(depth + 1) for the embedding.

    Args:
      params: parameters, or their shapes; blocks scanned or not.
      decay: factor per layer, in (0, 1].

    Returns:
      A tree of float, and of float64[depth, 1, ...] for scanned parameters.

    Raises:
      ConfigError: the decay is out of range, or there are no encoder blocks.
    """
    if not 0 < decay <= 1:
        raise ConfigError(f"optim.layer_decay={decay} must be in (0, 1]; 1 turns it off.")
    if decay == 1:
        return jax.tree.map(lambda _: 1.0, params)

    depth = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = paths.path_name(path)
        if is_scanned(name):
            depth = leaf.shape[0]
        elif block := _ONE_BLOCK.fullmatch(name):
            depth = max(depth, int(block[1]) + 1)
    if not depth:
        raise ConfigError(
            f"optim.layer_decay={decay} needs parameters under encoder/blocks or encoder/block_0, "
            "and this model has none: set it to 1."
        )

    def multiplier(name, leaf):
        if is_scanned(name):
            ones = (1,) * (len(leaf.shape) - 1)
            return (decay ** np.arange(depth, 0, -1.0)).reshape(depth, *ones)
        if block := _ONE_BLOCK.fullmatch(name):
            return decay ** (depth - int(block[1]))
        return 1.0 if _AFTER_BLOCKS.fullmatch(name) else decay ** (depth + 1)

    return paths.map_with_path(multiplier, params)
