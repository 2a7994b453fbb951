"""Geometric transforms: resizing, cropping, padding, flipping, erasing."""

import dataclasses
import math
from typing import ClassVar

import numpy as np
from jaxtyping import Num, UInt8

from vit_jax.data import resample
from vit_jax.data.op import (
    FLOAT,
    FLOAT_255,
    UINT8,
    Op,
    check_choice,
    check_number,
    check_range,
)
from vit_jax.errors import ConfigError, DataError

# Pixels after `resize_small`: upscaling a 1-pixel-high image would need gigabytes.
MAX_RESIZED_PIXELS = 2**24
_ATTEMPTS = 10  # To draw a box that fits, as in TensorFlow's and torchvision's Inception crop.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resize(Op):
    """Resizes to `size`, ignoring the aspect ratio.

    Attributes:
      size: side, or (height, width), in pixels; left out: the model's.
      method: nearest, bilinear, bicubic or area.
      antialias: True as in Pillow and most of PyTorch; False as in TensorFlow by default.
      rounding: nearest; down, as in big_vision; none: the result is float32 in 0..255, as in
        vision_transformer and Hugging Face's DINOv3.
    """

    size: tuple[int, int]
    method: str = "bilinear"
    antialias: bool = True
    rounding: str = "nearest"
    takes: ClassVar[tuple[str, ...]] = (UINT8, FLOAT_255)

    def __post_init__(self) -> None:
        check_choice("method", self.method, resample.METHODS)
        check_choice("rounding", self.rounding, resample.ROUNDINGS)

    def gives(self, kind: str) -> str:
        return FLOAT_255 if self.rounding == "none" else kind

    def __call__(
        self, image: Num[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> Num[np.ndarray, "h2 w2 c"]:
        return self._to(image, self.size)

    def _to(
        self, image: Num[np.ndarray, "h w c"], size: tuple[int, int]
    ) -> Num[np.ndarray, "h2 w2 c"]:
        return resample.resize(
            image, size, method=self.method, antialias=self.antialias, rounding=self.rounding
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResizeSmall(Resize):
    """Resizes, keeping the aspect ratio, to the smallest image that covers `size`.

    For a square `size`, the shorter side is resized to it. Followed by `center_crop`, this is the
    usual evaluation on ImageNet (256, then 224).

    Attributes:
      size, method, antialias, rounding: see `Resize`.
      long_side: rounding of the longer side: nearest, as in big_vision; down, as in torchvision,
        timm and Hugging Face.
    """

    long_side: str = "nearest"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("long_side", self.long_side, ("nearest", "down"))

    def __call__(
        self, image: Num[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> Num[np.ndarray, "h2 w2 c"]:
        (h, w), (height, width) = image.shape[:2], self.size
        if height * w >= width * h:
            size = height, max(width, self._round(height * w, h))
        else:
            size = max(height, self._round(width * h, w)), width
        if math.prod(size) > max(MAX_RESIZED_PIXELS, 4 * math.prod(self.size)):
            raise DataError(
                f"The aspect ratio of an image of {h} x {w} pixels (height x width) is too "
                f"extreme: resized, it would have {size[0]:,} x {size[1]:,}. Crop it beforehand."
            )
        return self._to(image, size)

    def _round(self, numerator: int, denominator: int) -> int:
        if self.long_side == "down":
            return numerator // denominator
        return round(numerator / denominator)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CenterCrop(Op):
    """Crops `size` from the centre.

    Attributes:
      size: side, or (height, width), in pixels; left out: the model's.
      offset: rounding of half the margin if it is odd: down, as in big_vision and Hugging Face, or
        half_even (to an even number), as in torchvision and timm.
    """

    size: tuple[int, int]
    offset: str = "down"
    takes: ClassVar[tuple[str, ...]] = (UINT8, FLOAT_255, FLOAT)

    def __post_init__(self) -> None:
        check_choice("offset", self.offset, ("down", "half_even"))

    def __call__(
        self, image: Num[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> Num[np.ndarray, "h2 w2 c"]:
        _check_covers(image, self.size, "center_crop")
        margins = [side - target for side, target in zip(image.shape, self.size, strict=False)]
        y, x = [m // 2 if self.offset == "down" else round(m / 2) for m in margins]
        return image[y : y + self.size[0], x : x + self.size[1]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pad(Op):
    """Pads with a constant to at least `size`, with the image in the centre.

    Attributes:
      size: side, or (height, width), in pixels; left out: the model's.
      fill: level of the new pixels, 0..255.
    """

    size: tuple[int, int]
    fill: int = 0
    takes: ClassVar[tuple[str, ...]] = (UINT8, FLOAT_255)

    def __post_init__(self) -> None:
        check_number("fill", self.fill, low=0, high=255)

    def __call__(
        self, image: Num[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> Num[np.ndarray, "h2 w2 c"]:
        missing = [
            max(target - side, 0) for side, target in zip(image.shape, self.size, strict=False)
        ]
        margins = [(m // 2, m - m // 2) for m in missing]
        return np.pad(image, [*margins, (0, 0)], constant_values=self.fill)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomCrop(Op):
    """Pads each side, then crops `size` at a uniformly random position.

    With padding 4, this is the usual augmentation of CIFAR (arXiv 1512.03385, section 4.2). After
    `resize_small`, with padding 4 and mode reflect, it is DeiT-III's simple random crop
    (2204.07118).

    Attributes:
      size: side, or (height, width), in pixels; left out: the model's.
      padding: pixels on each of the four sides.
      mode: constant, or reflect.
      fill: level of constant padding, 0..255.
    """

    size: tuple[int, int]
    padding: int = 0
    mode: str = "constant"
    fill: int = 0

    def __post_init__(self) -> None:
        check_number("padding", self.padding, low=0, high=2**12)
        check_choice("mode", self.mode, ("constant", "reflect"))
        check_number("fill", self.fill, low=0, high=255)

    def __call__(
        self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h2 w2 c"]:
        margins = [(self.padding, self.padding)] * 2 + [(0, 0)]
        if self.mode == "constant":
            image = np.pad(image, margins, constant_values=self.fill)
        else:
            image = np.pad(image, margins, mode="reflect")
        _check_covers(image, self.size, "random_crop")
        y = rng.integers(image.shape[0] - self.size[0], endpoint=True)
        x = rng.integers(image.shape[1] - self.size[1], endpoint=True)
        return image[y : y + self.size[0], x : x + self.size[1]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomResizedCrop(Op):
    """Resizes a random crop of the image to `size`: the Inception crop (arXiv 1409.4842).

    The crop's area is uniform in `area`, its aspect ratio log-uniform in `ratio`, its position
    uniform. After ten draws that do not fit, it is the largest centred crop with an allowed ratio,
    as in torchvision. (TensorFlow draws the ratio uniformly and then the height, so small crops are
    more frequent, and falls back to the whole image.)

    Attributes:
      size: side, or (height, width), in pixels; left out: the model's.
      area: fraction of the image's area; (.05, 1) for Google's ViTs, (.08, 1) for DeiT.
      ratio: width / height.
      method: nearest, bilinear, bicubic or area.
      antialias: see `Resize`; False as in big_vision.
    """

    size: tuple[int, int]
    area: tuple[float, float] = (0.05, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    method: str = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        check_range("area", self.area, low=1e-6, high=1.0)
        check_range("ratio", self.ratio, low=1e-3, high=1e3)
        check_choice("method", self.method, resample.METHODS)

    def __call__(
        self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h2 w2 c"]:
        y, x, h, w = self.draw(rng, *image.shape[:2])
        return self.resize(image[y : y + h, x : x + w])

    def draw(self, rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
        """Draws the crop of an image of this size: its top, left, height and width."""
        box = _random_box(rng, height, width, area=self.area, ratio=self.ratio)
        if box is not None:
            return box
        low, high = self.ratio
        h = min(height, max(1, round(width / low)))
        w = min(width, max(1, round(height * high)))
        return (height - h) // 2, (width - w) // 2, h, w

    def resize(self, crop: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h2 w2 c"]:
        """Resizes the crop to `size`."""
        return resample.resize(crop, self.size, method=self.method, antialias=self.antialias)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlipLr(Op):
    """Flips the image horizontally, with probability `prob`."""

    prob: float = 0.5
    takes: ClassVar[tuple[str, ...]] = (UINT8, FLOAT_255, FLOAT)

    def __post_init__(self) -> None:
        check_number("prob", self.prob, low=0, high=1)

    def __call__(
        self, image: Num[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> Num[np.ndarray, "h w c"]:
        if rng.random() >= self.prob:
            return image
        flipped = np.empty_like(image)
        for channel in range(image.shape[2]):  # Three times as fast as all of them together.
            flipped[..., channel] = image[:, ::-1, channel]
        return flipped


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomErasing(Op):
    """Erases a random rectangle, with probability `prob` (arXiv 1708.04896; ranges as in DeiT).

    Attributes:
      prob: probability of erasing.
      area: fraction of the image's area.
      ratio: width / height of the rectangle, drawn log-uniformly.
      fill: a level 0..255, or "noise" for uniformly random bytes, as in the paper.
    """

    prob: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    fill: int | str = "noise"

    def __post_init__(self) -> None:
        check_number("prob", self.prob, low=0, high=1)
        check_range("area", self.area, low=0.0, high=1.0)
        check_range("ratio", self.ratio, low=1e-3, high=1e3)
        if self.fill != "noise" and not (isinstance(self.fill, int) and 0 <= self.fill <= 255):
            raise ConfigError(f'fill={self.fill!r} should be "noise" or a level from 0 to 255.')

    def __call__(
        self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h w c"]:
        if rng.random() >= self.prob:
            return image
        box = _random_box(rng, *image.shape[:2], area=self.area, ratio=self.ratio)
        if box is None:
            return image
        y, x, h, w = box
        image = image.copy()
        noise = self.fill == "noise"
        image[y : y + h, x : x + w] = (
            rng.integers(256, size=(h, w, image.shape[2]), dtype=np.uint8) if noise else self.fill
        )
        return image


def _random_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int] | None:
    """Draws a box (y, x, height, width) in an image; None if `_ATTEMPTS` draws do not fit."""
    for _ in range(_ATTEMPTS):
        pixels = rng.uniform(*area) * height * width
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        h, w = round(math.sqrt(pixels / aspect)), round(math.sqrt(pixels * aspect))
        if 0 < h <= height and 0 < w <= width:
            y = int(rng.integers(height - h, endpoint=True))
            x = int(rng.integers(width - w, endpoint=True))
            return y, x, h, w
    return None


def _check_covers(image: Num[np.ndarray, "h w c"], size: tuple[int, int], op: str) -> None:
    if image.shape[0] < size[0] or image.shape[1] < size[1]:
        raise DataError(
            f"{op} needs {size[0]}x{size[1]} pixels (height x width), but the image has "
            f"{image.shape[0]}x{image.shape[1]}. Put resize_small or pad before it."
        )
