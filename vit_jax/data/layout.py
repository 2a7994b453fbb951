"""How a folder of images is divided, for the recipes that train on one: splits and size.

A recipe looks at the folder before the run begins, so that splits and batch size need no flag; what
it finds is in the run's config.json. A folder that cannot be read is left to the run's own error.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator

VALIDATION = ("val", "valid", "validation")
SPLITS = ("train", *VALIDATION, "test")
_MOST_COUNTED = 10_000  # Counting more files would take seconds, and changes nothing.


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which splits to train and to evaluate on.

    Attributes:
      train: the split to train on.
      evals: splits to evaluate, by name: "val", for choices; "test".
      num_files: number of files of the training split; counted up to 10,000.
    """

    train: str
    evals: dict[str, str]
    num_files: int


def layout_of(root: str) -> Layout:
    """Returns the layout of ROOT/SPLIT/CLASS/..., or of ROOT/CLASS/..., whose "test" is a hash's.

    Validation folders may be called val, valid or validation. If there is no folder but train, a
    fifth of it is for validation.
    """
    if not root:
        return Layout("train", {"test": "test"}, 0)
    root = os.path.expanduser(root)
    splits = [name for name in SPLITS if any(_folders(os.path.join(root, name)))]
    if "train" not in splits:
        return Layout("train", {"test": "test"}, _count(root))
    validation = next((name for name in splits if name in VALIDATION), None)
    named = {"val": validation, "test": "test" if "test" in splits else None}
    evals = {name: split for name, split in named.items() if split}
    num_files = _count(os.path.join(root, "train"))
    if not evals:
        return Layout("train[:80%]", {"val": "train[80%:]"}, num_files)
    return Layout("train", evals, num_files)


def _folders(path: str) -> Iterator[str]:
    try:
        with os.scandir(path) as entries:
            yield from (e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError:
        return


def _count(path: str) -> int:
    files = (name for _, _, names in os.walk(path) for name in names if not name.startswith("."))
    return sum(1 for _ in itertools.islice(files, _MOST_COUNTED))
