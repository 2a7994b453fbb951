"""Opens the data of an evaluation: a folder of images, a data set of TFDS, or that of a config."""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from ml_collections import FrozenConfigDict

from vit_jax.data.base import Example, Source, digest
from vit_jax.data.sources import open_source
from vit_jax.errors import DataError

# Splits to evaluate, the usual one first: the labels of ImageNet's test split are not public.
EVALUATED = ("validation", "val", "valid", "test")
ALL = "all"  # Both splits of a folder without folders for splits.


def parse_data(text: str) -> tuple[dict[str, Any], str]:
    """Returns the keys of `config.data` and the split, or "", that a user names.

    Args:
      text: a folder of images, or NAME[/CONFIG][:VERSION][:SPLIT] of TFDS.

    Raises:
      DataError: a folder does not exist.
    """
    if os.path.isdir(os.path.expanduser(text)):
        return {"source": "image_folder", "data_dir": os.path.expanduser(text)}, ""
    name, colon, split = text.rpartition(":")
    if not colon or re.fullmatch(r"[\d.*]+", split):
        name, split = text, ""
    if re.match(r"[./~]|.*\.(zip|tar|gz|tgz)$", text) or not re.match(r"[\w]", name):
        raise DataError(
            f"--data={text}: there is no such folder. Name a folder of images, or a data set of "
            "TFDS: NAME or NAME:SPLIT."
        )
    return {"source": "tfds", "name": name}, split


def open_split(data: FrozenConfigDict, split: str) -> Source:
    """Opens a split; "" is the usual one to evaluate.

    That is validation, val, valid or test, the first that there is; and all images of a folder
    without folders for splits.

    Raises:
      DataError: there is no such split, or the data cannot be read.
    """
    is_whole = data.source == "image_folder" and split in ("", ALL)
    if is_whole and not _has_splits(data.data_dir):
        return Joined([open_source(data, split=part) for part in ("train", "test")])
    if split:
        return open_source(data, split=split)
    errors = []
    for name in EVALUATED:
        try:
            return open_source(data, split=name)
        except DataError as error:
            errors.append(error)
    raise errors[-1]


def _has_splits(folder: str) -> bool:
    """Returns whether an image folder has folders for splits: see `ImageFolder`."""
    return any(
        path.is_dir() and any(child.is_dir() for child in path.iterdir())
        for path in (pathlib.Path(folder).expanduser() / name for name in ("train", *EVALUATED))
    )


class Joined(Source):
    """All examples of the splits of a folder."""

    def __init__(self, sources: Sequence[Source]):
        """Takes sources with equal classes."""
        self._sources = list(sources)
        first = sources[0]
        self.name, self.split, self.class_names = first.name, ALL, first.class_names

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    def __getitem__(self, index: int) -> Example:
        source, position = self._find(index)
        return source[position]

    def label(self, index: int) -> Any:
        source, position = self._find(index)
        return source.label(position)

    def describe(self, index: int) -> str:
        source, position = self._find(index)
        return source.describe(position)

    @property
    def fingerprint(self) -> str:
        return digest(*(source.fingerprint for source in self._sources))

    def _find(self, index: int) -> tuple[Source, int]:
        for source in self._sources:
            if index < len(source):
                return source, index
            index -= len(source)
        raise IndexError(index)
