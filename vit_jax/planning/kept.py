"""What a compiled step keeps for the backward pass: the stacked arrays of its loop."""

import collections
import dataclasses
from collections.abc import Collection

from vit_jax.models import ModelConfig, VitConfig
from vit_jax.planning.hlo import Array, Hlo

SMALL = 2**20  # Bytes of a stacked array that is not listed.


@dataclasses.dataclass(frozen=True)
class Kept:
    """Arrays with an entry for each block that are alike.

    Attributes:
      what: their content, as far as their dimensions tell.
      formula: their dimensions in the letters of the field, such as "depth b n width".
      dtype: as HLO writes it.
      dims: of one of them, on one device.
      count: number of them.
      bytes: of all of them.
    """

    what: str
    formula: str
    dtype: str
    dims: tuple[int, ...]
    count: int
    bytes: float


def kept_arrays(
    hlo: Hlo, model_config: ModelConfig, *, images: int, state: Collection[tuple[int, ...]]
) -> list[Kept]:
    """Returns the activations that the loop over the blocks keeps; [] if blocks are not scanned.

    Args:
      hlo: the program of one device.
      model_config: of its model.
      images: of a microbatch on one device.
      state: dimensions of parameters on one device, which the loop has beside them.
    """
    depth = getattr(model_config, "depth", 0)
    found: dict[tuple, int] = {}
    for loop, trips in hlo.loops():
        if trips != depth:
            continue
        alike = collections.Counter(
            (array.dtype, array.dims)
            for array in loop.results
            if array.dims[:1] == (depth,)
            and images in array.dims[1:2]
            and array.dims not in state
            and array.size >= SMALL
        )
        # The backward loop takes what the forward loop makes: both list the same arrays.
        found = {key: max(count, found.get(key, 0)) for key, count in alike.items()} | {
            key: count for key, count in found.items() if key not in alike
        }
    return sorted(
        (_kept(dtype, dims, count, model_config) for (dtype, dims), count in found.items()),
        key=lambda kept: -kept.bytes,
    )


def _kept(dtype: str, dims: tuple[int, ...], count: int, model_config: ModelConfig) -> Kept:
    """Returns the description of arrays [depth, images, ...]."""
    what, letters = "other", {}
    if isinstance(model_config, VitConfig):
        n, heads = model_config.num_tokens, model_config.num_heads
        width, hidden, head = model_config.width, model_config.mlp_dim, model_config.width // heads
        letters = {heads: "heads", head: "head width", n: "n", hidden: "hidden", width: "width"}
        tail = sorted(dim for dim in dims[2:] if dim != 1)
        if tail.count(n) == 2:
            what = "attention weights"
        elif hidden in tail:
            what = "hidden units of the MLP"
        elif tail == sorted([n, width]):
            what = "residual stream"
        elif head in tail:
            what = "queries, keys, values, outputs"
        elif tail in ([n], sorted([heads, n])):
            what = "statistics of softmax and norms"
    formula = " ".join(["depth", "b", *(letters.get(dim, str(dim)) for dim in dims[2:])])
    return Kept(what, formula, dtype, dims, count, count * Array(dtype, dims).size)
