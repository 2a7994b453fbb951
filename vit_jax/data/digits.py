"""The 1,797 handwritten digits of scikit-learn: real images that need no download."""

import numpy as np
from ml_collections import ConfigDict
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from vit_jax.data.base import Example, Source, check_split, split_range


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
          DataError: there is no such split.
        """
        self.split = split
        name = check_split(split, splits=("train", "test"), where=self.name)
        digits = load_digits()
        assert isinstance(digits, Bunch)  # With return_X_y=True it would be a tuple.
        labels = digits.target
        # Position of each image among the images of its class.
        rank = np.empty(len(labels), np.int64)
        for label in range(10):
            rank[labels == label] = np.arange(np.sum(labels == label))
        (ids,) = np.nonzero((rank % 5 == 4) == (name == "test"))
        positions = split_range(split, num_examples=len(ids))
        ids = ids[positions.start : positions.stop]
        self._images = np.round(digits.images[ids, :, :, None] * (255 / 16)).astype(np.uint8)
        self._labels = labels[ids]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        return {"image": self._images[index], "label": int(self._labels[index])}
