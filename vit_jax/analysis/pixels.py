"""Checks images that are to be drawn, and converts them to 8 bits."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, UInt8

from vit_jax.errors import DataError

# Images of one size, or a list of images of any sizes.
Images = np.ndarray | Array | Sequence[np.ndarray | Array]

_WANTED = (
    "Give the decoded images: uint8 from 0 to 255, [n, h, w, c] or a list of [h, w, c], c = 1 "
    "(grey) or 3 (RGB)."
)


def as_uint8(images: Images) -> list[UInt8[np.ndarray, "_ _ _"]]:
    """Returns images of 8 bits; floating-point values from 0 to 1 are scaled to 0 to 255.

    Raises:
      DataError: an image has another shape or dtype, no pixels, or floating-point values that are
        not from 0 to 1, as those of `model.preprocess`.
    """
    return [_as_uint8(np.asarray(image), where=f"images[{i}]") for i, image in enumerate(images)]


def _as_uint8(image: np.ndarray, *, where: str) -> np.ndarray:
    if image.ndim != 3 or image.shape[-1] not in (1, 3) or not image.size:
        raise DataError(f"{where} has the shape {list(image.shape)}. {_WANTED}")
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise DataError(f"{where} has the dtype {image.dtype}. {_WANTED}")
    low, high = image.min(), image.max()
    if not (low >= 0 and high <= 1):  # Also if there is a NaN.
        raise DataError(
            f"{where} has values from {low:.3g} to {high:.3g}, as normalised images have: "
            f"floating-point values are drawn from 0 to 1. {_WANTED}"
        )
    return np.rint(image * 255).astype(np.uint8)
