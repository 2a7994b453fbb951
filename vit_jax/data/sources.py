"""Opens a data set by its config: the bundled digits, Fashion-MNIST, TFDS or a folder of images.

The file of a source is imported only when that source is opened: importing TFDS is slow.
"""

from ml_collections import ConfigDict

from vit_jax.data.base import Example, Source
from vit_jax.data.subset import select_classes
from vit_jax.errors import ConfigError, did_you_mean

__all__ = ["SOURCES", "Example", "Source", "open_source"]

SOURCES = ("digits", "fashion_mnist", "tfds", "image_folder")


def open_source(data_config: ConfigDict, *, split: str) -> Source:
    """Opens one split of the configured data set, of the configured classes.

    Args:
      data_config: `config.data`; of its keys, source, name, data_dir, manual_dir, image_key,
        label_key and classes are used.
      split: a split's name, or a slice of it such as "train[:90%]".

    Returns:
      The source, with at least one example.

    Raises:
      ConfigError: unknown source, or a missing key.
      DataError: the data are missing, broken or have no such split.
    """
    return select_classes(_open(data_config, split=split), data_config.classes)


def _open(c: ConfigDict, *, split: str) -> Source:
    match c.source:
        case "digits":
            from vit_jax.data.digits import Digits

            return Digits(split=split)
        case "fashion_mnist":
            from vit_jax.data.fashion_mnist import open_fashion_mnist

            return open_fashion_mnist(split=split, data_dir=c.data_dir, manual_dir=c.manual_dir)
        case "tfds":
            from vit_jax.data.tfds_source import TfdsSource, find_builder

            if not c.name:
                raise ConfigError('data.source="tfds" needs data.name, such as "cifar10".')
            builder = find_builder(c.name, data_dir=c.data_dir)
            return TfdsSource(builder, split=split, image_key=c.image_key, label_key=c.label_key)
        case "image_folder":
            from vit_jax.data.image_folder import ImageFolder

            if not c.data_dir:
                raise ConfigError(
                    'data.source="image_folder" needs data.data_dir, the root folder. Pass '
                    "--config.data.data_dir=FOLDER or --config=image_folder:root=FOLDER."
                )
            return ImageFolder(c.data_dir, split=split)
    raise ConfigError(f'Unknown data.source "{c.source}". {did_you_mean(c.source, SOURCES)}')
