"""The 1,797 handwritten digits of scikit-learn: real images that need no download."""

import importlib.metadata

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from vit_jax.data.base import Example, Source, check_split, split_range
from vit_jax.errors import DataError

_FILE = "sklearn/datasets/data/digits.csv.gz"  # A line for each image: 64 levels and its class.


def from_config(data_config: ConfigDict, *, split: str) -> "Digits":
    """Opens a split of the digits; no key of `config.data` is used."""
    del data_config
    return Digits(split=split)


class Digits(Source):
    """Handwritten digits of the UCI repository (Alpaydin and Kaynak, 1998), 8x8, in 10 classes.

    The split is fixed: every fifth image of each class, in the file's order, is in "test". So
    "train" has 1,442 images and "test" 355, of which each class has 34 to 36. Levels 0..16 are
    scaled to 0..255.
    """

    name = "digits"
    class_names = tuple("0123456789")
    channels = 1

    def __init__(self, *, split: str):
        """Loads the images of one split.

        Args:
          split: "train" or "test", or a slice of one.

        Raises:
          DataError: there is no such split, or scikit-learn lacks the file.
        """
        self.split = split
        name = check_split(split, splits=("train", "test"), where=self.name)
        table = _read_table()
        levels, labels = table[:, :-1].reshape(-1, 8, 8, 1), table[:, -1]
        # Position of each image among the images of its class.
        rank = np.empty(len(labels), np.int64)
        for label in range(10):
            rank[labels == label] = np.arange(np.sum(labels == label))
        (ids,) = np.nonzero((rank % 5 == 4) == (name == "test"))
        positions = split_range(split, num_examples=len(ids))
        ids = ids[positions.start : positions.stop]
        self._images = np.round(levels[ids] * (255 / 16)).astype(np.uint8)
        self._labels = labels[ids]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        return {"image": self._images[index], "label": int(self._labels[index])}


def _read_table() -> UInt8[np.ndarray, "1797 65"]:
    """Reads the file itself: importing scikit-learn takes a second of the start of a run.

    Raises:
      DataError: this version of scikit-learn has no such file.
    """
    path = importlib.metadata.distribution("scikit-learn").locate_file(_FILE)
    try:
        return np.loadtxt(str(path), np.uint8, delimiter=",")
    except FileNotFoundError as error:
        raise DataError(
            f"scikit-learn {importlib.metadata.version('scikit-learn')} has no file {_FILE}: "
            "install version 1.9, or use another data set."
        ) from error
