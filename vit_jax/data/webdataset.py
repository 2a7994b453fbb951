"""Data sets in tar files, as the webdataset library writes them."""

import functools
import glob
import hashlib
import os
import re
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from vit_jax.data.base import Example, Source, check_split, digest
from vit_jax.data.held_out import TEST_FRACTION, undivided_rows
from vit_jax.data.reading import MAX_BYTES, Span, read_spans
from vit_jax.data.shards import tar
from vit_jax.data.shards.index import open_index
from vit_jax.data.shards.labels import class_ids
from vit_jax.data.shards.splits import files_by_split, row_hashes, slice_rows
from vit_jax.errors import ConfigError, DataError

_NAMES = "classnames.txt"  # A class name in each line, beside the tar files.
_MAX_SHARDS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")


def from_config(data_config: ConfigDict, *, split: str) -> "WebDataset":
    """Opens a split of the tar files `data.data_dir`.

    Raises:
      ConfigError: `data.data_dir` is not set.
      DataError: as `WebDataset`.
    """
    if not data_config.data_dir:
        raise ConfigError(
            'data.source="webdataset" needs data.data_dir: a folder of tar files, or a pattern '
            "such as FOLDER/train-{000..099}.tar."
        )
    return WebDataset(
        data_config.data_dir,
        split=split,
        image_key=data_config.image_key,
        label_key=data_config.label_key,
        test_fraction=data_config.test_fraction,
    )


def expand(pattern: str) -> list[str]:
    """Returns the texts that braces stand for, as in a shell: {00..12} and {train,val}.

    Raises:
      DataError: a range is malformed or has more than a million numbers.
    """
    match = _BRACES.search(pattern)
    if not match:
        return [pattern]
    first, dots, last = match[1].partition("..")
    if dots:
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise DataError(f"{pattern}: write a range of numbers, such as {{000..099}}.")
        if int(last) - int(first) >= _MAX_SHARDS:
            raise DataError(f"{pattern}: there may be {_MAX_SHARDS:,} files at most.")
        choices = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    else:
        choices = match[1].split(",")
    start, end = pattern[: match.start()], pattern[match.end() :]
    return [text for choice in choices for text in expand(f"{start}{choice}{end}")]


def find_shards(where: str) -> tuple[str, list[str]]:
    """Returns the root folder of tar files, and their paths relative to it.

    Args:
      where: a folder, a tar file, or a pattern with braces.

    Raises:
      DataError: there are none, or one of a pattern is missing.
    """
    where = os.path.expanduser(where)
    if os.path.isdir(where):
        names = glob.glob("**/*.tar", root_dir=where, recursive=True)
        if not names:
            packed = glob.glob("**/*.tar.*", root_dir=where, recursive=True)
            hint = " Unpack .tar.gz files to .tar: packed ones have no random access."
            raise DataError(f"{where} has no file *.tar.{hint if packed else ''}")
        return os.path.realpath(where), sorted(names)
    files = [where] if os.path.isfile(where) else expand(where)
    missing = [file for file in files if not os.path.isfile(file)]
    if missing:
        raise DataError(
            f"{where}: {len(missing):,} of {len(files):,} files do not exist, such as {missing[0]}."
        )
    root = os.path.realpath(os.path.commonpath([os.path.dirname(file) or "." for file in files]))
    return root, [os.path.relpath(os.path.realpath(file), root) for file in files]


class WebDataset(Source):
    """The samples of tar files that have an image, in the order of the files.

    A split is the files whose name contains it, such as train-000.tar or val/0.tar. If no name
    does, `vit_jax.data.held_out` divides each class by hashes of the samples' numbers, and a slice
    such as train[:90%] is one of the hashes' order, as for tables.

    The classes are named by a file `classnames.txt` beside the tar files, or else they are
    `vit_jax.data.shards.labels.class_ids` of all splits.
    """

    reads_groups = True

    def __init__(
        self,
        where: str,
        *,
        split: str,
        image_key: str = "image",
        label_key: str = "label",
        test_fraction: float = TEST_FRACTION,
    ):
        """Opens the index of the files, or makes it.

        Args:
          where: a folder, a tar file, or a pattern with braces.
          split: a split, or a slice of one.
          image_key: see `vit_jax.data.shards.tar.scan`.
          label_key: the same.
          test_fraction: fraction of each class that is in "test" if no file names a split.

        Raises:
          ConfigError: labels are of a type that cannot be classes.
          DataError: files are missing or broken, or there is no such split.
        """
        self.name, self.split = where, split
        self._root, shards = find_shards(where)
        by_split = files_by_split(shards, root=self._root)
        files = [file for names in by_split.values() for file in names]
        self._index = open_index(
            [os.path.join(self._root, file) for file in files],
            root=self._root,
            kind=f"tar {image_key} {label_key}",
            scan=functools.partial(tar.scan, image_key=image_key, label_key=label_key),
        )
        if not len(self._index):
            raise DataError(
                f'{where}: no sample has an image for data.image_key="{image_key}". Write the '
                'extension of the images, such as "jpg".'
            )
        self.class_names, ids = class_ids(
            {"": self._index.texts("label")},
            names=_class_names(self._root),
            key=f'data.label_key="{label_key}" of {where}',
        )
        hashes = row_hashes(len(self._index))
        if "" in by_split:
            self.divided_from = len(self._index)
            rows = undivided_rows(
                ids[""],
                hashes,
                split=split,
                fraction=test_fraction,
                class_names=self.class_names,
                where=where,
            )
        else:
            name = check_split(split, splits=list(by_split), where=where)
            of_split = np.repeat(list(by_split), [len(names) for names in by_split.values()])
            rows = np.flatnonzero((of_split == name)[self._index.array("file")])
        if not len(rows):
            raise DataError(f'{where}: no sample is in "{split}".')
        self._rows = slice_rows(rows, hashes[rows], split=split)
        self._labels = ids[""][self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        return self.read([index])[0]

    def read(self, indices: Sequence[int]) -> list[Example]:
        images = read_spans([self._span(int(self._rows[index])) for index in indices])
        return [
            {"image": image, "label": self.label(index)}
            for image, index in zip(images, indices, strict=True)
        ]

    def _span(self, row: int) -> Span:
        length = int(self._index.array("length")[row])
        if length > MAX_BYTES:
            raise DataError(f"The image has {length:,} bytes; at most {MAX_BYTES:,} are read.")
        return Span(self._file(row), int(self._index.array("offset")[row]), length)

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def describe(self, index: int) -> str:
        row = int(self._rows[index])
        return f"{self._file(row)}: {self._index.text('key', row)}"

    @functools.cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]  # Also read-only.
        arrays = hashlib.blake2b(self._rows.tobytes() + self._labels.tobytes(), digest_size=16)
        for column in ("offset", "length"):
            arrays.update(self._index.array(column)[self._rows].tobytes())
        numbers, samples = np.unique(self._index.array("file")[self._rows], return_inverse=True)
        arrays.update(samples.astype(np.int32).tobytes())
        files = (os.path.basename(self._index.files[number]) for number in numbers.tolist())
        return digest(*self.class_names, "", *files, "", arrays.hexdigest())

    def _file(self, row: int) -> str:
        return self._index.files[int(self._index.array("file")[row])]


def _class_names(root: str) -> tuple[str, ...]:
    try:
        with open(os.path.join(root, _NAMES), encoding="utf-8") as file:
            return tuple(line.strip() for line in file if line.strip())
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{root}/{_NAMES} cannot be read: {error}") from error
