"""Declares a field of a model's config: default, meaning, accepted values and role, in one place.

Derived from these declarations are the section `model` of a run's config, the checks, inheritance
by `init_from`, inspection, the hints for a checkpoint, and the fields that an export must express.
"""

import dataclasses
import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vit_jax.errors import ConfigError, did_you_mean


class Role(enum.Enum):
    """Whether a field belongs to a checkpoint, and whether a format must express it."""

    SIZE = enum.auto()  # Decides shapes of parameters. Every checkpoint format can express it.
    # Decides which function the model computes. A format must express any value but the default.
    ARCHITECTURE = enum.auto()
    NUMERICS = enum.auto()  # As ARCHITECTURE, but another value changes the outputs only a little.
    RUN = enum.auto()  # How a run computes and regularises. No property of a published checkpoint.


@dataclasses.dataclass(frozen=True)
class Bounds:
    """An interval of accepted numbers, closed unless `low_open` or `high_open` is set."""

    low: int | float = -math.inf
    high: int | float = math.inf
    low_open: bool = False  # `low` itself is not accepted.
    high_open: bool = False  # `high` itself is not accepted.

    def __contains__(self, value: int | float) -> bool:
        return (self.low < value if self.low_open else self.low <= value) and (
            value < self.high if self.high_open else value <= self.high
        )

    def __str__(self) -> str:
        if self.high_open and self.high < math.inf:
            return (
                f"{'above' if self.low_open else 'at least'} {self.low:,} and below {self.high:,}"
            )
        if self.high < math.inf:
            start = f"above {self.low:,} and at most" if self.low_open else f"from {self.low:,} to"
            return f"{start} {self.high:,}"
        return f"{'above' if self.low_open else 'at least'} {self.low:,}"


FRACTION = Bounds(0, 1, high_open=True)
POSITIVE = Bounds(0, low_open=True, high_open=True)  # And finite.


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What a field declares besides its name, type and default; see `declare`."""

    doc: str
    role: Role
    choices: tuple[str, ...]
    bounds: Bounds | None
    used_if: Mapping[str, tuple[Any, ...]]
    hint: bool
    section: str | None
    section_default: Any


def declare(
    role: Role,
    doc: str,
    *,
    default: Any = dataclasses.MISSING,
    choices: Sequence[str] = (),
    bounds: Bounds | None = None,
    used_if: Mapping[str, tuple[Any, ...]] | None = None,
    hint: bool = False,
    section: str | None = "",
) -> Any:
    """Returns a dataclass field with its declaration.

    Args:
      role: its role.
      doc: its meaning and unit, for readers of a config; ends with a full stop.
      default: the default value; without one, the field is required.
      choices: accepted names.
      bounds: accepted numbers; for a tuple, they apply to each of its numbers.
      used_if: {other field: its values for which this field has an effect}; None: always.
      hint: whether a caller may state it for a checkpoint whose file does not contain it.
      section: its section in a run's config: "" for `model`, "resnet" for `model.resnet`; None:
        it is not a key, but follows from `model.variant`.
    """
    # None stands for the value of the variant or of the checkpoint.
    section_default = default if role is Role.RUN else None
    declaration = Declaration(
        doc, role, tuple(choices), bounds, used_if or {}, hint, section, section_default
    )
    return dataclasses.field(default=default, metadata={"declaration": declaration})


def declarations(config: Any) -> Iterator[tuple[dataclasses.Field, Declaration]]:
    """Yields the fields of a config, or of its class, with their declarations."""
    for field in dataclasses.fields(config):
        yield field, field.metadata["declaration"]


def field_names(config: Any, role: Role) -> list[str]:
    """Returns the names of the fields of a role, in the order of their declaration."""
    return [field.name for field, declaration in declarations(config) if declaration.role is role]


def has_effect(config: Any, name: str) -> bool:
    """Whether a field has an effect, given the values of the config's other fields."""
    declaration = type(config).__dataclass_fields__[name].metadata["declaration"]
    return all(getattr(config, other) in values for other, values in declaration.used_if.items())


def check_fields(config: Any) -> None:
    """Checks the value of each field against its choices and bounds.

    Raises:
      ConfigError: a value is not accepted; the message names the field, and the nearest accepted
        name or the accepted numbers.
    """
    for field, declaration in declarations(config):
        value = getattr(config, field.name)
        section = f"{declaration.section}." if declaration.section else ""
        check_value(
            f"model.{section}{field.name}",
            value,
            choices=declaration.choices,
            bounds=declaration.bounds,
        )


def check_value(
    key: str, value: Any, *, choices: Sequence[str] = (), bounds: Bounds | None = None
) -> None:
    """Raises ConfigError unless a value is one of the choices and within the bounds."""
    if choices and value not in choices:
        raise ConfigError(f'{key} is "{value}". {did_you_mean(value, choices)}')
    if bounds is None:
        return
    for number in value if isinstance(value, tuple) else (value,):
        if number not in bounds:
            each = "each number " if isinstance(value, tuple) else "it "
            raise ConfigError(f"{key} is {value}: {each}must be {bounds}.")
