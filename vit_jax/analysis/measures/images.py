"""From what a user calls images to a stream of prepared batches."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float32
from PIL import Image

from vit_jax.analysis.measures.arguments import whole_number
from vit_jax.config import base_config, freeze
from vit_jax.data.base import Example, Source
from vit_jax.data.batches import AUTOMATIC, LoaderOptions
from vit_jax.data.blocks import Transform
from vit_jax.data.color import Normalize, ValueRange
from vit_jax.data.evaluated import open_split
from vit_jax.data.files import Files, find_images
from vit_jax.data.listing import is_image
from vit_jax.data.locate import locate_data
from vit_jax.data.op import Op
from vit_jax.data.pipeline import eval_batches
from vit_jax.data.subset import random_subset
from vit_jax.errors import ConfigError, DataError
from vit_jax.pretrained.consistency import check_images
from vit_jax.pretrained.model import Pretrained
from vit_jax.pretrained.run_checkpoint import one_device
from vit_jax.telemetry.notes import note

BATCH_SIZE = 32
_FEW_IMAGES = 2000  # The start of loader processes takes longer than to load so few.


@dataclasses.dataclass(frozen=True)
class Batch:
    """Prepared images.

    Attributes:
      images: float32 [rows, height, width, channels], on the device; the rows of images that cannot
        be read, and those that fill the last batch, are zeros.
      labels: int [rows]; zeros of images without labels.
      good: bool [rows], whether a row is an image.
    """

    images: Array
    labels: np.ndarray
    good: np.ndarray


@dataclasses.dataclass(frozen=True)
class ImageStream:
    """Images that can be gone over several times, in the same order.

    Attributes:
      source: the images as they are stored.
      transform: prepares one.
      has_labels: whether the source's labels are of classes.
      bad: {location: message} of images that could not be read so far.
    """

    source: Source
    transform: Transform
    has_labels: bool
    bad: dict[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.source)

    def batches(self, batch_size: int = BATCH_SIZE) -> Iterator[Batch]:
        """Yields all images in batches of this size; the last one is filled up.

        Images that cannot be read are left out, with a note for each.

        Raises:
          ConfigError: `batch_size` is not a positive whole number.
          DataError: no image can be read.
        """
        batch_size = whole_number("batch_size", batch_size)
        sharding = NamedSharding(one_device(), PartitionSpec(("data", "fsdp")))
        empty = True
        with eval_batches(
            self.source,
            self.transform,
            batch_size=min(batch_size, len(self)),
            sharding=sharding,
            options=LoaderOptions(workers=0 if len(self) < _FEW_IMAGES else AUTOMATIC),
            on_bad=self._on_bad,
        ) as batches:
            for batch in batches:
                good = np.asarray(batch["weight"]) > 0
                if good.any():
                    empty = False
                    yield Batch(batch["image"], np.asarray(batch["label"]), good)
        if empty:
            raise DataError(
                f"None of the {len(self):,} images can be read: {next(iter(self.bad.values()))}"
            )

    def first(self, count: int) -> Float32[np.ndarray, "n height width channels"]:
        """Returns the first prepared images that can be read, at most `count`."""
        images: list[np.ndarray] = []
        for batch in self.batches(min(count, BATCH_SIZE)):
            images += list(np.asarray(batch.images)[batch.good])
            if len(images) >= count:
                break
        return np.stack(images[:count])

    def prepared_for(self, pretrained: Pretrained) -> "ImageStream":
        """Returns the same images prepared by a model's preprocessing; prepared ones stay."""
        transform = pretrained.preprocess.transform
        if self.transform is _as_prepared:
            first = self.source[0]["image"]
            check_images(np.asarray(first)[None], pretrained.config)
            return self
        if isinstance(self.transform, _PrepareInMemory):
            transform = _PrepareInMemory(pretrained.preprocess)
        return dataclasses.replace(self, transform=transform, bad={})

    def _on_bad(self, example: int, message: str) -> None:
        location = self.source.describe(example)
        if location not in self.bad:
            self.bad[location] = message.removeprefix(f"{location}: ")
            note(f"{location} is left out: {self.bad[location]}")


class _InMemory(Source):
    """Images in memory: paths, Pillow images, pixels or prepared images."""

    def __init__(self, images: Sequence[Any] | np.ndarray):
        self.name, self.split, self.class_names = "images", "", ("",)
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        return {"image": self._images[index], "label": 0}

    def describe(self, index: int) -> str:
        image = self._images[index]
        return os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {index}"


@dataclasses.dataclass(frozen=True)
class _PrepareInMemory:
    """Prepares an image in memory with a model's preprocessing."""

    preprocess: Any

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return {**example, "image": self.preprocess(example["image"])[0]}


def _as_prepared(example: Example, rng: np.random.Generator) -> Example:
    return example


Images = Any  # See `open_images`.


def open_images(
    pretrained: Pretrained, images: Images, *, num_images: int | None = None
) -> ImageStream:
    """Opens images for a model.

    Args:
      pretrained: its preprocessing prepares the images.
      images: a folder of images, with or without a folder for each class; the path of an image; any
        other data that `vit_jax.data.locate.locate_data` accepts, such as "digits" or
        "cifar10:test"; Pillow images, uint8 pixels or paths, or a list of these; or images that are
        prepared already, float32 [n, height, width, channels]; or a stream.
      num_images: a random choice of this many (the same in each call); None: all.

    Raises:
      ConfigError: `num_images` is not a positive whole number, prepared images are of another
        size, or channels come before height and width.
      DataError: there are no images.
    """
    if num_images is not None:
        num_images = whole_number("num_images (None: all)", num_images)
    stream = images if isinstance(images, ImageStream) else _open(pretrained, images)
    if not len(stream):
        raise DataError("There are no images.")
    if num_images is None or num_images >= len(stream):
        return stream
    source = random_subset(stream.source, num_images, seed=0)
    return dataclasses.replace(stream, source=source)


def _open(pretrained: Pretrained, images: Images) -> ImageStream:
    preprocess = pretrained.preprocess
    if isinstance(images, str | os.PathLike):
        path = os.path.expanduser(os.fspath(images))
        if not is_image(path):
            return _open_data(path, preprocess.transform)
        images = [path]
    if isinstance(images, np.ndarray | jax.Array) and jnp.issubdtype(images.dtype, jnp.floating):
        check_images(images, pretrained.config)
        _note_unprepared(images, preprocess.ops[-1])
        return ImageStream(
            _InMemory(np.asarray(images, np.float32)), _as_prepared, has_labels=False
        )
    if isinstance(images, jax.Array):
        images = np.asarray(images)
    if isinstance(images, np.ndarray):
        _check_channels(images, pretrained.config.channels)
    if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4):
        images = [images]
    if all(isinstance(image, str | os.PathLike) for image in images):
        files = Files(find_images([os.fspath(image) for image in images]), class_names=("",))
        return ImageStream(files, preprocess.transform, has_labels=False)
    return ImageStream(_InMemory(images), _PrepareInMemory(preprocess), has_labels=False)


def _note_unprepared(images: np.ndarray | jax.Array, last: Op) -> None:
    """Shows a note of floating-point images whose values are those of pixels divided by 255."""
    if isinstance(last, ValueRange):
        low, high = last.vmin, last.vmax
    elif isinstance(last, Normalize):
        mean, std = np.array(last.mean), np.array(last.std)
        low, high = float((-mean / std).min()), float(((1 - mean) / std).max())
    else:
        return
    if low < 0 and images.min() >= 0 and 0 < images.max() <= 1:
        note(
            "the images look unprepared: their values lie within 0 and 1, the model's "
            f"preprocessing gives {low:.2g} to {high:.2g}: model.preprocess(images) prepares pixels"
        )


def _check_channels(pixels: np.ndarray, channels: int) -> None:
    """Raises ConfigError for pixels in PyTorch's order, channels before height and width."""
    if pixels.ndim in (3, 4) and pixels.shape[-3] in (1, 3) and pixels.shape[-1] > 4:
        order = (0, 2, 3, 1) if pixels.ndim == 4 else (1, 2, 0)
        many = "n, " if pixels.ndim == 4 else ""
        raise ConfigError(
            f"The images have the shape {list(pixels.shape)}: channels are last: "
            f"[{many}height, width, {channels}]. Write images.transpose{order}."
        )


def _open_data(text: str, transform: Transform) -> ImageStream:
    """Opens a folder or data set; a folder that is not one for each class has no labels."""
    try:
        keys = locate_data(text)
    except DataError:
        if not os.path.isdir(text):
            raise
        return ImageStream(Files(find_images([text]), class_names=("",)), transform, False)
    config = base_config()
    split = keys.pop("split", "")
    config.data.update(keys)
    source = open_split(freeze(config).data, split)
    return ImageStream(source, transform, has_labels=not source.multi_label)
