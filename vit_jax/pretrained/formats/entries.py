"""Tables that map tensors of a published file to parameters of vit_jax, read in both directions.

A format is a tuple of entries. An entry names a parameter of vit_jax (`ours`) and a tensor of the
file (`theirs`), the layout of the values there, and the part of the tensor if it holds several
parameters. Both names may contain {i}, the index of a block. Entries only permute and reshape: a
parameter that is loaded and exported again has the same bits.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped


class Layout(NamedTuple):
    """The layout of a parameter's values in a tensor of the file.

    Attributes:
      axes: permutation of their axes into the order of ours; None: the same order.
      shape: function from our shape to theirs.
    """

    axes: tuple[int, ...] | None
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]


LAYOUTS = {
    "same": Layout(None, lambda shape: shape),
    # torch.nn.Linear's weight is [out, in]; it merges the axes of heads and head size.
    "dense": Layout((1, 0), lambda s: (s[1], s[0])),
    "heads_in": Layout((1, 0), lambda s: (s[1] * s[2], s[0])),  # Ours [in, heads, d].
    "heads_out": Layout((1, 0), lambda s: (s[2], s[0] * s[1])),  # Ours [heads, d, out].
    "flat": Layout(None, lambda s: (math.prod(s),)),  # Ours [heads, d].
    # torch.nn.Conv2d's weight is [out, in, height, width].
    "conv": Layout((2, 3, 1, 0), lambda s: (s[3], s[2], s[0], s[1])),
    "dense_1x1": Layout((2, 3, 1, 0), lambda s: (s[1], s[0], 1, 1)),  # The head is a convolution.
    "table": Layout(None, lambda s: s[1:]),  # Ours has a leading axis of 1.
}


class Entry(NamedTuple):
    """A parameter of vit_jax, and the tensor of the file that holds it.

    Attributes:
      ours: the parameter's path with unstacked blocks: "encoder/block_{i}/mlp/fc1/kernel".
      theirs: the tensor's name.
      layout: a key of LAYOUTS.
      part: (k, n): the parameter is the k-th of n equal parts of the tensor's rows.
    """

    ours: str
    theirs: str
    layout: str = "same"
    part: tuple[int, int] = (0, 1)


class TensorLocation(NamedTuple):
    """The tensor that holds one parameter; see `Entry`."""

    theirs: str
    layout: str
    part: tuple[int, int]


def dense(ours: str, theirs: str, layout: str = "dense", part: tuple[int, int] = (0, 1)):
    """Returns the entries of a dense layer in PyTorch's names: kernel and bias."""
    bias = "flat" if layout == "heads_in" else "same"
    return (
        Entry(f"{ours}/kernel", f"{theirs}.weight", layout, part),
        Entry(f"{ours}/bias", f"{theirs}.bias", bias, part),
    )


def norm(ours: str, theirs: str):
    """Returns the entries of a LayerNorm in PyTorch's names."""
    return Entry(f"{ours}/scale", f"{theirs}.weight"), Entry(f"{ours}/bias", f"{theirs}.bias")


def embedding(theirs: str):
    """Returns the entries of the patch embedding in PyTorch's names."""
    return Entry("embedding/kernel", f"{theirs}.weight", "conv"), Entry(
        "embedding/bias", f"{theirs}.bias"
    )


def fused(ours: str, theirs: str, *, names: Iterable[str] = ("query", "key", "value")):
    """Returns the entries of projections that PyTorch concatenates in one tensor."""
    names = tuple(names)
    return tuple(
        entry
        for k, name in enumerate(names)
        for entry in dense(f"{ours}/{name}", theirs, "heads_in", (k, len(names)))
    )


def find_locations(
    entries: Iterable[Entry], ours: Iterable[str], theirs: Iterable[str]
) -> tuple[dict[str, TensorLocation], list[str]]:
    """Finds the tensor that holds each parameter.

    Args:
      entries: of the format; of several for one parameter, the first whose tensor exists is used.
      ours: paths of the model's parameters, with unstacked blocks.
      theirs: names of the file's tensors.

    Returns:
      The location of each parameter that the file has, and the paths of the others.
    """
    theirs, exact, patterns = set(theirs), {}, []
    for entry in entries:
        if "{i}" in entry.ours:
            first, last = (re.escape(part) for part in entry.ours.split("{i}"))
            patterns.append((re.compile(rf"{first}(\d+){last}"), entry))
        else:
            exact.setdefault(entry.ours, []).append((entry.theirs, entry))
    locations, missing = {}, []
    for path in ours:
        candidates = exact.get(path) or [
            (entry.theirs.replace("{i}", match[1]), entry)
            for pattern, entry in patterns
            if (match := pattern.fullmatch(path))
        ]
        for name, entry in candidates:
            if name in theirs:
                locations[path] = TensorLocation(name, entry.layout, entry.part)
                break
        else:
            missing.append(path)
    return locations, missing


def export_location(entries: Iterable[Entry], path: str) -> TensorLocation | None:
    """Returns the tensor to which an export writes a parameter, from the first matching entry."""
    for entry in entries:
        if entry.ours == path:
            return TensorLocation(entry.theirs, entry.layout, entry.part)
        first, block, last = entry.ours.partition("{i}")
        if block and (match := re.fullmatch(rf"{re.escape(first)}(\d+){re.escape(last)}", path)):
            return TensorLocation(entry.theirs.replace("{i}", match[1]), entry.layout, entry.part)
    return None


def rows_of(source: TensorLocation, shape: tuple[int, ...]) -> slice:
    """Returns the rows of a tensor that hold a parameter."""
    k, n = source.part
    rows = shape[0] // n if shape else 0
    return slice(k * rows, (k + 1) * rows)


def saved_shape(source: TensorLocation, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a parameter's rows in the file's tensor."""
    return LAYOUTS[source.layout].shape(shape)


def fits(source: TensorLocation, theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Returns whether a tensor's shape fits a parameter's shape, ignoring axes of size 1."""
    n = source.part[1]
    expected = saved_shape(source, ours)
    if n > 1:
        expected = (n * expected[0], *expected[1:])
    return [side for side in expected if side != 1] == [side for side in theirs if side != 1]


def load(
    array: Shaped[np.ndarray, "..."], source: TensorLocation, shape: tuple[int, ...]
) -> Shaped[np.ndarray, "..."]:
    """Converts a parameter's rows of the file's tensor to a parameter; a view if possible."""
    axes = LAYOUTS[source.layout].axes
    return (array if axes is None else array.transpose(axes)).reshape(shape)


def save(array: Shaped[np.ndarray, "..."], source: TensorLocation) -> Shaped[np.ndarray, "..."]:
    """Converts a parameter to its rows of the file's tensor: the inverse of `load`."""
    axes, shape = LAYOUTS[source.layout].axes, saved_shape(source, array.shape)
    if axes is None:
        return array.reshape(shape)
    inverse = sorted(range(len(axes)), key=axes.__getitem__)
    return array.reshape([shape[axis] for axis in axes]).transpose(inverse)
