"""Decodes a box of an image: of a JPEG, only what the box needs."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vit_jax.data import turbojpeg
from vit_jax.data.decode import (
    convert_pixels,
    decode_image,
    names_broken_file,
    open_image,
    orientation,
    pixels_of,
)

# Top, left, height, width in pixels.
Box = tuple[int, int, int, int]
FractionalBox = tuple[int | float, int | float, int | float, int | float]

_DENOMINATORS = (8, 4, 2)  # Of the sizes at which JPEGs are decoded; 1: in full.

# EXIF orientation -> how the stored image becomes upright: rows reversed, then columns reversed,
# then rows and columns exchanged.
_STEPS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}


@dataclasses.dataclass(frozen=True)
class Region:
    """Decoded pixels that contain a box.

    Attributes:
      pixels: upright, [height, width, channels].
      box: within the pixels: top, left, height, width. Of a JPEG that is decoded at a part of its
        size it has fractions of a pixel.
    """

    pixels: UInt8[np.ndarray, "h w c"]
    box: FractionalBox


def decode_region(
    data: bytes | np.ndarray,
    choose: Callable[[int, int], Box],
    *,
    channels: int = 3,
    exif: bool = True,
    least: tuple[int, int] | None = None,
) -> Region:
    """Decodes a box of an image.

    Without `least`, the pixels are those of `decode_image` in the box, to the bit.

    Args:
      data: as for `decode_image`.
      choose: from the height and width of the upright image to a box; called once.
      channels: as for `decode_image`.
      exif: as for `decode_image`.
      least: height and width. A JPEG is decoded at 1/8, 1/4 or 1/2 of its size, by an inverse
        transform of fewer coefficients, if its box is at least this large then.

    Raises:
      DataError: as `decode_image`. Damage to a JPEG that ends as it should is not noticed below
        the box.
    """
    if isinstance(data, np.ndarray) or not data.startswith(b"\xff\xd8"):
        pixels = decode_image(data, channels=channels, exif=exif)
        top, left, height, width = choose(*pixels.shape[:2])
        return Region(pixels[top : top + height, left : left + width], (0, 0, height, width))
    with turbojpeg.open_jpeg(data) as jpeg:
        image = None
        if jpeg is None or (exif and _may_have_orientation(data)):
            image = open_image(data)
        steps = _STEPS[orientation(image) if exif and image is not None else 1]
        stored = jpeg or image
        assert stored is not None
        height, width = stored.height, stored.width
        box = choose(width, height) if steps[2] else choose(height, width)
        denominator = _denominator(box, least)
        inside, outer = _scaled(_to_stored(box, height, width, steps), denominator)
        pixels = jpeg and jpeg.decode_box(outer, denominator=denominator)
        if pixels is None:
            pixels = _decode_by_pillow(data, image or open_image(data), outer, denominator)
        pixels = convert_pixels(pixels, channels)
    return Region(_upright(pixels, steps), _to_upright(inside, *outer[2:], steps))


def _may_have_orientation(data: bytes) -> bool:
    """Whether a JPEG has a segment APP1 (EXIF or XMP) before its pixels, or is malformed there."""
    start, marker = 2, b""
    while marker != b"\xda":  # Start of scan.
        if data[start : start + 1] != b"\xff":
            return True
        marker = data[start + 1 : start + 2]
        if marker == b"\xe1":
            return True
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return False


def _denominator(box: Box, least: tuple[int, int] | None) -> int:
    if least is None:
        return 1
    fits = (d for d in _DENOMINATORS if box[2] >= least[0] * d and box[3] >= least[1] * d)
    return next(fits, 1)


def _scaled(box: Box, denominator: int) -> tuple[FractionalBox, Box]:
    """Returns the box after scaling, relative to the whole pixels that contain it, and these."""
    top, left, height, width = box
    outer_top, outer_left = top // denominator, left // denominator
    outer = (
        outer_top,
        outer_left,
        -(-(top + height) // denominator) - outer_top,
        -(-(left + width) // denominator) - outer_left,
    )
    inside = (
        top / denominator - outer_top,
        left / denominator - outer_left,
        height / denominator,
        width / denominator,
    )
    return inside, outer


def _decode_by_pillow(
    data: bytes, image: Image.Image, box: Box, denominator: int
) -> UInt8[np.ndarray, "h w c"]:
    """Decodes a box of an opened JPEG as `vit_jax.data.turbojpeg.Jpeg.decode_box`."""
    top, left, height, width = box
    with names_broken_file(image, data):
        if denominator > 1:
            image.draft(None, (image.width // denominator, image.height // denominator))
        crop = image.crop((left, top, left + width, top + height))
        return pixels_of(crop, 1 if image.mode == "L" else 3)


def _to_stored(box: Box, height: int, width: int, steps: tuple[bool, bool, bool]) -> Box:
    """Maps a box of the upright image to the stored one, of `height` and `width`."""
    flip_y, flip_x, transpose = steps
    y, x, h, w = (box[1], box[0], box[3], box[2]) if transpose else box
    return height - y - h if flip_y else y, width - x - w if flip_x else x, h, w


def _to_upright(
    box: FractionalBox, height: int, width: int, steps: tuple[bool, bool, bool]
) -> FractionalBox:
    """Inverts `_to_stored`."""
    flip_y, flip_x, transpose = steps
    y, x, h, w = box
    y, x = height - y - h if flip_y else y, width - x - w if flip_x else x
    return (x, y, w, h) if transpose else (y, x, h, w)


def _upright(
    pixels: UInt8[np.ndarray, "h w c"], steps: tuple[bool, bool, bool]
) -> UInt8[np.ndarray, "h2 w2 c"]:
    flip_y, flip_x, transpose = steps
    pixels = pixels[::-1] if flip_y else pixels
    pixels = pixels[:, ::-1] if flip_x else pixels
    return pixels.swapaxes(0, 1) if transpose else pixels
