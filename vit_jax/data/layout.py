"""Finds the data of a recipe's argument `root`: the source, its splits and its size.

A recipe looks at the data before the run begins, so that source, splits and batch size need no
flag; what it finds is in the run's config.json. What cannot be read is left to the run's own error.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from vit_jax.data.base import VALIDATION_SPLITS
from vit_jax.data.locate import locate_data
from vit_jax.data.sources import open_source
from vit_jax.errors import DataError

_MOST_COUNTED = 10_000  # Counting more files would take seconds, and changes nothing.


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which splits to train and to evaluate on.

    Attributes:
      train: the split to train on.
      evals: splits to evaluate, by name: "val", for choices; "test".
      num_examples: size of `train`; files are counted up to 10,000.
    """

    train: str
    evals: dict[str, str]
    num_examples: int


def find_data(data_config: ConfigDict, root: str) -> Layout:
    """Sets the keys of `config.data` that open what `root` names, and returns its layout.

    Validation splits may be called val, valid or validation. A folder of images without split
    folders has "test", chosen by a hash. If there is only train, a fifth of it is for validation.

    Args:
      data_config: `config.data`; changed.
      root: a folder of images, or what else `vit_jax.data.locate.locate_data` finds.

    Raises:
      ConfigError: it may mean several things.
      DataError: there is no data set of the name hf:... or tfds:....
    """
    data_config.source, data_config.data_dir = "image_folder", root
    try:
        settings = locate_data(root) if root else {}
    except DataError:
        if root.startswith(("hf:", "tfds:")):
            raise
        settings = {}
    data_config.update(settings)
    if data_config.source != "image_folder":
        return _layout(lambda split: _size(data_config, split), flat=False, train=data_config.split)
    folder = os.path.expanduser(data_config.data_dir)
    flat = not any(_folders(os.path.join(folder, "train")))
    return _layout(lambda split: _count(os.path.join(folder, "" if flat else split)), flat=flat)


def _layout(size: Callable[[str], int], *, flat: bool, train: str = "train") -> Layout:
    """Returns the layout, given a function from a split to its size (0: there is none)."""
    if flat:
        return Layout(train, {"test": "test"}, size(train))
    validation = next((name for name in VALIDATION_SPLITS if size(name)), None)
    named = {"val": validation, "test": "test" if size("test") else None}
    evals = {name: split for name, split in named.items() if split and split != train}
    if not evals:
        return Layout(f"{train}[:80%]", {"val": f"{train}[80%:]"}, size(train) * 4 // 5)
    return Layout(train, evals, size(train))


def _size(data_config: ConfigDict, split: str) -> int:
    try:
        return len(open_source(data_config, split=split))
    except DataError:
        return 0


def _folders(path: str) -> Iterator[str]:
    try:
        with os.scandir(path) as entries:
            yield from (e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError:
        return


def _count(path: str) -> int:
    files = (name for _, _, names in os.walk(path) for name in names if not name.startswith("."))
    return sum(1 for _ in itertools.islice(files, _MOST_COUNTED))
