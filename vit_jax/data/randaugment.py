"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719) with the operations and levels of AugReg.

That is the set of google-research/big_vision (archive/autoaugment.py), descended from
EfficientNet's for TPU: sixteen operations, Invert, Cutout and SolarizeAdd among them and Identity
not; levels on a scale of 10 that may go beyond it (AugReg uses up to 20); places without a pixel
filled with gray 128. As there, no level grows only stronger: Posterize keeps more bits and Solarize
inverts fewer levels as the magnitude rises, and Solarize, Posterize and the four blends are strong
at magnitude 0.

Known differences, each to what that code says it does: its Contrast blends with the number of
pixels / 256 in place of the mean level; its Solarize compares bytes with 256 and more from
magnitude 10 on, where ours inverts nothing. Levels of gray that it truncates are rounded here, so
that some differ by 1.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment(Op):
    """`num_layers` operations, one after the other, each drawn evenly from `OPERATIONS`.

    Each one drawn is applied. (The reference also draws a probability in [.2, .8] for each, and
    then uses it for no image operation.)

    Attributes:
      num_layers: operations per image.
      magnitude: on a scale of 10; may be larger. AugReg: 0, 10, 15 or 20.
      translate: pixels that TranslateX and TranslateY move at magnitude 10; 100 is meant for 224
        pixel images. Scale it down with the images, e.g. 12 for 28 pixels.
      cutout: half the side, in pixels, of Cutout's square at magnitude 10; as above, e.g. 5.
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
        pil_image = to_pillow(image)
        for _ in range(self.num_layers):
            operation = OPERATIONS[rng.integers(len(OPERATIONS))]
            pil_image = apply(
                operation,
                pil_image,
                rng,
                magnitude=self.magnitude,
                translate=self.translate,
                cutout=self.cutout,
            )
        return from_pillow(pil_image)


def apply(
    operation: str,
    pil_image: Image.Image,
    rng: np.random.Generator,
    *,
    magnitude: float,
    translate: float = 100.0,
    cutout: float = 40.0,
) -> Image.Image:
    """One operation: the table of what each magnitude means.

    Args:
      operation: one of `OPERATIONS`.
      pil_image: mode L or RGB.
      rng: decides the direction (evenly) of what has one, and Cutout's place.
      magnitude: on a scale of 10.
      translate: see `RandAugment`.
      cutout: see `RandAugment`.

    Returns:
      An image of the same size and mode.
    """
    m = magnitude / 10
    match operation:
        case "AutoContrast":  # Of each channel, as Equalize.
            return ImageOps.autocontrast(pil_image)
        case "Equalize":
            return ImageOps.equalize(pil_image)
        case "Invert":
            return ImageOps.invert(pil_image)
        case "Rotate":  # Degrees, about the middle.
            return _rotate(pil_image, _either_way(30 * m, rng))
        case "Posterize":  # Bits kept.
            return ImageOps.posterize(pil_image, min(max(int(4 * m), 1), 8))
        case "Solarize":  # Levels from this one on are inverted.
            return ImageOps.solarize(pil_image, min(int(256 * m), 256))
        case "SolarizeAdd":  # Added to the levels below 128.
            return _solarize_add(pil_image, int(110 * m))
        case "Color":
            return ImageEnhance.Color(pil_image).enhance(1.8 * m + 0.1)
        case "Contrast":
            return ImageEnhance.Contrast(pil_image).enhance(1.8 * m + 0.1)
        case "Brightness":
            return ImageEnhance.Brightness(pil_image).enhance(1.8 * m + 0.1)
        case "Sharpness":
            return _sharpness(pil_image, 1.8 * m + 0.1)
        case "ShearX":  # Pixels to the side per pixel down; the upper left corner stays.
            return _affine(pil_image, (1, _either_way(0.3 * m, rng), 0, 0, 1, 0))
        case "ShearY":
            return _affine(pil_image, (1, 0, 0, _either_way(0.3 * m, rng), 1, 0))
        case "TranslateX":  # Pixels.
            return _affine(pil_image, (1, 0, _either_way(translate * m, rng), 0, 1, 0))
        case "TranslateY":
            return _affine(pil_image, (1, 0, 0, 0, 1, _either_way(translate * m, rng)))
        case "Cutout":
            return _cutout(pil_image, int(cutout * m), rng)
        case _:
            raise ValueError(operation)


def _either_way(level: float, rng: np.random.Generator) -> float:
    return level if rng.random() < 0.5 else -level


def _rotate(pil_image: Image.Image, degrees: float) -> Image.Image:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = (pil_image.width - 1) / 2, (pil_image.height - 1) / 2
    return _affine(pil_image, (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y))


def _affine(pil_image: Image.Image, matrix: tuple[int | float, ...]) -> Image.Image:
    """Output pixel (x, y) is input pixel (a x + b y + c, d x + e y + f), the nearest, or gray."""
    a, b, c, d, e, f = matrix
    # Pillow counts from pixels' corners, we from their centres.
    corners = (a, b, c + (1 - a - b) / 2, d, e, f + (1 - d - e) / 2)
    return pil_image.transform(
        pil_image.size,
        Image.Transform.AFFINE,
        corners,
        resample=Image.Resampling.NEAREST,
        fillcolor=_gray(pil_image),
    )


def _sharpness(pil_image: Image.Image, factor: float) -> Image.Image:
    if min(pil_image.size) < 3:  # No pixel has all its neighbours.
        return pil_image
    return Image.blend(pil_image.filter(ImageFilter.SMOOTH), pil_image, factor)


def _solarize_add(pil_image: Image.Image, addition: int) -> Image.Image:
    levels = [min(level + addition, 255) if level < 128 else level for level in range(256)]
    return pil_image.point(levels * len(pil_image.getbands()))


def _cutout(pil_image: Image.Image, half: int, rng: np.random.Generator) -> Image.Image:
    x, y = rng.integers(pil_image.width), rng.integers(pil_image.height)
    if half > 0:
        pil_image = pil_image.copy()
        corners = [(x - half, y - half), (x + half - 1, y + half - 1)]  # Both inclusive.
        ImageDraw.Draw(pil_image).rectangle(corners, fill=_gray(pil_image))
    return pil_image


def _gray(pil_image: Image.Image) -> int | tuple[int, int, int]:
    return _GRAY if pil_image.mode == "L" else (_GRAY,) * 3
