"""Resizes uint8 images by fast_image_resize (SIMD), the library of the package cykooz-resizer.

The filter is Pillow's, in other fixed-point arithmetic: a pixel differs from Pillow's by at most
one level (`tests/data_fast_decode_test.py`). A cubic filter differs by up to 24 levels in noise, so
there is none here.
"""

import importlib.util

import numpy as np
from jaxtyping import UInt8

from vit_jax.data.regions import Region

PACKAGE = "cykooz-resizer"


def is_installed() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("cykooz_resizer") is not None


def resize(region: Region, size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Resizes the box of a region, bilinear with antialiasing.

    Pixels around a box with fractions of a pixel are used at its edges.

    Args:
      region: 1 or 3 channels.
      size: (height, width) of the result, in pixels.
    """
    import cykooz_resizer as library  # Optional.

    pixels, (top, left, height, width) = region.pixels, region.box
    if pixels.shape[:2] == size == (height, width):
        return pixels
    is_whole = (top, left, height, width) == (0, 0, *pixels.shape[:2])
    options = library.ResizeOptions(
        library.ResizeAlg.convolution(library.FilterType.bilinear),
        use_alpha=False,
        crop_box=None if is_whole else library.CropBox(left, top, width, height),
    )
    channels = pixels.shape[2]
    kind = library.PixelType.U8 if channels == 1 else library.PixelType.U8x3
    source = library.ImageData(pixels.shape[1], pixels.shape[0], kind, pixels.tobytes())
    target = library.ImageData(size[1], size[0], kind)
    library.Resizer().resize(source, target, options)  # One for each call: it is not thread-safe.
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(*size, channels)
