"""The interface of data sources, and split slices for sources without their own."""

import abc
import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any

from vit_jax.errors import DataError, did_you_mean

# Usual names of splits, by which folders and files of splits are recognised.
VALIDATION_SPLITS = ("val", "valid", "validation")
SPLITS = ("train", *VALIDATION_SPLITS, "test")

# {"image": encoded bytes or uint8[H, W, channels], "label": int or multi-hot float32[num_classes]}
Example = dict[str, Any]


class Source(abc.ABC):
    """A split of a data set with random access, read by position.

    Reading is thread-safe, and a source can be pickled for a loader's worker processes.

    Attributes:
      name: of the data set, for messages.
      split: as in the config, including its slice.
      class_names: `num_classes` names, in the order of the labels.
      channels: of the stored images: 1 or 3. It is 3, the number after decoding, if images differ
        or have another format (palette, alpha, CMYK).
      multi_label: labels are multi-hot float32[num_classes] rather than one integer.
      reads_groups: whether `read` is faster than reading one example after the other.
      divided_from: the number of examples of which `vit_jax.data.held_out` chose the split; 0: the
        data have splits of their own.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    channels: int = 3
    multi_label: bool = False
    reads_groups: bool = False
    divided_from: int = 0

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Example: ...

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns several examples, at once where the storage allows it.

        Raises as `__getitem__` does, if any of them is bad, without saying which.
        """
        return [self[index] for index in indices]

    def label(self, index: int) -> Any:
        """Returns the label of an example, without decoding its image."""
        return self[index]["label"]

    def describe(self, index: int) -> str:
        """Returns the location of an example, for messages: a file, or a position in the split."""
        return f"{self.name} {self.split}[{index}]"

    def file(self, index: int) -> str | None:
        """Returns the path of the file that is the example's image; None: it is in no own file."""
        return None

    @property
    def fingerprint(self) -> str:
        """A digest that differs for other examples and for another order of the same examples.

        A run that is resumed with other data would no longer be a function of its config. Computed
        from names and numbers, without reading the examples.
        """
        return digest(self.name, self.split, str(len(self)), *self.class_names)


def digest(*texts: str) -> str:
    """Returns a digest of a list of texts: 32 hexadecimal digits."""
    hasher = hashlib.blake2b(digest_size=16)
    for text in texts:
        hasher.update(os.fsencode(text) + b"\0")
    return hasher.hexdigest()


_SLICE = re.compile(r"(?P<split>[\w.-]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def split_name(split: str) -> str:
    """Returns the split without its slice: "train" of "train[:90%]".

    Raises:
      DataError: the split is not of the form SPLIT or SPLIT[START:STOP].
    """
    match = _SLICE.fullmatch(split)
    if not match:
        raise DataError(
            f'Cannot read the split "{split}". Write a name, or a name and one slice: '
            "train, train[:90%], train[10:200], train[-500:]."
        )
    return match["split"]


def split_range(split: str, *, num_examples: int) -> range:
    """Returns the positions of a split slice in its whole split, in [0, num_examples).

    Bounds are positions or percentages (rounded to the nearest example); negative ones count from
    the end, as in TFDS. Adjacent slices share no example and leave none out.

    Args:
      split: "train", "train[:90%]", "train[10:200]" or "train[-500:]".
      num_examples: number of examples in the whole split.

    Raises:
      DataError: the slice is malformed, empty, or reaches beyond the split.
    """
    split_name(split)
    match = _SLICE.fullmatch(split)
    assert match is not None  # `split_name` refuses others.

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
        raise DataError(f'"{split}" has none of the {num_examples} examples of this split.')
    return positions


# Splits of data that are not divided: `vit_jax.data.held_out` chooses train and test; all is both.
UNDIVIDED_SPLITS = ("train", "test", "all")


def check_split(split: str, *, splits: Sequence[str], where: str) -> str:
    """Returns the name of a split, checked to be one of those that exist.

    Raises:
      DataError: it does not exist; the message names the nearest.
    """
    name = split_name(split)
    if name not in splits:
        hint = did_you_mean(name, splits)
        if tuple(splits) == UNDIVIDED_SPLITS and name in VALIDATION_SPLITS:
            hint = f'Did you mean "test"? Accepted: {", ".join(splits)}.'
        raise DataError(f'{where} has no split "{name}". {hint}')
    return name
