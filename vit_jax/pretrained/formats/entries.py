"""Which tensor of a foreign file is which parameter of ours: tables, read in both directions.

A format is a tuple of entries. An entry names a parameter of ours and a tensor of theirs, says how
the numbers are laid out there, and which part of the tensor it is where one holds several. Both
names may hold {i}, the number of a block. No entry computes anything: a parameter that is loaded
and exported again has the same bits.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped


class Layout(NamedTuple):
    """How the numbers of a parameter lie in a foreign tensor.

    Attributes:
      axes: of theirs, in the order of ours.
      shape: from our shape to theirs.
    """

    axes: tuple[int, ...] | None
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]


LAYOUTS = {
    "same": Layout(None, lambda shape: shape),
    # torch.nn.Linear's weight is [out, in]; the heads of attention are one axis there.
    "dense": Layout((1, 0), lambda s: (s[1], s[0])),
    "heads_in": Layout((1, 0), lambda s: (s[1] * s[2], s[0])),  # Ours [in, heads, d].
    "heads_out": Layout((1, 0), lambda s: (s[2], s[0] * s[1])),  # Ours [heads, d, out].
    "flat": Layout(None, lambda s: (math.prod(s),)),  # Ours [heads, d].
    # torch.nn.Conv2d's weight is [out, in, height, width].
    "conv": Layout((2, 3, 1, 0), lambda s: (s[3], s[2], s[0], s[1])),
    "dense_1x1": Layout((2, 3, 1, 0), lambda s: (s[1], s[0], 1, 1)),  # A convolution as a head.
    "table": Layout(None, lambda s: s[1:]),  # Ours has an axis of 1 before.
}


class Entry(NamedTuple):
    """One parameter of ours in a foreign file.

    Attributes:
      ours: its path, joined by slashes, blocks unrolled: "encoder/block_{i}/mlp/fc1/kernel".
      theirs: the tensor's name.
      layout: a key of LAYOUTS.
      part: (k, n): it is the k-th of n equal parts of the tensor's rows.
    """

    ours: str
    theirs: str
    layout: str = "same"
    part: tuple[int, int] = (0, 1)


class TensorLocation(NamedTuple):
    """Where one parameter of a model is in a file."""

    theirs: str
    layout: str
    part: tuple[int, int]


def dense(ours: str, theirs: str, layout: str = "dense", part: tuple[int, int] = (0, 1)):
    """Entries of a dense layer in PyTorch's names: kernel and bias."""
    bias = "flat" if layout == "heads_in" else "same"
    return (
        Entry(f"{ours}/kernel", f"{theirs}.weight", layout, part),
        Entry(f"{ours}/bias", f"{theirs}.bias", bias, part),
    )


def norm(ours: str, theirs: str):
    """Entries of a LayerNorm in PyTorch's names."""
    return Entry(f"{ours}/scale", f"{theirs}.weight"), Entry(f"{ours}/bias", f"{theirs}.bias")


def embedding(theirs: str):
    """Entries of the patch embedding in PyTorch's names."""
    return Entry("embedding/kernel", f"{theirs}.weight", "conv"), Entry(
        "embedding/bias", f"{theirs}.bias"
    )


def fused(ours: str, theirs: str, *, names: Iterable[str] = ("query", "key", "value")):
    """Entries of projections whose rows are one tensor, in PyTorch's names."""
    names = tuple(names)
    return tuple(
        entry
        for k, name in enumerate(names)
        for entry in dense(f"{ours}/{name}", theirs, "heads_in", (k, len(names)))
    )


def find_locations(
    entries: Iterable[Entry], ours: Iterable[str], theirs: Iterable[str]
) -> tuple[dict[str, TensorLocation], list[str]]:
    """Looks up where each parameter is.

    Args:
      entries: of the format; where several name one parameter, the first that the file has counts.
      ours: paths of the model's parameters, blocks unrolled.
      theirs: names of the tensors.

    Returns:
      The source of each parameter that the file has, and the paths of the others.
    """
    theirs, exact, patterns = set(theirs), {}, []
    for entry in entries:
        if "{i}" in entry.ours:
            first, last = (re.escape(part) for part in entry.ours.split("{i}"))
            patterns.append((re.compile(rf"{first}(\d+){last}"), entry))
        else:
            exact.setdefault(entry.ours, []).append((entry.theirs, entry))
    found, missing = {}, []
    for path in ours:
        candidates = exact.get(path) or [
            (entry.theirs.replace("{i}", match[1]), entry)
            for pattern, entry in patterns
            if (match := pattern.fullmatch(path))
        ]
        for name, entry in candidates:
            if name in theirs:
                found[path] = TensorLocation(name, entry.layout, entry.part)
                break
        else:
            missing.append(path)
    return found, missing


def export_location(entries: Iterable[Entry], path: str) -> TensorLocation | None:
    """Where a format would put a parameter, in the spelling that it writes: its first entry."""
    for entry in entries:
        if entry.ours == path:
            return TensorLocation(entry.theirs, entry.layout, entry.part)
        first, hole, last = entry.ours.partition("{i}")
        if hole and (match := re.fullmatch(rf"{re.escape(first)}(\d+){re.escape(last)}", path)):
            return TensorLocation(entry.theirs.replace("{i}", match[1]), entry.layout, entry.part)
    return None


def rows_of(source: TensorLocation, shape: tuple[int, ...]) -> slice:
    """The rows of their tensor that a parameter is."""
    k, n = source.part
    rows = shape[0] // n if shape else 0
    return slice(k * rows, (k + 1) * rows)


def saved_shape(source: TensorLocation, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a parameter of ours has there; of its own rows alone."""
    return LAYOUTS[source.layout].shape(shape)


def fits(source: TensorLocation, theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Whether a tensor of their shape holds a parameter of our shape; axes of 1 do not count."""
    n = source.part[1]
    wanted = saved_shape(source, ours)
    if n > 1:
        wanted = (n * wanted[0], *wanted[1:])
    return [side for side in wanted if side != 1] == [side for side in theirs if side != 1]


def load(
    array: Shaped[np.ndarray, "..."], source: TensorLocation, shape: tuple[int, ...]
) -> Shaped[np.ndarray, "..."]:
    """Their array, of the rows that belong to it, as our parameter; a view where it can be."""
    axes = LAYOUTS[source.layout].axes
    return (array if axes is None else array.transpose(axes)).reshape(shape)


def save(array: Shaped[np.ndarray, "..."], source: TensorLocation) -> Shaped[np.ndarray, "..."]:
    """Our parameter as the rows that it has in their tensor: the inverse of `load`."""
    axes, shape = LAYOUTS[source.layout].axes, saved_shape(source, array.shape)
    if axes is None:
        return array.reshape(shape)
    inverse = sorted(range(len(axes)), key=axes.__getitem__)
    return array.reshape([shape[axis] for axis in axes]).transpose(inverse)
