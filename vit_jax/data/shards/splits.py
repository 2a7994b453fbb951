"""Which split a file belongs to, by its name; which rows are in a split or in a slice of it."""

import pathlib
import re
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int64

from vit_jax.data.base import SPLITS, split_range
from vit_jax.errors import DataError

_SHARD = re.compile(r"(?P<split>.+)-\d+-of-\d+")  # As in train-00000-of-00002.parquet.


def split_of(path: str) -> str:
    """Returns the split that a file's path names, or "".

    It is a usual name between separators, in the file's name or else in that of a folder, such as
    `data/train-00000-of-00002.parquet`, `imagenet-val-003.tar` or `test/0.tar`; or the name before
    the number of a shard, such as `holdout-00000-of-00002.parquet`.

    Args:
      path: relative to the root of the data set.
    """
    *folders, name = pathlib.PurePath(path).parts
    stem = pathlib.PurePath(name).stem
    for text in (stem, *reversed(folders)):
        for word in re.split(r"[^A-Za-z]+", text.lower()):
            if word in SPLITS:
                return word
    match = _SHARD.fullmatch(stem)
    return match["split"] if match else ""


def files_by_split(files: Iterable[str], *, root: str) -> dict[str, list[str]]:
    """Returns the files of each split, sorted by path; the split "" if no path names one.

    Raises:
      DataError: only some paths name a split.
    """
    splits: dict[str, list[str]] = {}
    for file in sorted(files):
        splits.setdefault(split_of(file), []).append(file)
    if "" in splits and len(splits) > 1:
        raise DataError(
            f"{root}: the names of some files name a split "
            f"({', '.join(sorted(set(splits) - {''}))}), and others do not, such as "
            f"{splits[''][0]}. Give each file the name of its split, or move the others away."
        )
    return splits


def slice_rows(
    rows: Int64[np.ndarray, "n"], hashes: Float[np.ndarray, "n"], *, split: str
) -> Int64[np.ndarray, "m"]:
    """Returns those rows of a split that are in a slice of it, ascending.

    A slice is one of the order of the hashes: files are often sorted by class, and train[:90%]
    should have about nine tenths of each.

    Raises:
      DataError: the slice is malformed, empty, or reaches beyond the split.
    """
    positions = split_range(split, num_examples=len(rows))
    if len(positions) == len(rows):
        return rows
    order = np.argsort(hashes, kind="stable")
    return np.sort(rows[order[positions.start : positions.stop]])


def row_hashes(count: int) -> Float[np.ndarray, "n"]:
    """Returns a hash of each row number below `count`, uniform in [0, 1): SplitMix64's mixing.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) / 2.0**53
