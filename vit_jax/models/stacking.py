"""Parameters of the blocks: stacked in one tree, as a scan takes them, or a tree for each block."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def stack_blocks(params: PyTree, depth: int) -> PyTree:
    """Returns the parameters with the blocks stacked along a leading axis of depth."""
    encoder = params["encoder"]
    names = [f"block_{i}" for i in range(depth)]
    blocks = jax.tree.map(lambda *layers: jnp.stack(layers), *(encoder[name] for name in names))
    others = {key: value for key, value in encoder.items() if key not in names}
    return {**params, "encoder": others | {"blocks": blocks}}


def unstack_blocks(params: PyTree, depth: int) -> PyTree:
    """Returns the parameters with a tree for each block, "block_0" to "block_{depth - 1}".

    A leaf that is a single value, as in a mask of parameters, is that of every block.
    """
    encoder = params["encoder"]

    def block(i):
        return jax.tree.map(lambda leaf: leaf[i] if np.ndim(leaf) else leaf, encoder["blocks"])

    others = {key: value for key, value in encoder.items() if key != "blocks"}
    return {**params, "encoder": others | {f"block_{i}": block(i) for i in range(depth)}}
