"""Data sets in tables: a row for each example, with an image or its path, and a label."""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Float, Int32
from ml_collections import ConfigDict

from vit_jax.data.base import Example, Source, check_split, digest
from vit_jax.data.held_out import TEST_FRACTION, undivided_rows, uniform_hash
from vit_jax.data.reading import MAX_BYTES, link_target_outside, read_file
from vit_jax.data.shards.labels import class_ids
from vit_jax.data.shards.rows import Rows, open_rows
from vit_jax.data.shards.splits import files_by_split, row_hashes, slice_rows
from vit_jax.errors import ConfigError, DataError, did_you_mean

# Untyped: pyarrow makes these functions when it is imported.
pc: Any = pyarrow.compute
SPLIT_COLUMN = "split"
EXTENSIONS = (".csv", ".tsv", ".parquet")


def from_config(data_config: ConfigDict, *, split: str) -> "TableSource":
    """Opens a split of the table, or of the folder of tables, `data.data_dir`.

    Raises:
      ConfigError: `data.data_dir` is not set, or as `TableSource`.
      DataError: there is no such file, or as `TableSource`.
    """
    if not data_config.data_dir:
        raise ConfigError(
            'data.source="table" needs data.data_dir, a file or folder: '
            f"FILE{', FILE'.join(EXTENSIONS)}. Pass --config.data.data_dir=FILE."
        )
    path = os.path.realpath(os.path.expanduser(data_config.data_dir))
    return TableSource(
        open_tables(path),
        root=path if os.path.isdir(path) else os.path.dirname(path),
        name=path,
        split=split,
        image_key=data_config.image_key,
        label_key=data_config.label_key,
        follow_links=data_config.follow_links,
        test_fraction=data_config.test_fraction,
    )


def open_tables(path: str) -> dict[str, Rows]:
    """Opens a table, or the tables of a folder by the splits that their names contain.

    Raises:
      DataError: there is no table, tables of several kinds, or one is broken.
    """
    if os.path.isfile(path):
        if not path.lower().endswith(EXTENSIONS):
            raise DataError(f"{path} is not a table: accepted are {', '.join(EXTENSIONS)}.")
        return {"": open_rows([path])}
    files = [
        str(file.relative_to(path))
        for file in sorted(pathlib.Path(path).rglob("*"))
        if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".")
    ]
    kinds = sorted({os.path.splitext(file)[1].lower() for file in files})
    if not files:
        raise DataError(f"{path} has no table: expected files with {', '.join(EXTENSIONS)}.")
    if len(kinds) > 1:
        raise DataError(
            f"{path} has tables of several kinds ({', '.join(kinds)}): set data.data_dir to one "
            "file, or to a folder with one kind."
        )
    splits = files_by_split(files, root=path)
    if "" in splits and len(files) > 1 and kinds != [".parquet"]:
        raise DataError(
            f"{path} has several tables, {', '.join(files[:5])}: set data.data_dir to one of them, "
            "or name them after their splits, such as train.csv and test.csv."
        )
    return {
        split: open_rows([os.path.join(path, file) for file in names])
        for split, names in splits.items()
    }


class TableSource(Source):
    """Rows of a table: the image is a cell's bytes, or a path relative to the table's folder.

    The rows of a split are in the order of the files. If no file's name contains a split, the
    column "split" says it; without this column, `vit_jax.data.held_out` divides each class by
    hashes of the paths, or else of the rows' numbers, as in an image folder. A slice such as
    train[:90%] is one of the hashes' order, so that it has about the same fraction of every class
    in a sorted table.

    The classes are those that Hugging Face's `ClassLabel` declares in the table's metadata, or else
    `vit_jax.data.shards.labels.class_ids` of all splits.
    """

    def __init__(
        self,
        tables: Mapping[str, Rows],
        *,
        root: str,
        name: str,
        split: str,
        image_key: str,
        label_key: str,
        follow_links: bool = False,
        test_fraction: float = TEST_FRACTION,
    ):
        """Reads the labels, and the paths of images if there are any; no image.

        Args:
          tables: the rows of each split; under "" if the files are not divided into splits.
          root: the folder that contains all files, absolute and without links in its own path.
          name: of the data set, for messages.
          split: a split, or a slice of one.
          image_key: column of the images.
          label_key: column of the labels.
          follow_links: whether paths may lead out of `root`.
          test_fraction: fraction of each class that is in "test" if the rows are not divided.

        Raises:
          ConfigError: a column does not exist, or has another type.
          DataError: there is no such split, or it has no example.
        """
        self.name, self.split, self._root = name, split, root
        self._within = not follow_links
        self._image_key = image_key
        schema = next(iter(tables.values())).schema
        for key, column in (("image_key", image_key), ("label_key", label_key)):
            if column not in schema.names:
                raise ConfigError(
                    f'data.{key}="{column}" is no column of {name}. '
                    f"{did_you_mean(column, schema.names)}"
                )
        _check_image_type(schema.field(image_key).type, key=image_key, name=name)
        self.class_names, labels = class_ids(
            {part: rows.column(label_key) for part, rows in tables.items()},
            names=class_label_names(schema.metadata, label_key),
            key=f'data.label_key="{label_key}" of {name}',
        )
        part, rows = "", np.arange(0)
        if "" in tables:
            hashes, self._paths_digest = self._hashes(tables[""])
            rows = self._rows_of_split(tables[""], labels[""], hashes, fraction=test_fraction)
        else:
            part = check_split(split, splits=list(tables), where=name)
            hashes, self._paths_digest = self._hashes(tables[part])
            rows = np.arange(len(tables[part]))
        if not len(rows):
            raise DataError(f'{name}: no example is in "{split}".')
        self._table = tables[part]
        self._rows = slice_rows(rows, hashes[rows], split=split)
        self._labels = labels[part][self._rows]

    def _hashes(self, table: Rows) -> tuple[Float[np.ndarray, "n"], str]:
        """Returns a hash of each row, and a digest of all paths; "" if there are no paths."""
        if not _is_text(table.schema.field(self._image_key).type):
            return row_hashes(len(table)), ""
        paths = table.column(self._image_key).to_pylist()
        hashes = np.array([uniform_hash(f"0/{path}") for path in paths])
        return hashes, digest(*(path or "" for path in paths))

    def _rows_of_split(
        self,
        table: Rows,
        labels: Int32[np.ndarray, "n"],
        hashes: Float[np.ndarray, "n"],
        *,
        fraction: float,
    ) -> np.ndarray:
        """Returns the rows of the split of a table that has all splits, ascending."""
        if SPLIT_COLUMN in table.schema.names:
            values = table.column(SPLIT_COLUMN)
            names = sorted(map(str, set(pc.unique(values).to_pylist()) - {None}))
            name = check_split(self.split, splits=names, where=self.name)
            is_in = pc.equal(pc.cast(values, pa.string()), name)
            return np.flatnonzero(pc.fill_null(is_in, False).to_numpy())
        self.divided_from = len(table)
        return undivided_rows(
            labels,
            hashes,
            split=self.split,
            fraction=fraction,
            class_names=self.class_names,
            where=self.name,
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        cell = self._table.cell(self._image_key, int(self._rows[index]))
        if isinstance(cell, Mapping):  # Hugging Face's Image.
            path = cell.get("path")
            cell = path if cell.get("bytes") is None else cell["bytes"]
        if cell is None:
            raise DataError("It has no image.")
        if isinstance(cell, str):
            cell = self._read(cell)
        elif len(cell) > MAX_BYTES:
            raise DataError(
                f"The image is too large: it has {len(cell):,} bytes, and at most {MAX_BYTES:,} "
                "are read."
            )
        return {"image": cell, "label": self.label(index)}

    def _read(self, path: str) -> bytes:
        file = os.path.join(self._root, path)
        if self._within and (target := link_target_outside(file, folder=self._root)):
            raise DataError(
                f"Its image, {target}, is outside of {self._root}. To read files elsewhere, pass "
                "--config.data.follow_links=True."
            )
        try:
            return read_file(file)
        except DataError as error:
            raise DataError(f"{file}: {error}") from error

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def describe(self, index: int) -> str:
        file, row = self._table.locate(int(self._rows[index]))
        return f"{file} row {row}"

    @functools.cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]  # Also read-only.
        arrays = hashlib.blake2b(self._rows.tobytes() + self._labels.tobytes(), digest_size=16)
        files = (os.path.relpath(file, self._root) for file in self._table.files)
        counts = map(str, self._table.row_counts)
        return digest(
            *self.class_names, "", *files, "", *counts, self._paths_digest, arrays.hexdigest()
        )


def class_label_names(metadata: Mapping[bytes, bytes] | None, column: str) -> tuple[str, ...]:
    """Returns the names of a `ClassLabel` column by Hugging Face's metadata of a table, or ()."""
    feature = hf_features(metadata).get(column)
    if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel":
        return tuple(map(str, feature.get("names", ())))
    return ()


def hf_features(metadata: Mapping[bytes, bytes] | None) -> Mapping[str, Any]:
    """Returns Hugging Face's features by column, from the metadata of a table; {} without."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, Mapping) else {}


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_image_type(kind: pa.DataType) -> bool:
    """Whether a column may hold images: bytes, or Hugging Face's struct of bytes and path."""
    if pa.types.is_struct(kind):
        return {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _check_image_type(kind: pa.DataType, *, key: str, name: str) -> None:
    if not is_image_type(kind) and not _is_text(kind):
        raise ConfigError(
            f'data.image_key="{key}" of {name} is of the type {kind}: an image must be bytes, or '
            "the path of a file."
        )
