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
      formula: their dimensions in the letters of the field, such as "depth b n hidden/4" for hidden
        units that are split over four devices.
      dtype: the dtype as HLO writes it.
      dims: the dimensions of one of them on one device.
      count: the number of these arrays.
      bytes: the bytes of all of them on one device.
    """

    what: str
    formula: str
    dtype: str
    dims: tuple[int, ...]
    count: int
    bytes: float


def kept_arrays(
    hlo: Hlo,
    model_config: ModelConfig,
    *,
    images: int,
    state: Collection[tuple[int, ...]],
    tensor: int,
) -> list[Kept]:
    """Returns the activations that the loop over the blocks keeps; [] if blocks are not scanned.

    Args:
      hlo: the program of one device.
      model_config: the config of its model.
      images: the number of images of a microbatch on one device.
      state: the dimensions of all parameters on one device, which are not activations.
      tensor: the size of the mesh axis tensor, over which heads, hidden units and tokens are split.
    """
    depth = getattr(model_config, "depth", 0)
    counts: dict[tuple, int] = {}
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
        counts |= {key: max(count, counts.get(key, 0)) for key, count in alike.items()}
    return sorted(
        (
            _kept(dtype, dims, count, model_config, tensor)
            for (dtype, dims), count in counts.items()
        ),
        key=lambda kept: -kept.bytes,
    )


def _kept(
    dtype: str, dims: tuple[int, ...], count: int, model_config: ModelConfig, tensor: int
) -> Kept:
    """Returns the description of arrays [depth, images, ...]."""
    what, letters = "other", {}
    if isinstance(model_config, VitConfig):
        what, letters = _content(dims[2:], model_config, tensor)
    formula = " ".join(["depth", "b", *(letters.get(dim, str(dim)) for dim in dims[2:])])
    return Kept(what, formula, dtype, dims, count, count * Array(dtype, dims).size)


def _content(dims: tuple[int, ...], vit: VitConfig, tensor: int) -> tuple[str, dict[int, str]]:
    """Returns what an array of these dimensions of one block and image holds, and their letters."""
    letters: dict[int, str] = {}

    def on_device(size: int, letter: str) -> int:
        """Returns the size of a dimension that is split over tensor if that divides it."""
        splits = tensor > 1 and size % tensor == 0
        size = size // tensor if splits else size
        letters[size] = f"{letter}/{tensor}" if splits else letter
        return size

    # Of two dimensions with one size the later gives the letter.
    heads = on_device(vit.num_heads, "heads")
    tokens = on_device(vit.num_tokens, "n")  # Between blocks; attention and MLP have all of them.
    head, n, width = vit.width // vit.num_heads, vit.num_tokens, vit.width
    letters |= {head: "head width", n: "n"}
    all_heads, hidden = on_device(width, "width"), on_device(vit.mlp_dim, "hidden")
    letters[width] = "width"
    tail = sorted(dim for dim in dims if dim != 1)
    if tail == sorted([tokens, width]) and tokens != n:
        return "residual stream", letters | {tokens: f"n/{tensor}"}
    if tail.count(n) == 2:
        return "attention weights", letters
    if hidden in tail:
        either = "residual stream or hidden units" if hidden == width else "hidden units of the MLP"
        return either, letters
    if tail == sorted([n, width]):
        return "residual stream", letters
    if head in tail or tail == sorted([n, all_heads]):
        return "queries, keys, values, outputs", letters
    if tail in ([n], [tokens], sorted([heads, n])):
        return "statistics of softmax and norms", letters
    return "other", letters
