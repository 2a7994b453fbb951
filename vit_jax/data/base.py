"""What every data source is, and the split slices that those without their own understand."""

import abc
import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any

from vit_jax.errors import DataError, did_you_mean

# {"image": encoded bytes or uint8[H, W, channels], "label": int or multi-hot float32[num_classes]}
Example = dict[str, object]


class Source(abc.ABC):
    """A split of a data set with random access, read by position.

    Reading is safe from many threads, and a source can be pickled for a loader's worker processes.

    Attributes:
      name: of the data set, for messages.
      split: as the config gave it, slice included.
      num_classes: number of classes.
      class_names: `num_classes` names, in the order of the labels.
      channels: of the images as they are stored: 1 or 3. Images that are not all stored alike, or
        are stored in another way (palette, alpha, CMYK), count as 3, as decoding makes them.
      multi_label: labels are multi-hot float32[num_classes] rather than one integer.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    channels: int = 3
    multi_label: bool = False

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Example: ...

    def label(self, index: int) -> Any:
        """The label of example `index`, as in the example itself; no image is decoded for it."""
        return self[index]["label"]

    def describe(self, index: int) -> str:
        """Where example `index` is from, for messages: a file, or its place in the split."""
        return f"{self.name} {self.split}[{index}]"

    @property
    def fingerprint(self) -> str:
        """What tells it from a data set with other examples, or with the same in another order.

        A run that goes on with another one would no longer be a function of its config. Made of
        names and numbers, not of what the examples hold: it takes no reading of them.
        """
        return digest(self.name, self.split, str(len(self)), *self.class_names)


def digest(*texts: str) -> str:
    """32 hexadecimal digits that tell one list of texts from every other."""
    hasher = hashlib.blake2b(digest_size=16)
    for text in texts:
        hasher.update(os.fsencode(text) + b"\0")
    return hasher.hexdigest()


_SLICE = re.compile(r"(?P<split>[\w.-]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def split_name(split: str) -> str:
    """The split without its slice: "train" of "train[:90%]".

    Raises:
      DataError: it is not of the form SPLIT or SPLIT[START:STOP].
    """
    match = _SLICE.fullmatch(split)
    if not match:
        raise DataError(
            f'Cannot read the split "{split}". Write a name, or a name and one slice: '
            "train, train[:90%], train[10:200], train[-500:]."
        )
    return match["split"]


def split_range(split: str, *, num_examples: int) -> range:
    """The positions that a split slice takes from its whole split.

    Bounds are counts of examples or percentages (rounded to the nearest example), and count from
    the end where negative, as in TFDS. Adjacent slices share no example and leave none out.

    Args:
      split: "train", "train[:90%]", "train[10:200]" or "train[-500:]".
      num_examples: number of examples in the whole split.

    Returns:
      The positions, in [0, num_examples).

    Raises:
      DataError: the slice is malformed, empty, or reaches beyond the split.
    """
    split_name(split)
    match = _SLICE.fullmatch(split)

    def bound(text: str | None, default: int) -> int:
        if text is None:
            return default
        value = int(text.removesuffix("%"))
        if text.endswith("%"):
            value = round(num_examples * value / 100)
        if abs(value) > num_examples:
            raise DataError(f'"{split}" reaches beyond the {num_examples} examples of this split.')
        return value + num_examples if value < 0 else value

    positions = range(bound(match["start"], 0), bound(match["stop"], num_examples))
    if not positions:
        raise DataError(f'"{split}" holds none of the {num_examples} examples of this split.')
    return positions


def check_split(split: str, *, splits: Sequence[str], where: str) -> str:
    """The name of a split, checked to be one of those that exist.

    Raises:
      DataError: it is not; the message names the nearest.
    """
    name = split_name(split)
    if name not in splits:
        raise DataError(f'{where} has no split "{name}". {did_you_mean(name, splits)}')
    return name
