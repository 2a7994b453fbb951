"""Declares a field of a model's config: default, meaning, accepted values and kind, in one place.

The section `model` of a run's config, the checks, what `init_from` inherits, what inspection shows,
the hints for a checkpoint and what an export must express are all derived from these declarations.
"""

import dataclasses
import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vit_jax.errors import ConfigError, did_you_mean


class Kind(enum.Enum):
    """What a field decides, and therefore who may change it."""

    SIZE = enum.auto()  # Shapes of parameters. Every checkpoint format can express it.
    ARCHITECTURE = enum.auto()  # What is computed. A format must express it, or it is the default.
    NUMERICS = enum.auto()  # The same, but another value changes the outputs only a little.
    RUN = enum.auto()  # How a run computes and regularises. No part of a checkpoint.


@dataclasses.dataclass(frozen=True)
class Bounds:
    """An interval of accepted numbers, closed unless `above` or `below` is set."""

    low: int | float = -math.inf
    high: int | float = math.inf
    above: bool = False  # `low` itself is not accepted.
    below: bool = False  # `high` itself is not accepted.

    def __contains__(self, value: int | float) -> bool:
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        if self.below:
            return f"in {'(' if self.above else '['}{self.low:,}, {self.high:,})"
        if self.high < math.inf:
            start = f"above {self.low:,} and at most" if self.above else f"from {self.low:,} to"
            return f"{start} {self.high:,}"
        return f"{'above' if self.above else 'at least'} {self.low:,}"


SHARE = Bounds(0, 1, below=True)
POSITIVE = Bounds(0, above=True)


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What a field is beside its name, type and default. See `declare` for the attributes."""

    doc: str
    kind: Kind
    choices: tuple[str, ...]
    bounds: Bounds | None
    matters_if: Mapping[str, tuple[Any, ...]]
    hint: bool
    section: str | None
    section_default: Any


_UNSET = object()


def declare(
    kind: Kind,
    doc: str,
    *,
    default: Any = dataclasses.MISSING,
    choices: Sequence[str] = (),
    bounds: Bounds | None = None,
    matters_if: Mapping[str, tuple[Any, ...]] | None = None,
    hint: bool = False,
    section: str | None = "",
    section_default: Any = _UNSET,
) -> Any:
    """A dataclass field with its declaration.

    Args:
      kind: who may change it.
      doc: what it is, with its unit, for a reader of a config.
      default: none: the field must be given.
      choices: accepted names.
      bounds: accepted numbers; of a tuple, each of its numbers.
      matters_if: other fields and those of their values with which this one has an effect.
      hint: a caller may tell it of a checkpoint whose file does not.
      section: where a run's config has it: "" in `model`, "resnet" in `model.resnet`; None: it
        follows from `model.variant`.
      section_default: in the config. Unset: the default of a field of kind RUN, else None, which
        stands for what the variant or the checkpoint has.
    """
    if section_default is _UNSET:
        section_default = default if kind is Kind.RUN else None
    declaration = Declaration(
        doc, kind, tuple(choices), bounds, matters_if or {}, hint, section, section_default
    )
    return dataclasses.field(default=default, metadata={"declaration": declaration})


def declarations(config: Any) -> Iterator[tuple[dataclasses.Field, Declaration]]:
    """The fields of a config, or of its class, with their declarations."""
    for field in dataclasses.fields(config):
        yield field, field.metadata["declaration"]


def names_of(config: Any, kind: Kind) -> list[str]:
    """Names of the fields of a kind, as they are declared."""
    return [field.name for field, declared in declarations(config) if declared.kind is kind]


def has_effect(config: Any, name: str) -> bool:
    """Whether a field changes what a model computes, or its other fields make it meaningless."""
    declared = type(config).__dataclass_fields__[name].metadata["declaration"]
    return all(getattr(config, other) in values for other, values in declared.matters_if.items())


def check_fields(config: Any) -> None:
    """Checks each field by itself.

    Raises:
      ConfigError: naming the field, and the nearest accepted name or the accepted numbers.
    """
    for field, declared in declarations(config):
        value = getattr(config, field.name)
        section = f"{declared.section}." if declared.section else ""
        check_value(
            f"model.{section}{field.name}", value, choices=declared.choices, bounds=declared.bounds
        )


def check_value(
    key: str, value: Any, *, choices: Sequence[str] = (), bounds: Bounds | None = None
) -> None:
    """Raises ConfigError, naming the key, unless a value is one of the accepted."""
    if choices and value not in choices:
        raise ConfigError(f'{key} is "{value}". {did_you_mean(value, choices)}')
    if bounds is None:
        return
    for number in value if isinstance(value, tuple) else (value,):
        if number not in bounds:
            each = "each number " if isinstance(value, tuple) else "it "
            raise ConfigError(f"{key} is {value}: {each}must be {bounds}.")
