"""How many examples and classes the data of a config has, also where the data is not here."""

import re

from ml_collections import FrozenConfigDict

from vit_jax.data.sources import open_source
from vit_jax.data.subset import num_examples
from vit_jax.errors import ConfigError, VitJaxError

# TFDS name, or the source if it has one data set -> (examples by split, classes). ImageNet:
# Russakovsky et al. 2015, 1409.0575; ImageNet-21k, the release of fall 2011, with one split as
# configs/vit_i21k.py describes it.
_KNOWN = {
    "imagenet2012": ({"train": 1_281_167, "validation": 50_000}, 1000),
    "imagenet21k": ({"full": 14_197_122}, 21_843),
    "cifar10": ({"train": 50_000, "test": 10_000}, 10),
    "cifar100": ({"train": 50_000, "test": 10_000}, 100),
    "fashion_mnist": ({"train": 60_000, "test": 10_000}, 10),  # Opening it would download it.
}


def data_size(config: FrozenConfigDict, *, examples: int = 0, classes: int = 0) -> tuple[int, int]:
    """Returns the numbers of training examples in an epoch and of classes of the model's head.

    Args:
      config: the config of the run.
      examples: replaces the number of examples that the data has, unless it is 0.
      classes: replaces the number of classes of data and head, unless it is 0.

    Raises:
      ConfigError: a number is unknown here.
    """
    data = config.data
    examples = examples or data.examples
    head = classes or config.model.num_classes or len(data.classes)
    if not (examples and head):
        known_examples, known_classes = _known(config)
        of_data = classes or len(data.classes) or known_classes
        examples = examples or num_examples(data, whole=known_examples, num_classes=of_data)
        head = head or known_classes
    missing = ["--examples (in an epoch)"] * (not examples) + ["--classes"] * (not head)
    if missing:
        raise ConfigError(
            f"The data of this config, {data.source} {data.name or data.data_dir}, is not here: "
            f"give {' and '.join(missing)}."
        )
    return examples, head


def published_size(data: FrozenConfigDict) -> tuple[int, int]:
    """Returns the numbers of examples and classes of a well-known data set; zeros: unknown.

    Args:
      data: `config.data`.
    """
    name = data.name.partition(":")[0] if data.source == "tfds" else data.source
    if name not in _KNOWN or data.classes:
        return 0, 0
    splits, classes = _KNOWN[name]
    return _of_split(data.split, splits), classes


def _known(config: FrozenConfigDict) -> tuple[int, int]:
    """Returns the numbers of a well-known data set, or of the data that is here; or zeros."""
    data = config.data
    if all(published := published_size(data)):
        return published
    try:
        source = open_source(data, split=data.split)
    except VitJaxError:
        return 0, 0
    return len(source), source.num_classes


def _of_split(split: str, sizes: dict[str, int]) -> int:
    """Returns the examples of a split such as "train[:99%]" or "full[51200:]"; 0: unknown."""
    match = re.fullmatch(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if not match or match[1] not in sizes:
        return 0
    size = sizes[match[1]]

    def position(text: str | None, default: int) -> int:
        if not text:
            return default
        value = round(size * int(text[:-1]) / 100) if text.endswith("%") else int(text)
        return max(0, value + size) if value < 0 else min(value, size)

    return max(0, position(match[3], size) - position(match[2], 0))
