"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719) with the operations and levels of AugReg.

These are the operations of google-research/big_vision (archive/autoaugment.py), which descend from
EfficientNet's for TPU: sixteen, with Invert, Cutout and SolarizeAdd and without Identity.
Magnitudes are on a scale of 10, but may be larger (AugReg uses up to 20). Pixels from outside the
image are filled with gray 128. As in that code, a larger magnitude is not always stronger:
Posterize keeps more bits and Solarize inverts fewer levels, and Solarize, Posterize and the four
blends are strong at magnitude 0.

Known differences, where that code deviates from its documentation: its Contrast blends with the
number of pixels / 256 instead of the mean level; its Solarize compares bytes with 256 and more from
magnitude 10 on, where ours inverts nothing. We round gray levels that it truncates, so some differ
by 1.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageEnhance, ImageOps

from vit_jax.data.decode import from_pillow, to_pillow
from vit_jax.data.op import Op, check_number

OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Cutout",
    "SolarizeAdd",
)

_GRAY = 128

_Pixels = Image.Image | UInt8[np.ndarray, "h w c"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment(Op):
    """Applies `num_layers` operations in sequence, each drawn uniformly from `OPERATIONS`.

    All of them are applied. (The reference also draws a probability in [.2, .8] for each, but does
    not use it for image operations.)

    Attributes:
      num_layers: operations per image.
      magnitude: on a scale of 10; may be larger. AugReg: 0, 10, 15 or 20.
      translate: pixels by which TranslateX and TranslateY move at magnitude 10; 100 is for images
        of 224 pixels. Scale it with the image size: 12 for 28 pixels.
      cutout: half the side of Cutout's square at magnitude 10, in pixels. Scale it likewise: 5 for
        28 pixels.
    """

    num_layers: int = 2
    magnitude: float = 10.0
    translate: float = 100.0
    cutout: float = 40.0

    def __post_init__(self) -> None:
        check_number("num_layers", self.num_layers, low=0, high=100)
        for name in ("magnitude", "translate", "cutout"):
            check_number(name, getattr(self, name), low=0, high=1e6)

    def __call__(
        self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h w c"]:
        pixels: _Pixels = image
        for _ in range(self.num_layers):
            operation = OPERATIONS[rng.integers(len(OPERATIONS))]
            pixels = apply(
                operation,
                pixels,
                rng,
                magnitude=self.magnitude,
                translate=self.translate,
                cutout=self.cutout,
            )
        return as_array(pixels)


def apply(
    operation: str,
    image: _Pixels,
    rng: np.random.Generator,
    *,
    magnitude: float,
    translate: float = 100.0,
    cutout: float = 40.0,
) -> _Pixels:
    """Applies one operation; returns an image of the same size and mode.

    Converting between an array and a Pillow image can take as long as an operation. So the result
    has the type with which the operation computes, and `as_array` converts it after the last one.

    Args:
      operation: one of `OPERATIONS`.
      image: mode L or RGB, or uint8 [h, w, 1 or 3].
      rng: for the direction of rotations, shears and translations, and for Cutout's position.
      magnitude: on a scale of 10.
      translate: see `RandAugment`.
      cutout: see `RandAugment`.
    """
    m = magnitude / 10
    match operation:  # On arrays.
        case "Invert":
            return ~as_array(image)
        case "Posterize":  # Bits kept.
            return as_array(image) & np.uint8(256 - 2 ** (8 - min(max(int(4 * m), 1), 8)))
        case "Solarize":  # Levels from this one on are inverted.
            pixels = as_array(image)
            return pixels ^ _ones(pixels > min(int(256 * m), 256) - 1)
        case "SolarizeAdd":  # Added to the levels below 128.
            pixels, addition = as_array(image), np.uint8(min(int(110 * m), 255))
            added = (pixels + addition) | _ones(pixels > 255 - addition)
            return pixels ^ ((pixels ^ added) & _ones(pixels < 128))
        case "Cutout":
            return _cutout(as_array(image), int(cutout * m), rng)
        case "Sharpness":
            return _sharpness(as_array(image), 1.8 * m + 0.1)
    pil_image = image if isinstance(image, Image.Image) else to_pillow(image)
    match operation:
        case "AutoContrast":  # Per channel, as Equalize.
            return ImageOps.autocontrast(pil_image)
        case "Equalize":
            return ImageOps.equalize(pil_image)
        case "Rotate":  # Degrees, about the centre.
            return _rotate(pil_image, _random_sign(30 * m, rng))
        case "Color":
            return ImageEnhance.Color(pil_image).enhance(1.8 * m + 0.1)
        case "Contrast":
            return ImageEnhance.Contrast(pil_image).enhance(1.8 * m + 0.1)
        case "Brightness":
            return ImageEnhance.Brightness(pil_image).enhance(1.8 * m + 0.1)
        case "ShearX":  # Horizontal pixels per vertical pixel; the upper left corner is fixed.
            return _affine(pil_image, (1, _random_sign(0.3 * m, rng), 0, 0, 1, 0))
        case "ShearY":
            return _affine(pil_image, (1, 0, 0, _random_sign(0.3 * m, rng), 1, 0))
        case "TranslateX":  # Pixels.
            return _affine(pil_image, (1, 0, _random_sign(translate * m, rng), 0, 1, 0))
        case "TranslateY":
            return _affine(pil_image, (1, 0, 0, 0, 1, _random_sign(translate * m, rng)))
        case _:
            raise ValueError(operation)


def as_array(image: _Pixels) -> UInt8[np.ndarray, "h w c"]:
    """Returns the pixels of a Pillow image, or an array as it is."""
    return from_pillow(image) if isinstance(image, Image.Image) else image


def _ones(condition: Bool[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
    """Returns 255, all bits, where it is true, else 0: faster than `np.where`."""
    return -condition.view(np.uint8)


def _random_sign(level: float, rng: np.random.Generator) -> float:
    return level if rng.random() < 0.5 else -level


def _rotate(pil_image: Image.Image, degrees: float) -> Image.Image:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = (pil_image.width - 1) / 2, (pil_image.height - 1) / 2
    return _affine(pil_image, (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y))


def _affine(pil_image: Image.Image, matrix: tuple[int | float, ...]) -> Image.Image:
    """Sets pixel (x, y) to the one nearest to (a x + b y + c, d x + e y + f), or to gray."""
    a, b, c, d, e, f = matrix
    # Converts from coordinates of pixels' centres to those of their corners, as in Pillow.
    corners = (a, b, c + (1 - a - b) / 2, d, e, f + (1 - d - e) / 2)
    return pil_image.transform(
        pil_image.size,
        Image.Transform.AFFINE,
        corners,
        resample=Image.Resampling.NEAREST,
        fillcolor=_gray(pil_image),
    )


def _sharpness(pixels: UInt8[np.ndarray, "h w c"], factor: float) -> _Pixels:
    if min(pixels.shape[:2]) < 3:  # No pixel has all its neighbours.
        return pixels
    return Image.blend(to_pillow(_smooth(pixels)), to_pillow(pixels), factor)


def _smooth(pixels: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
    """Computes Pillow's filter SMOOTH to the bit: the mean of 3x3 pixels, the centre five times.

    Pillow computes in float32, which is nearest to the same level: a sum divided by 13 is never
    near the middle of two. Pixels at the border do not change.
    """
    wide = pixels.astype(np.uint16)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * wide[1:-1, 1:-1]
    smooth = pixels.copy()
    smooth[1:-1, 1:-1] = (total + 6) // 13
    return smooth


def _cutout(
    pixels: UInt8[np.ndarray, "h w c"], half: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w c"]:
    height, width, _ = pixels.shape
    x, y = int(rng.integers(width)), int(rng.integers(height))
    pixels = pixels.copy()
    pixels[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = _GRAY
    return pixels


def _gray(pil_image: Image.Image) -> int | tuple[int, int, int]:
    return _GRAY if pil_image.mode == "L" else (_GRAY, _GRAY, _GRAY)
