"""Decodes an image and resizes a random crop of it, as one operation: see `config.data.decode`."""

import dataclasses
import functools

import numpy as np
from jaxtyping import UInt8

from vit_jax.data import simd_resize
from vit_jax.data.geometry import RandomResizedCrop
from vit_jax.data.regions import decode_region
from vit_jax.errors import ConfigError

EXACT, FAST = "exact", "fast"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodedCrop:
    """Decodes only what a random crop needs, and resizes it.

    The crop is drawn from the size of the image alone, so it is the same in both modes.

    Attributes:
      channels: of `decode`.
      exif: of `decode`.
      crop: the operation after decode.
      is_fast: decode JPEGs at 1/2, 1/4 or 1/8 of their size where the crop still covers the
        result, and resize by `vit_jax.data.simd_resize`: other pixels, see docs/training.md. If
        not, the result is that of the two operations, to the bit.
    """

    channels: int
    exif: bool
    crop: RandomResizedCrop
    is_fast: bool

    def __post_init__(self) -> None:
        if not self.is_fast:
            return
        if not simd_resize.is_installed():
            raise ConfigError(
                f'data.decode is "{FAST}", which needs the package {simd_resize.PACKAGE}: pip '
                f'install "vit-jax[fast]". Without it, set data.decode={EXACT}: other pixels, so '
                "another run."
            )
        if self.crop.method != "bilinear" or not self.crop.antialias:
            raise ConfigError(
                f'data.decode is "{FAST}", which needs a random_resized_crop with antialias=True '
                f"and method bilinear. Change it, or set data.decode={EXACT}."
            )

    def __call__(
        self, image: bytes | np.ndarray, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h w c"]:
        region = decode_region(
            image,
            functools.partial(self.crop.draw, rng),
            channels=self.channels,
            exif=self.exif,
            least=self.crop.size if self.is_fast else None,
        )
        if self.is_fast:
            return simd_resize.resize(region, self.crop.size)
        return self.crop.resize(region.pixels)
