"""What a compiled step keeps for the backward pass: the stacked arrays of its loop."""

import collections
import dataclasses
from collections.abc import Collection

from vit_jax.models import ModelConfig, VitConfig
from vit_jax.planning.hlo import Hlo

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
            and images in array.dims[1:3]
            and array.dims not in state
            and array.size >= SMALL
        )
        # The backward loop takes what the forward loop makes: both list the same arrays.
        found = {key: max(count, found.get(key, 0)) for key, count in alike.items()} | {
            key: count for key, count in found.items() if key not in alike
        }
    return sorted(
        (_kept(dtype, dims, count, model_config, images) for (dtype, dims), count in found.items()),
        key=lambda kept: -kept.bytes,
    )


def _kept(
    dtype: str, dims: tuple[int, ...], count: int, model_config: ModelConfig, images: int
) -> Kept:
    size = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2}.get(dtype, 1)
    letters = {dims[0]: "depth", images: "b"}
    what = "other"
    if isinstance(model_config, VitConfig):
        n, heads = model_config.num_tokens, model_config.num_heads
        names = {n: "n", model_config.width: "width", model_config.mlp_dim: "hidden"}
        names |= {heads: "heads", model_config.width // heads: "head width"}
        letters = names | letters
        tail = [dim for dim in dims[2:] if dim != 1]
        if tail.count(n) == 2:
            what = "attention weights"
        elif model_config.mlp_dim in tail:
            what = "hidden units of the MLP"
        elif tail == [n, model_config.width] or tail == [model_config.width, n]:
            what = "residual stream, inputs of norms"
        elif model_config.width // heads in tail:
            what = "queries, keys, values, attention's output"
        elif sorted(tail) in ([n], sorted([heads, n])):
            what = "maxima and sums of softmax, statistics of norms"
    formula = " ".join(letters.get(dim, str(dim)) for dim in dims)
    total = float(count * size)
    for dim in dims:
        total *= dim
    return Kept(what, formula, dtype, dims, count, total)
