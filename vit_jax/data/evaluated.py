"""Opens the split of an evaluation."""

from ml_collections import FrozenConfigDict

from vit_jax.config import CLASSIFICATION
from vit_jax.data.base import VALIDATION_SPLITS, Source
from vit_jax.data.sources import open_source
from vit_jax.errors import DataError

# Splits to evaluate, the first that there is: the labels of ImageNet's test split are not public.
EVALUATED = ("validation", *(name for name in VALIDATION_SPLITS if name != "validation"), "test")
ALL = "all"  # Of data that are not divided into splits, see `vit_jax.data.base`.
_UNDIVIDED = ("image_folder", "table", "webdataset", "hf_datasets")  # Sources that may be.


def open_split(data: FrozenConfigDict, split: str) -> Source:
    """Opens a split; "" is the usual one to evaluate.

    That is all of data that are not divided into splits; else validation, val, valid or test, the
    first that there is.

    Args:
      data: `config.data`.
      split: a split or a slice of it, or "".

    Raises:
      DataError: there is no such split, or the data cannot be read.
    """
    if split:
        return open_source(data, split=split)
    candidates = (ALL, *EVALUATED) if data.source in _UNDIVIDED else EVALUATED
    errors = []
    for name in candidates:
        try:
            return open_source(data, split=name)
        except DataError as error:
            errors.append(error)
    raise errors[-1]


def first_split(config: FrozenConfigDict) -> str:
    """Returns the first split that a run's config classifies; "": none."""
    entries = config.evals.values()
    return next((entry.split for entry in entries if entry.type == CLASSIFICATION), "")


def describe_division(source: Source, *, test_fraction: float) -> str:
    """Returns which images a split of data that are not divided has; "" of other data.

    Args:
      source: the split.
      test_fraction: `config.data.test_fraction`.
    """
    if not source.divided_from:
        return ""
    if source.split == ALL:
        return (
            f"{source.name} has no splits of its own: all {len(source):,} images are evaluated. To "
            "compare with a run on these data, take those that it was not trained on: split test "
            "(--split=test)"
        )
    return (
        f"{source.name} has no splits of its own: {source.split} is {len(source):,} of its "
        f"{source.divided_from:,} images (data.test_fraction={test_fraction:g}), the same for "
        f"every model. Split {ALL} (--split={ALL}) has all"
    )
