"""Class names and class ids from the labels of a table: numbers, or names of classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Int32

from vit_jax.errors import ConfigError, DataError

# Untyped: pyarrow makes these functions when it is imported.
pc: Any = pyarrow.compute
NO_LABEL = -1  # An example without a label, or with one of no class, is bad.
_MAX_CLASSES = 1_000_000
_INTEGER = r"^(0|[1-9]\d{0,8})$"


def class_ids(
    labels: Mapping[str, pa.ChunkedArray], *, names: Sequence[str] = (), key: str
) -> tuple[tuple[str, ...], dict[str, Int32[np.ndarray, "n"]]]:
    """Returns the class names of a data set, and the class ids of each split's examples.

    Integers are class ids, also if they are stored as text, and their names are "0", "1", ...
    Other texts are names of classes, which are sorted. The labels of all splits decide.

    Args:
      labels: the labels of each split.
      names: names of the classes, if the data set declares them.
      key: the config key that chooses the labels, and its value, for messages.

    Returns:
      Class names; class ids, `NO_LABEL` for a missing label and one of no class.

    Raises:
      ConfigError: the labels are neither integers nor texts.
      DataError: no example has a label, or a number is too large.
    """
    plain = {split: _plain(values, key) for split, values in labels.items()}
    if all(pa.types.is_integer(values.type) or _are_integers(values) for values in plain.values()):
        plain = {split: pc.cast(values, pa.int64()) for split, values in plain.items()}
    else:
        texts = {split: pc.cast(values, pa.string()) for split, values in plain.items()}
        names = tuple(names) or _sorted_names(texts)
        return names, {split: _positions(values, names) for split, values in texts.items()}
    largest = max((pc.max(v).as_py() for v in plain.values() if pc.count(v).as_py()), default=-1)
    if largest < 0:
        raise DataError(f"{key}: no example has a label.")
    if not names and largest >= _MAX_CLASSES:
        raise DataError(
            f"{key}: there is the class id {largest:,}; it must be below {_MAX_CLASSES:,}."
        )
    names = tuple(names) or tuple(map(str, range(largest + 1)))
    return names, {split: _ids(values, len(names)) for split, values in plain.items()}


def _plain(values: pa.ChunkedArray, key: str) -> pa.ChunkedArray:
    """Returns labels as int64 or as text."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        values = pc.cast(values, kind)
    if pa.types.is_boolean(kind):
        return pc.cast(values, pa.string())
    try:
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return pc.cast(values, pa.int64())  # Refuses fractions.
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return pc.cast(values, pa.string())
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{key} is not a class label: {error}.") from error
    raise ConfigError(
        f"{key} is of the type {kind}: a label must be an integer or the name of a class."
    )


def _are_integers(texts: pa.ChunkedArray) -> bool:
    return pc.all(pc.match_substring_regex(texts, _INTEGER)).as_py() is not False


def _sorted_names(texts: Mapping[str, pa.ChunkedArray]) -> tuple[str, ...]:
    names = {name for values in texts.values() for name in pc.unique(values).to_pylist()}
    return tuple(sorted(names - {None}))


def _positions(values: pa.ChunkedArray, names: Sequence[str]) -> Int32[np.ndarray, "n"]:
    positions = pc.index_in(values, value_set=pa.array(names, pa.string()))
    return pc.fill_null(positions, NO_LABEL).to_numpy().astype(np.int32)


def _ids(values: pa.ChunkedArray, num_classes: int) -> Int32[np.ndarray, "n"]:
    ids = pc.fill_null(values, NO_LABEL).to_numpy()
    return np.where((ids >= 0) & (ids < num_classes), ids, NO_LABEL).astype(np.int32)
