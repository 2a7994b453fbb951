"""Resizes images as in the code of published models: kernel, antialiasing, rounding.

In all of them the centre of pixel i is at i + 1/2; otherwise they differ. Pillow, torchvision and
Hugging Face widen the kernel when an image shrinks (antialiasing) and round to the nearest of 256
levels; vision_transformer interpolates between the 2x2 nearest pixels at every scale and keeps
fractions; big_vision does the same, or averages areas, and rounds down.
"""

import functools
import math

import numpy as np
from jaxtyping import Float, Int, Num
from PIL import Image

from vit_jax.data.decode import from_pillow, to_pillow
from vit_jax.errors import DataError

METHODS = ("nearest", "bilinear", "bicubic", "area")
ROUNDINGS = ("nearest", "down", "none")

MAX_SIDE = 2**17  # Pixels: the weights for longer sides would fill the memory.
_MAX_INTERMEDIATE_PIXELS = 2**26  # After the first axis is resized.

_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resize(
    image: Num[np.ndarray, "h w c"],
    size: tuple[int, int],
    *,
    method: str = "bilinear",
    antialias: bool = True,
    rounding: str = "nearest",
) -> Num[np.ndarray, "h2 w2 c"]:
    """Resizes to `size`, ignoring the aspect ratio.

    Args:
      image: uint8, or float32 in 0..255.
      size: (height, width) of the result, in pixels.
      method: nearest, bilinear, bicubic (Keys, a = -1/2) or area (mean over the pixel's area).
      antialias: bilinear and bicubic: widen the kernel by the scale when the image shrinks.
      rounding: of a uint8 image: nearest; down (as big_vision's cast); none: float32 in 0..255.

    Returns:
      float32 if `image` is float32 or `rounding` is none; otherwise uint8.

    Raises:
      DataError: a side is longer than `MAX_SIDE`.
    """
    if max(image.shape[:2]) > MAX_SIDE:
        raise DataError(
            f"An image of {image.shape[0]:,} x {image.shape[1]:,} pixels (height x width): no side "
            f"may have more than {MAX_SIDE:,}. Crop it beforehand."
        )
    is_float = image.dtype != np.uint8 or rounding == "none"
    if image.shape[:2] == size:
        return image.astype(np.float32) if is_float else image
    if not is_float and rounding == "nearest" and antialias and method in _PILLOW:
        # Pillow's implementation is several times as fast.
        return from_pillow(to_pillow(image).resize((size[1], size[0]), _PILLOW[method]))
    # float64 for rounding down: in float32 many a 100.0 would become 99.
    dtype, out = np.float64 if rounding == "down" else np.float32, image
    # Rows before columns, unless the intermediate image of a very wide image would be too large.
    for axis in (0, 1) if size[0] * image.shape[1] <= _MAX_INTERMEDIATE_PIXELS else (1, 0):
        out = _resample(out, size[axis], axis=axis, method=method, antialias=antialias, dtype=dtype)
    if is_float:
        return out.astype(np.float32)
    # 1e-9 is far above float64's errors and far below any fraction that matters.
    return np.clip(out + (0.5 if rounding == "nearest" else 1e-9), 0, 255).astype(np.uint8)


def _resample(
    image: Num[np.ndarray, "h w c"],
    length: int,
    *,
    axis: int,
    method: str,
    antialias: bool,
    dtype: type[np.floating],
) -> Float[np.ndarray, "h2 w2 c"]:
    indices, weights = _taps(image.shape[axis], length, method, antialias)
    weights = weights.astype(dtype)[..., None]
    if axis == 0:
        weights = weights[..., None]
    return functools.reduce(
        np.add,
        (image.take(indices[:, k], axis=axis) * weights[:, k] for k in range(indices.shape[1])),
    )


@functools.lru_cache(maxsize=256)
def _taps(
    length_in: int, length_out: int, method: str, antialias: bool
) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """Returns the k input pixels of each output pixel along one axis, and their weights (sum 1)."""
    scale = length_in / length_out
    left = np.arange(length_out)[:, None] * scale  # Edge of each output pixel.
    centre = left + scale / 2
    stretch = max(scale, 1.0) if antialias else 1.0  # Of the kernel, for bilinear and bicubic.
    if method == "nearest":
        first, count = np.floor(centre), 1
    elif method == "area":
        first, count = np.floor(left), math.ceil(scale) + 1
    else:
        support = stretch * (1 if method == "bilinear" else 2)
        first, count = np.floor(centre - support), math.ceil(2 * support) + 1
    pixel = first + np.arange(count)
    if method == "nearest":
        weights = np.ones_like(pixel)
    elif method == "area":
        overlap = np.minimum(pixel + 1, left + scale) - np.maximum(pixel, left)
        weights = np.maximum(overlap, 0.0)
    else:
        kernel = _triangle if method == "bilinear" else _cubic
        weights = kernel(np.abs(pixel + 0.5 - centre) / stretch)
    # Weights outside the image are dropped and the rest renormalised.
    weights = np.where((pixel >= 0) & (pixel < length_in), weights, 0.0)
    used = weights.any(axis=0)
    pixel, weights = pixel[:, used].clip(0, length_in - 1), weights[:, used]
    return pixel.astype(np.int64), weights / weights.sum(axis=1, keepdims=True)


def _triangle(x: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    return np.maximum(1.0 - x, 0.0)


def _cubic(x: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Keys' cubic convolution kernel with a = -1/2, of |x|."""
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
