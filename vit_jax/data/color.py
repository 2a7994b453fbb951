"""Transforms of pixel values: jitter, 3-Augment, gray and RGB, and normalisation."""

import dataclasses

import numpy as np
from jaxtyping import Float32, Num, UInt8
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vit_jax.data.decode import from_pillow, gray_to_rgb, rgb_to_gray, to_pillow
from vit_jax.data.op import Op, Scaling, check_number, check_range
from vit_jax.errors import ConfigError

# Per-channel statistics of ImageNet's training images, in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColorJitter(Op):
    """Random brightness, contrast, saturation and hue, in random order (as torchvision).

    The first three blend the image with black, with its mean gray, and with its gray version, by a
    factor uniform in [max(0, 1 - x), 1 + x]; hue is shifted by a fraction of the colour circle
    that is uniform in [-hue, hue]. Saturation and hue leave gray images unchanged. DeiT-III has .3,
    .3, .3, 0.

    Attributes:
      brightness, contrast, saturation: the x above; 0: off.
      hue: at most 1/2; 0: off.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            check_number(name, getattr(self, name), low=0)
        check_number("hue", self.hue, low=0, high=0.5)

    def __call__(
        self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h w c"]:
        pil_image = to_pillow(image)
        for i in rng.permutation(4):
            name = ("brightness", "contrast", "saturation", "hue")[i]
            x = getattr(self, name)
            if x == 0:
                continue
            if name == "hue":
                pil_image = _shift_hue(pil_image, rng.uniform(-x, x))
            else:
                pil_image = _ENHANCE[name](pil_image).enhance(rng.uniform(max(0.0, 1 - x), 1 + x))
        return from_pillow(pil_image)


_ENHANCE = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def _shift_hue(pil_image: Image.Image, shift: float) -> Image.Image:
    if pil_image.mode == "L":
        return pil_image
    hue, saturation, value = pil_image.convert("HSV").split()
    hue = hue.point([(level + round(shift * 256)) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThreeAugment(Op):
    """Grayscale, solarize or Gaussian blur, at even odds (3-Augment of DeiT-III, 2204.07118).

    In DeiT-III it comes after crop and flip, and before color_jitter of .3.

    Attributes:
      threshold: solarize inverts the levels at or above this one.
      radius: standard deviation of the blur in pixels, drawn uniformly from this range.
    """

    threshold: int = 128
    radius: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, low=0, high=256)
        check_range("radius", self.radius, low=0.0, high=1e3)

    def __call__(
        self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h w c"]:
        pil_image = to_pillow(image)
        match rng.integers(3):
            case 0:
                pil_image = pil_image.convert("L").convert(pil_image.mode)
            case 1:
                pil_image = ImageOps.solarize(pil_image, self.threshold)
            case _:
                pil_image = pil_image.filter(ImageFilter.GaussianBlur(rng.uniform(*self.radius)))
        return from_pillow(pil_image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrayscaleToRgb(Op):
    """Repeats the channel of a gray image; RGB images do not change."""

    def __call__(
        self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h w 3"]:
        return image if image.shape[-1] == 3 else gray_to_rgb(image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RgbToGrayscale(Op):
    """Converts RGB images to their luma; gray images do not change."""

    def __call__(
        self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h w 1"]:
        return image if image.shape[-1] == 1 else rgb_to_gray(image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueRange(Scaling):
    """Scales levels 0..255 to float32 in vmin..vmax; the default is that of Google's ViTs."""

    vmin: float = -1.0
    vmax: float = 1.0

    def __post_init__(self) -> None:
        if not self.vmin < self.vmax:
            raise ConfigError(f"vmin={self.vmin} should be below vmax={self.vmax}.")

    def write(self, image: Num[np.ndarray, "h w c"], out: Float32[np.ndarray, "h w c"]) -> None:
        np.multiply(image, np.float32((self.vmax - self.vmin) / 255), out=out)
        out += np.float32(self.vmin)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normalize(Scaling):
    """Normalises levels 0..255 to float32 (level / 255 - mean) / std, per channel.

    Attributes:
      mean, std: one number for each channel, or one for all; the default is ImageNet's, as in DeiT,
        DINO, MAE and torchvision.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ConfigError(
                f"mean={self.mean} and std={self.std} should have one number each, or three."
            )
        if min(self.std) <= 0:
            raise ConfigError(f"std={self.std} should be above 0.")

    def write(self, image: Num[np.ndarray, "h w c"], out: Float32[np.ndarray, "h w c"]) -> None:
        if len(self.mean) > image.shape[-1]:
            raise ConfigError(
                "normalize has three means, but the image has one channel. Give one mean, as in "
                "mean=(.5,), std=(.5,), or put grayscale_to_rgb before it."
            )
        mean, std = np.array(self.mean), np.array(self.std)
        scale, shift = (1 / (255 * std)).astype(np.float32), (mean / std).astype(np.float32)
        np.multiply(image, scale, out=out)
        out -= shift
