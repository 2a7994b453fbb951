"""What a user calls images, in memory or in files."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from PIL import Image

from vit_jax.errors import DataError

# A path, a Pillow image, or uint8 pixels [h, w] or [h, w, c].
ImageInput = str | os.PathLike | Image.Image | np.ndarray | Array
# Also several of these, of any sizes, or uint8 pixels [n, h, w, c].
ImageInputs = ImageInput | Sequence[ImageInput]


def as_list(images: ImageInputs) -> Sequence[Any] | np.ndarray:
    """Returns the images one by one, of whatever form; pixels are NumPy arrays.

    Raises:
      DataError: there is none.
    """
    if isinstance(images, jax.Array):
        images = np.asarray(images)
    if isinstance(images, np.ndarray):
        images = images if images.ndim == 4 else [images]
    elif isinstance(images, str | os.PathLike | Image.Image):
        images = [images]
    if not len(images):
        raise DataError("No image was given: name at least one.")
    return images


def name_of(image: ImageInput, index: int) -> str:
    """Returns the path of an image, or "image INDEX" of one in memory."""
    if isinstance(image, str | os.PathLike):
        return os.fsencode(image).decode(errors="replace")
    return f"image {index}"
