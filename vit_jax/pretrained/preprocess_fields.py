"""Validates the fields of a publisher's JSON that describes preprocessing."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from vit_jax.errors import CheckpointError

_LARGEST_SIDE = 2**13  # Pixels.

Meaning = TypeVar("Meaning")


class Fields:
    """The fields of a JSON file, each checked when it is read.

    Each method raises CheckpointError for an invalid value. `otherwise` is the default for a key
    that is missing or null in the file, and missing in `defaults`.
    """

    def __init__(self, file: str, content: Any, defaults: Mapping[str, Any]):
        """Stores the content; no field is checked yet.

        Args:
          file: the file's name, for errors.
          content: the parsed JSON.
          defaults: values of keys that the content lacks.

        Raises:
          CheckpointError: the content is not a JSON object.
        """
        if not isinstance(content, Mapping):
            raise CheckpointError(
                f"{file} holds a {type(content).__name__} where a JSON object is expected: "
                "download it again."
            )
        self._file = file
        self._content = content
        self._defaults = defaults

    def default(self, key: str, otherwise: Any) -> Any:
        """Returns the default of a key, whatever the file has."""
        return self._defaults.get(key, otherwise)

    def text(self, key: str, otherwise: str) -> str:
        """Returns a string."""
        value = self._value(key, otherwise)
        if not isinstance(value, str):
            raise self.error(key, "text", value)
        return value

    def flag(self, key: str, otherwise: bool) -> bool:
        """Returns a bool."""
        value = self._value(key, otherwise)
        if not isinstance(value, bool):
            raise self.error(key, "true or false", value)
        return value

    def number(self, key: str, otherwise: float, *, low: float, high: float) -> float:
        """Returns a number within inclusive bounds."""
        value = self._value(key, otherwise)
        if not _is_number(value) or not low <= value <= high:
            raise self.error(key, f"a number from {low:g} to {high:g}", value)
        return float(value)

    def statistics(self, key: str, *, low: float = -1e6) -> tuple[float, ...]:
        """Returns one number for each of 3 channels, or one for all."""
        value = self._value(key, None)
        values = tuple(value) if isinstance(value, list | tuple) else (value,)
        if len(values) not in (1, 3) or not all(_is_number(v) and low <= v <= 1e6 for v in values):
            raise self.error(key, f"1 or 3 numbers from {low:g} on", value)
        return tuple(map(float, values))

    def choice(self, key: str, meanings: Mapping[Any, Meaning]) -> Meaning:
        """Returns the meaning of a value."""
        value = self._value(key, None)
        if isinstance(value, bool | list | dict) or value not in meanings:
            raise self.error(key, f"one of {', '.join(map(str, meanings))}", value)
        return meanings[value]

    def shape(self, key: str, otherwise: tuple[int, int, int]) -> tuple[int, int, int]:
        """Returns (channels, height, width)."""
        value = self._value(key, otherwise)
        if not isinstance(value, list | tuple) or len(value) != 3 or not all(map(_is_side, value)):
            raise self.error(key, "[channels, height, width]", value)
        return tuple(value)

    def size(
        self, key: str, otherwise: Mapping[str, int] | tuple[int, int], *, square: bool
    ) -> dict[str, int]:
        """Returns {"height": h, "width": w} or {"shortest_edge": s}, in pixels.

        Args:
          key: its value is one of these, [h, w], or one number.
          otherwise: the default.
          square: whether one number is the side of a square, else the shorter side.
        """
        value = self._value(key, otherwise)
        size = value
        if isinstance(value, int):
            size = {"height": value, "width": value} if square else {"shortest_edge": value}
        elif isinstance(value, list | tuple) and len(value) == 2:
            size = {"height": value[0], "width": value[1]}
        if (
            not isinstance(size, Mapping)
            or set(size) not in ({"height", "width"}, {"shortest_edge"})
            or not all(map(_is_side, size.values()))
        ):
            expected = f"height and width, or shortest_edge, from 1 to {_LARGEST_SIDE:,} pixels"
            raise self.error(key, expected, value)
        return dict(size)

    def error(self, key: str, expected: str, value: Any) -> CheckpointError:
        """Returns the error for an invalid value."""
        return CheckpointError(
            f"{self._file}: {key}={str(value)[:100]} should be {expected}. Correct the file, or "
            "download it again."
        )

    def _value(self, key: str, otherwise: Any) -> Any:
        value = self._content.get(key)
        return self._defaults.get(key, otherwise) if value is None else value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _LARGEST_SIDE
