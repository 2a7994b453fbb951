"""Opens a data set by its config.

The file of a source is imported only when that source is opened: importing TFDS is slow.
"""

import importlib

from ml_collections import ConfigDict

from vit_jax.data.base import Example, Source
from vit_jax.data.subset import select_classes
from vit_jax.errors import ConfigError, did_you_mean

__all__ = ["SOURCES", "Example", "Source", "open_source"]

# data.source -> the file of vit_jax.data with its `from_config(data_config, *, split)`.
SOURCES = {
    "digits": "digits",
    "fashion_mnist": "fashion_mnist",
    "tfds": "tfds_source",
    "image_folder": "image_folder",
    "hf_datasets": "hf_datasets",
    "table": "table_source",
    "webdataset": "webdataset",
}


def open_source(data_config: ConfigDict, *, split: str) -> Source:
    """Opens one split of the configured data set, of the configured classes.

    Args:
      data_config: `config.data`; of its keys, source, name, data_dir, manual_dir, image_key,
        label_key, follow_links and classes are used.
      split: a split's name, or a slice of it such as "train[:90%]".

    Returns:
      The source, with at least one example.

    Raises:
      ConfigError: unknown source, or a missing key.
      DataError: the data are missing, broken or have no such split.
    """
    if data_config.source not in SOURCES:
        raise ConfigError(
            f'Unknown data.source "{data_config.source}". '
            f"{did_you_mean(data_config.source, SOURCES)}"
        )
    module = importlib.import_module(f"vit_jax.data.{SOURCES[data_config.source]}")
    return select_classes(module.from_config(data_config, split=split), data_config.classes)
