"""Checks numbers that a user gives to a measure."""

import numbers
from typing import Any

from vit_jax.errors import ConfigError


def whole_number(
    name: str, value: Any, *, low: int = 1, high: int | None = None, reason: str = ""
) -> int:
    """Returns an argument that must be a whole number within a range.

    Args:
      name: of the argument.
      value: what the user gave; NumPy's whole numbers are accepted, bools are not.
      low: smallest accepted value.
      high: largest accepted value; None: there is none.
      reason: what the range follows from, such as "the model has 12 layers".

    Raises:
      ConfigError: it is something else.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        number = int(value)
        if low <= number and (high is None or number <= high):
            return number
    shown = f'"{value}"' if isinstance(value, str) else value
    accepted = f"it must be at least {low}" if high is None else f"it must be {low} to {high}"
    accepted += "" if isinstance(value, numbers.Integral) else ", a whole number"
    reason = f"{reason}, " if reason else ""
    raise ConfigError(f"{name} is {shown}: {reason}{accepted}.")


def positive_norm(name: str, value: Any) -> None:
    """Checks a threshold of norms; None stands for the measure's own rule.

    Raises:
      ConfigError: it is not a positive number.
    """
    if value is None:
        return
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not float(value) > 0:
        shown = f'"{value}"' if isinstance(value, str) else value
        raise ConfigError(f"{name} is {shown}: give a positive norm, or None.")
