"""What a transform is: a frozen dataclass whose fields are its arguments in the config."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Num

from vit_jax.errors import ConfigError, did_you_mean

# What an image is on its way through the transforms.
STORED = "as stored (encoded, or an array)"
UINT8 = "uint8"
FLOAT_255 = "float32 in 0..255"
FLOAT = "float32, normalised"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Op:
    """One transform of an image.

    A subclass checks its arguments in `__post_init__` (ConfigError), so that a mistake shows before
    the first image is read. Randomness comes from the given generator only. Instances can be
    pickled: Grain sends them to its worker processes.
    """

    takes: ClassVar[tuple[str, ...]] = (UINT8,)  # The kinds of image it works on.

    def gives(self, kind: str) -> str:
        """The kind of image that comes out, given the kind that goes in."""
        return kind

    def __call__(
        self, image: Num[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> Num[np.ndarray, "h2 w2 c2"]:
        """Transforms one image."""
        raise NotImplementedError


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ConfigError unless the argument called `name` is one of `choices`."""
    if value not in choices:
        raise ConfigError(f'{name}="{value}" is unknown. {did_you_mean(value, choices)}')


def check_range(name: str, value: tuple[float, ...], *, low: float, high: float) -> None:
    """Raises ConfigError unless `value` is two ascending numbers, between `low` and `high`."""
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise ConfigError(f"{name}={value} should be (smallest, largest), within {low} to {high}.")


def check_number(
    name: str, value: int | float, *, low: int | float, high: int | float = math.inf
) -> None:
    """Raises ConfigError unless `value` is between `low` and `high`."""
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} should be within {low} to {high}.")
