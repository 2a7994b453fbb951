"""The one rule that divides data without splits of their own into "train" and "test".

The division is stratified: the examples of each class are put in the order of a hash, and the first
round(fraction * n) of n are in "test". So the classes have equal shares in both, the same data are
always divided in the same way, and an added example moves at most one other of its class.
"""

import hashlib
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from vit_jax.config.base import TEST_FRACTION
from vit_jax.data.base import UNDIVIDED_SPLITS, check_split
from vit_jax.errors import DataError
from vit_jax.telemetry.notes import note

__all__ = ["TEST_FRACTION", "in_test", "listed", "undivided_rows", "uniform_hash"]


def undivided_rows(
    labels: Int[np.ndarray, " n"],
    hashes: Float[np.ndarray, " n"],
    *,
    split: str,
    fraction: float,
    class_names: Sequence[str],
    where: str,
) -> Int64[np.ndarray, " m"]:
    """Returns the rows of "train", "test" or "all" of data that are not divided, ascending.

    A note names the classes of a single example, which is in "train".

    Args:
      labels: class ids; a negative one is that of an example without a class.
      hashes: of the examples, uniform in [0, 1).
      split: a split, or a slice of one, which is ignored.
      fraction: `config.data.test_fraction`, in (0, 1).
      class_names: by class id.
      where: name of the data set, for messages.

    Raises:
      DataError: there is no such split, or no class has two examples and "test" would be empty.
    """
    name = check_split(split, splits=UNDIVIDED_SPLITS, where=where)
    if name == "all":
        return np.arange(len(labels))
    counts = np.bincount(labels[labels >= 0], minlength=len(class_names))
    if counts.max(initial=0) < 2:
        if name == "test":
            raise DataError(
                f'{where}: no class has two images, so all are in "train" and "test" is empty. Add '
                "images, at least two of a class, or evaluate on the split train."
            )
    elif single := [class_names[int(i)] for i in np.flatnonzero(counts == 1)]:
        note(
            f'{where}: a class of a single image has it in "train", and none in "test": '
            f"{listed(single)}."
        )
    return np.flatnonzero(in_test(labels, hashes, fraction=fraction) == (name == "test"))


def in_test(
    labels: Int[np.ndarray, " n"], hashes: Float[np.ndarray, " n"], *, fraction: float
) -> Bool[np.ndarray, " n"]:
    """Returns which examples are in "test": of each class, those with the smallest hashes.

    They are round(fraction * n) of n, but at least one and not all; of a single one, none.
    """
    order = np.lexsort((hashes, labels))  # By class, then by hash; equal hashes keep their order.
    _, starts, class_of, counts = np.unique(
        labels[order], return_index=True, return_inverse=True, return_counts=True
    )
    tested = np.clip(np.rint(fraction * counts), 1, np.maximum(counts - 1, 1))
    tested[counts == 1] = 0
    ranks = np.arange(len(order)) - starts[class_of]
    result = np.zeros(len(order), bool)
    result[order] = ranks < tested[class_of]
    return result


def uniform_hash(text: str) -> float:
    """Returns a hash of the text that is uniform in [0, 1)."""
    digest = hashlib.blake2b(os.fsencode(text), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def listed(names: Sequence[str]) -> str:
    """Returns the first five names in quotes, and the number of the others."""
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more
