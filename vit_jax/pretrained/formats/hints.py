"""Hints: fields of a model that the caller states because the checkpoint does not."""

import math
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vit_jax.config.fields import declarations
from vit_jax.config.model import MODEL_CONFIGS
from vit_jax.errors import CheckpointError, ConfigError, did_you_mean

# Names and types of hints: fields of the models' configs; "preprocessing", a family of
# `vit_jax.pretrained.preprocess.from_family`; "loss", a key of `vit_jax.optim.losses.LOSSES`, or
# "regression".
HINTS: dict[str, Any] = {
    field.name: typing.get_type_hints(kind)[field.name]
    for kind in MODEL_CONFIGS
    for field, declaration in declarations(kind)
    if declaration.hint
} | {"preprocessing": str, "loss": str}
# (hint, value in big_vision or timm) -> value in vit_jax.
_ALIASES = {
    ("pool", "tok"): "token",
    ("pool", "cls"): "token",
    ("pool", "avg"): "gap",
    ("posemb", "learn"): "learned",
}


class Hints:
    """The caller's hints, which records those that have an effect.

    Raises:
      ConfigError: a hint is unknown, or its value is invalid.
    """

    def __init__(self, hints: Mapping[str, Any] | None):
        if not isinstance(hints or {}, Mapping):
            raise ConfigError(f"hints={hints!r}: write a dict, such as {{'num_heads': 12}}.")
        self._values: dict[str, Any] = {}
        self._used: set[str] = set()
        self._accepted: set[str] = set()
        for name, value in (hints or {}).items():
            if name not in HINTS:
                raise ConfigError(f'There is no hint "{name}". {did_you_mean(name, HINTS)}')
            if value is not None:
                self._values[name] = _value(name, value)

    def get(self, field: str) -> Any:
        """Returns the hinted value of a field, or None."""
        self._used.add(field)
        self._accepted.add(field)
        return self._values.get(field)

    def discard(self, without_effect: Collection[str]) -> None:
        """Marks fields as without an effect on this model."""
        self._accepted -= set(without_effect)
        self._used -= set(without_effect)

    def translate(self, field: str, names: Mapping[str, Any]) -> None:
        """Replaces a format's names of a field's values by those of vit_jax."""
        if field in self._values:
            self._values[field] = names.get(self._values[field], self._values[field])

    def merge(
        self, facts: Mapping[str, Any], conventions: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Merges facts, hints and conventions.

        Args:
          facts: fields that the file states.
          conventions: fields that it does not state, with their usual values, or None without a
            usual value; a hint replaces them.

        Returns:
          All fields, and the conventions that no hint replaced: they are assumed.

        Raises:
          CheckpointError: a hint contradicts a fact.
        """
        self._accepted |= facts.keys() | conventions.keys()
        self._used |= self._values.keys() & self._accepted
        hinted = {field: self._values[field] for field in self._values.keys() & self._used}
        for field in hinted.keys() & facts.keys():
            if hinted[field] != facts[field]:
                raise CheckpointError(
                    f"The hint {field}={hinted[field]!r} contradicts the checkpoint, which has "
                    f"{facts[field]!r}. Leave the hint out, or check that this is the right file."
                )
        assumed = {
            field: value
            for field, value in conventions.items()
            if field not in hinted and value is not None
        }
        return {**facts, **assumed, **hinted}, assumed

    def check_all_used(self, what: str) -> None:
        """Raises ConfigError if a hint had no effect; `what` names the kind of checkpoint."""
        for field in self._values.keys() - self._used:
            accepted = [name for name in HINTS if name in self._accepted]
            raise ConfigError(
                f"The hint {field}={self._values[field]!r} has no effect on {what}: leave it out. "
                f"Hints with an effect: {', '.join(accepted)}."
            )


def parse_hints(texts: Sequence[str]) -> dict[str, Any]:
    """Parses hints of the command line: ["num_heads=5", "image_size=32x48", "gelu=erf"].

    Raises:
      ConfigError: a text is not of the form NAME=VALUE.
    """
    hints: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--hints={text}: write NAME=VALUE, such as num_heads=12.")
        hints[name] = _parse(value)
    return hints


def _parse(value: str) -> Any:
    if match := re.fullmatch(r"(\d+)x(\d+)", value):
        return int(match[1]), int(match[2])
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _value(name: str, value: Any) -> Any:
    """Returns the value of a hint in the type of its field."""
    kind = HINTS[name]
    if typing.get_origin(kind) is tuple:
        sides = tuple(value) if isinstance(value, list | tuple) else (value, value)
        is_grid = name == "rope_grid"  # It may be 0x0: positions are not scaled.
        smallest = 0 if is_grid else 1
        if len(sides) != 2 or not all(type(side) is int and side >= smallest for side in sides):
            unit = "patches, 16 or (rows, columns)" if is_grid else "pixels, 224 or (height, width)"
            raise ConfigError(f"The hint {name}={value!r}: write {unit}.")
        return sides
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise ConfigError(f"The hint {name}={value!r}: write a number above 0.")
        return float(value)
    if kind is str:
        if not isinstance(value, str) or not value:
            raise ConfigError(f"The hint {name}={value!r}: write a name.")
        return _ALIASES.get((name, value), value)
    if type(value) is not int or value < 0:
        raise ConfigError(f"The hint {name}={value!r}: write a whole number.")
    return value
