"""The base class of transforms: frozen dataclasses whose fields are arguments in the config."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Num

from vit_jax.errors import ConfigError, did_you_mean

# Kinds of images between transforms.
STORED = "as stored (encoded, or an array)"
UINT8 = "uint8"
FLOAT_255 = "float32 in 0..255"
FLOAT = "float32, normalised"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Op:
    """One transform of an image.

    A subclass checks its arguments in `__post_init__` (ConfigError), so mistakes show before the
    first image is read. All randomness is from the generator that is passed. Instances must be
    picklable: Grain sends them to its worker processes.
    """

    takes: ClassVar[tuple[str, ...]] = (UINT8,)  # Accepted kinds of images.

    def gives(self, kind: str) -> str:
        """Returns the kind of the transformed image, for the kind of its input."""
        return kind

    def __call__(
        self, image: Num[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> Num[np.ndarray, "h2 w2 c2"]:
        """Transforms one image."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling(Op):
    """A transform of each level by itself, from 0..255 to float32: the last one before a model."""

    takes: ClassVar[tuple[str, ...]] = (UINT8, FLOAT_255)

    def gives(self, kind: str) -> str:
        return FLOAT

    def __call__(
        self, image: Num[np.ndarray, "h w c"], rng: np.random.Generator | None = None
    ) -> Float32[np.ndarray, "h w c"]:
        out = np.empty(image.shape, np.float32)
        self.write(image, out)
        return out

    def write(self, image: Num[np.ndarray, "h w c"], out: Float32[np.ndarray, "h w c"]) -> None:
        """Writes the transformed image to `out`."""
        raise NotImplementedError


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ConfigError unless the value of the argument `name` is one of `choices`."""
    if value not in choices:
        raise ConfigError(f'{name}="{value}" is unknown. {did_you_mean(value, choices)}')


def check_range(name: str, value: tuple[float, ...], *, low: float, high: float) -> None:
    """Raises ConfigError unless `value` is a range (smallest, largest) in [`low`, `high`]."""
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise ConfigError(f"{name}={value} should be (smallest, largest), within {low} to {high}.")


def check_number(
    name: str, value: int | float, *, low: int | float, high: int | float = math.inf
) -> None:
    """Raises ConfigError unless `value` is in [`low`, `high`]."""
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} should be within {low} to {high}.")
