"""Data sets of TensorFlow Datasets (TFDS), with random access and without TensorFlow.

TFDS itself reads prepared data without TensorFlow if they are stored as ArrayRecord. Its default,
TFRecord, has no random access: we make an index of the records. Images remain encoded;
`vit_jax.data.decode` decodes them.
"""

import contextlib
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from vit_jax import storage
from vit_jax.data.base import Example, Source, digest, split_name
from vit_jax.data.reading import Span, in_parallel, is_transient
from vit_jax.data.shards import tfrecord
from vit_jax.data.shards.index import open_index
from vit_jax.errors import ConfigError, DataError, did_you_mean

_CATALOG = "https://www.tensorflow.org/datasets/catalog/overview"


def from_config(data_config: ConfigDict, *, split: str) -> "TfdsSource":
    """Opens a split of the data set `data.name`.

    Raises:
      ConfigError: `data.name` is not set, or as `TfdsSource`.
      DataError: as `find_builder` and `TfdsSource`.
    """
    if not data_config.name:
        raise ConfigError('data.source="tfds" needs data.name, such as "cifar10".')
    builder = find_builder(data_config.name, data_dir=data_config.data_dir)
    return TfdsSource(
        builder,
        split=split,
        image_key=data_config.image_key,
        label_key=data_config.label_key,
    )


def find_builder(name: str, *, data_dir: str) -> tfds.core.DatasetBuilder:
    """Returns the TFDS builder of a data set.

    Args:
      name: name in TFDS: "cifar10", "imagenet2012:5.1.0", "imagenet_v2/matched-frequency".
      data_dir: the folder of prepared data; "": TFDS's own (`~/tensorflow_datasets`).

    Raises:
      ConfigError: `data_dir` cannot be used.
      DataError: there is no such data set, config or version, or the prepared data are damaged.
    """
    if data_dir:
        storage.as_path(data_dir, name="data.data_dir")
    if not re.fullmatch(r"[^:]*(:[\d.*]+)?", name):
        raise DataError(
            f'"{name}" is not a data set of TFDS: write NAME, NAME/CONFIG or NAME:VERSION. Data '
            "sets of other hosts (huggingface:...) would run foreign code: prepare the data with "
            "TFDS first."
        )
    try:
        with _only_features_of_tfds():
            builder = tfds.builder(name, data_dir=data_dir or None)
            _ = builder.info  # Reads the prepared features.json.
            return builder
    except DataError:
        raise
    except tfds.core.DatasetNotFoundError:
        names = tfds.list_builders(with_community_datasets=False)  # Hundreds: show the nearest.
        base = name.partition(":")[0].partition("/")[0]
        nearest = difflib.get_close_matches(base, names, n=3, cutoff=0.5)
        guess = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
        raise DataError(
            f'TFDS has no data set "{name}", and none of this name is prepared in '
            f"{data_dir or 'its default folder'}. {guess}All names: {_CATALOG}"
        ) from None
    except Exception as error:
        # An unknown config or version, or files that TFDS has not written.
        raise DataError(f'TFDS cannot open "{name}": {error}') from error


@contextlib.contextmanager
def _only_features_of_tfds() -> Iterator[None]:
    """Inside, TFDS does not import foreign modules, whose names a features.json may contain."""
    connector = tfds.features.FeatureConnector
    class_from_name = connector.cls_from_name

    def checked_class_from_name(cls: type, name: str) -> type:
        if not name.startswith("tensorflow_datasets."):
            raise DataError(
                f"features.json names the class {name[:200]!r}: only features of TFDS itself are "
                "accepted, because loading any other would run foreign code."
            )
        return class_from_name(name)

    connector.cls_from_name = classmethod(checked_class_from_name)  # pyright: ignore[reportAttributeAccessIssue]  # Untyped.
    try:
        yield
    finally:
        connector.cls_from_name = class_from_name


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Whether the data are prepared. Checks the folder first: TFDS warns if it is missing."""
    return builder.data_path.exists() and builder.is_prepared()


def is_readable(builder: tfds.core.DatasetBuilder) -> bool:
    """Whether the data are prepared in a format that `TfdsSource` reads."""
    if not is_prepared(builder):
        return False
    formats = {*tfds.core.FileFormat.with_random_access(), tfds.core.FileFormat.TFRECORD}
    return bool(builder.info.available_file_formats() & formats)


class _TfRecords:
    """The records of a split stored as TFRecord, by position, as TFDS's data sources."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, decoders: dict):
        """Opens or makes the index of the split's files.

        Raises:
          DataError: a file is missing or broken, or in an object store.
          AssertionError, KeyError, ValueError: TFDS does not accept the split.
        """
        if not storage.is_local(builder.data_dir):
            raise DataError(
                f"{builder.data_dir} holds TFRecord files, which are read from a disk only. Copy "
                "them, or prepare the data set with file_format='array_record'."
            )
        self._features: Any = builder.info.features
        self._decoders = decoders
        parts = builder.info.splits[split].file_instructions
        whole = builder.info.splits[split.partition("[")[0]].file_instructions
        self._index = open_index(
            [str(part.filename) for part in whole],
            root=str(builder.data_dir),
            kind="tfrecord",
            scan=tfrecord.scan,
        )
        first, found = {}, np.bincount(self._index.array("file"), minlength=len(whole))
        for number, (part, count) in enumerate(zip(whole, found.tolist(), strict=True)):
            first[part.filename] = int(found[:number].sum())
            if count != part.examples_in_shard:
                raise DataError(
                    f"{part.filename} has {count:,} records, and dataset_info.json says "
                    f"{part.examples_in_shard:,}. Prepare the data set again."
                )
        starts = [(first[part.filename] + part.skip, part.take) for part in parts]
        self._rows = np.concatenate([np.arange(s, s + n) for s, n in starts] or [np.arange(0)])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        records = tfrecord.read_records([self._span(int(self._rows[i])) for i in indices])
        return [
            self._features.deserialize_example_np(data, decoders=self._decoders) for data in records
        ]

    def _span(self, row: int) -> Span:
        return Span(
            self._index.files[self._index.array("file")[row]],
            int(self._index.array("offset")[row]),
            int(self._index.array("length")[row]),
        )


class TfdsSource(Source):
    """One split of a data set that TFDS has prepared."""

    reads_groups = True

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        *,
        split: str,
        image_key: str = "image",
        label_key: str = "label",
    ):
        """Opens the split; reads no example.

        Args:
          builder: of the data set; see `find_builder`.
          split: a split or a slice of it, in TFDS's own notation.
          image_key: name of the image feature.
          label_key: name of the label feature: a ClassLabel, or a Sequence of them (multi-label).

        Raises:
          ConfigError: a key is not that of a feature, or of a feature of another kind.
          DataError: the data are not prepared, not in a format with random access, or have no such
            split.
        """
        self.name = builder.info.full_name
        self.split = split
        features = cast(tfds.features.FeaturesDict, builder.info.features)
        image = _feature(features, image_key, config_key="data.image_key", name=self.name)
        label = _feature(features, label_key, config_key="data.label_key", name=self.name)
        self.multi_label = isinstance(label, tfds.features.Sequence)
        classes = label.feature if self.multi_label else label
        if not isinstance(image, tfds.features.Image):
            raise ConfigError(
                f'data.image_key="{image_key}" is not an image in {self.name}, but {image}.'
            )
        if not isinstance(classes, tfds.features.ClassLabel) or not classes.num_classes:
            raise ConfigError(
                f'data.label_key="{label_key}" is not a class label in {self.name}, but {label}.'
            )
        self.class_names = tuple(classes.names)
        self.channels = 1 if image.shape[-1] == 1 else 3  # pyright: ignore[reportIndexIssue]  # A tuple.
        self._image_key, self._label_key = image_key, label_key
        # Images are decoded later, and images of other features never.
        decoders = {
            key: tfds.decode.SkipDecoding()
            for key, feature in features.items()
            if isinstance(feature, tfds.features.Image)
        }
        try:
            self._records = _open_records(builder, split, decoders)
        except (AssertionError, KeyError, NotImplementedError, ValueError) as error:
            raise _open_error(builder, split, error) from error
        # The order of the records depends on the shards; a builder may have no information on them.
        split_info = builder.info.splits.get(split.partition("[")[0])
        self._shards = tuple(split_info.shard_lengths) if split_info else ()
        if not len(self._records):
            raise DataError(f'"{split}" of {self.name} is empty.')

    def __len__(self) -> int:
        return len(self._records)

    @property
    def fingerprint(self) -> str:
        return digest(super().fingerprint, *map(str, self._shards))

    def __getitem__(self, index: int) -> Example:
        with _reported():
            record = self._records[index]
        return self._example(record)

    def read(self, indices: Sequence[int]) -> list[Example]:
        if not isinstance(self._records, _TfRecords):
            return in_parallel(self.__getitem__, indices)
        with _reported():
            records = self._records.__getitems__(indices)
        return [self._example(record) for record in records]

    def _example(self, record: dict) -> Example:
        label = record[self._label_key]
        if self.multi_label:
            multi_hot = np.zeros(self.num_classes, np.float32)
            classes = np.asarray(label, np.int64)
            if np.any((classes < 0) | (classes >= self.num_classes)):
                raise DataError(
                    f"its labels are {', '.join(map(str, classes))}, but labels go from 0 to "
                    f"{self.num_classes - 1}."
                )
            multi_hot[classes] = 1
            return {"image": record[self._image_key], "label": multi_hot}
        return {"image": record[self._image_key], "label": int(label)}


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Turns errors of TFDS's reader and parser, which are of many types, into a DataError."""
    try:
        yield
    except Exception as error:
        if is_transient(error):
            raise
        raise DataError(f"This record cannot be read: {error}") from error


def _open_records(builder: tfds.core.DatasetBuilder, split: str, decoders: dict) -> Any:
    """Returns the records of a split by position: TFDS's own, or ours of its TFRecord files."""
    try:
        return builder.as_data_source(split, decoders=decoders)  # pyright: ignore[reportCallIssue]  # Untyped decorator.
    except NotImplementedError:
        if not is_prepared(builder) or builder.info.file_format != tfds.core.FileFormat.TFRECORD:
            raise
        return _TfRecords(builder, split, decoders)


def _feature(features, key: str, *, config_key: str, name: str) -> Any:
    if key not in features:
        raise ConfigError(f'{config_key}="{key}": {name} has {did_you_mean(key, features)}')
    return features[key]


def _open_error(builder: tfds.core.DatasetBuilder, split: str, error: Exception) -> DataError:
    """Returns an error that says why TFDS could not open a split, and what to do."""
    name, folder = builder.info.full_name, builder.data_dir
    prepare = (
        f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
        f"data_dir={str(builder.data_dir_root)!r}, file_format='array_record')"
        '.download_and_prepare()"'
    )
    if not is_prepared(builder):
        return DataError(
            f"{name} is not prepared in {folder}. If it is elsewhere, set data.data_dir. To prepare"
            f" it (most data sets need TensorFlow for this, once): {prepare}. For data sets that "
            f"must be downloaded by hand, the catalog says where to put the files: {_CATALOG}"
        )
    if isinstance(error, NotImplementedError) and (stored := builder.info.file_format):
        return DataError(
            f"{name} in {folder} is stored as {stored.value}, which has no "
            "random access. To convert it (needs TensorFlow, once): python -m tensorflow_datasets."
            f"scripts.convert_format --dataset_version_dir={folder} --out_file_format=array_record;"
            f" or prepare it again, in another data_dir: {prepare}"
        )
    base = split.partition("[")[0]
    if base not in builder.info.splits:
        return DataError(
            f'{name} has no split "{split}". {did_you_mean(base, builder.info.splits)}'
        )
    split_name(split)  # Raises an error for a malformed split.
    return DataError(f'TFDS cannot open the split "{split}" of {name}: {error}')
