"""Opens the split of an evaluation."""

from ml_collections import FrozenConfigDict

from vit_jax.data.base import VALIDATION_SPLITS, Source
from vit_jax.data.sources import open_source
from vit_jax.errors import DataError

# Splits to evaluate, the first that there is: the labels of ImageNet's test split are not public.
EVALUATED = ("validation", *(name for name in VALIDATION_SPLITS if name != "validation"), "test")
ALL = "all"  # Of data that are not divided into splits, see `vit_jax.data.base`.


def open_split(data: FrozenConfigDict, split: str) -> Source:
    """Opens a split; "" is the usual one to evaluate.

    That is validation, val, valid or test, the first that there is; so of data that are not divided
    the same test split for every model, and those that were trained on the rest can be compared
    with others.

    Args:
      data: `config.data`.
      split: a split or a slice of it, or "".

    Raises:
      DataError: there is no such split, or the data cannot be read.
    """
    if split:
        return open_source(data, split=split)
    errors = []
    for name in EVALUATED:
        try:
            return open_source(data, split=name)
        except DataError as error:
            errors.append(error)
    raise errors[-1]


def describe_division(source: Source, *, test_fraction: float) -> str:
    """Returns which images the split of data that are not divided has; "" for others, and for all.

    Args:
      source: the split.
      test_fraction: `config.data.test_fraction`.
    """
    if not source.divided_from or source.split == ALL:
        return ""
    return (
        f"{source.name} has no splits of its own: {source.split} is {len(source):,} of its "
        f"{source.divided_from:,} images (data.test_fraction={test_fraction:g}), the same for "
        f"every model. --split={ALL} has all, also those that runs are trained on"
    )
