"""Views of a file's tensors under other names: without prefixes, or with unstacked blocks."""

import re
from collections.abc import Callable, Iterable

import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.pretrained.tensors import Tensor, Tensors


class Renamed(Tensors):
    """Tensors under other names; each may be one row of another tensor.

    Attributes:
      below: the tensors that are renamed.
      original: for each new name, the name in `below` and the row, or None for all rows.
    """

    def __init__(self, tensors: Tensors, original: dict[str, tuple[str, int | None]]):
        self.original = original
        self.below = tensors
        self._last: tuple[str, np.ndarray] | None = None
        table = {}
        for name, (theirs, row) in original.items():
            shape, dtype = tensors[theirs]
            table[name] = Tensor(shape if row is None else shape[1:], dtype)
        super().__init__(tensors.path, table, tensors.metadata)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        theirs, row = self.original[name]
        if row is None:
            return self.below.read(theirs, rows)
        # An archive's member is always read as a whole: cache the stack for the next block.
        if self._last is None or self._last[0] != theirs:
            self._last = (theirs, self.below.read(theirs))
        array = self._last[1][row]
        return array if rows is None else array[rows]


def renamed(tensors: Tensors, rename: Callable[[str], str | None]) -> Renamed:
    """Renames tensors, and drops those whose new name is None.

    Raises:
      CheckpointError: two tensors get the same name: the file holds several models.
    """
    names = {name: rename(name) for name in tensors}
    original: dict[str, tuple[str, int | None]] = {}
    for old, new in names.items():
        if new is None:
            continue
        if new in original:
            raise CheckpointError(
                f"{tensors.path} holds several models: {original[new][0]} and {old} are both the "
                f"{new} of one. Save the tensors of one model alone."
            )
        original[new] = (old, None)
    return Renamed(tensors, original)


def without_wrappers(tensors: Tensors) -> Tensors:
    """Removes the prefixes that torch.compile and DataParallel add to names."""
    wrapper = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod\.|module\.)+")
    if not any(wrapper.search(name) for name in tensors):
        return tensors
    return renamed(tensors, lambda name: wrapper.sub("", name))


def without_prefix(tensors: Tensors, prefix: str) -> Renamed:
    """Removes a prefix from names, and drops tensors without it."""
    return renamed(
        tensors, lambda name: name.removeprefix(prefix) if name.startswith(prefix) else None
    )


def unstacked(tensors: Tensors, stack: str, block: str) -> Renamed:
    """Splits tensors that are stacked along a leading axis of blocks.

    Args:
      tensors: the file's tensors.
      stack: pattern of the stacked tensors' names, whose group is the name within a block.
      block: template of the new names: "Transformer/encoderblock_{i}/{name}".
    """
    original: dict[str, tuple[str, int | None]] = {}
    for name in tensors:
        match = re.fullmatch(stack, name)
        if not match:
            original[name] = (name, None)
            continue
        for i in range(tensors[name].shape[0]):
            original[block.format(i=i, name=match[1])] = (name, i)
    return Renamed(tensors, original)


def of_optimizer(name: str) -> bool:
    """Returns whether a tensor in Google's names belongs to the optimizer state.

    Flax's oldest optimizers store the parameters themselves under opt/target/.
    """
    return re.match(r"(opt|optimizer)/(?!target/)", name) is not None


def count(names: Iterable[str], pattern: str) -> int:
    """Returns the number of blocks: one more than the largest number in the pattern's group."""
    numbers = [int(match[1]) for name in names if (match := re.match(pattern, name))]
    return max(numbers) + 1 if numbers else 0
