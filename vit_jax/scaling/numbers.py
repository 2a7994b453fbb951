"""Formats numbers and intervals for readers."""

import math
from collections.abc import Mapping
from typing import Any


def number(value: Any) -> str:
    """Formats a number with four digits; a dash for None, yes or no for a bool; others as text.

    Whole numbers below a million, also as floats, have all their digits.
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    rounded = float(f"{value:.4g}")
    return f"{rounded:,.0f}" if 1e4 <= abs(rounded) < 1e6 else f"{value:.4g}"


def interval(ends: Mapping[str, Any]) -> str:
    """Formats an interval as "[.31, .36]"; a missing end is infinite."""
    low, high = ends.get("low"), ends.get("high")
    return f"[{'-∞' if low is None else number(low)}, {'∞' if high is None else number(high)}]"


def readable(value: float | int, digits: int = 3) -> str:
    """Formats a finite number for a sentence: 60,000, 0.0123, 3.2e9.

    Args:
      value: the number.
      digits: the number of significant digits to which it is rounded.
    """
    rounded = float(f"{value:.{digits - 1}e}")
    if rounded == 0 or 1e-4 <= abs(rounded) < 1e7:
        exponent = math.floor(math.log10(abs(rounded))) if rounded else 0
        text = f"{rounded:,.{max(digits - 1 - exponent, 0)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, _, exponent_text = f"{rounded:.{digits - 1}e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent_text)}"


def significant_digits(ends: Mapping[str, Any]) -> int:
    """Returns to how many digits to round an estimate in a formula, from its interval: 3 to 5.

    They are two more than the interval's half-width leaves certain. Fewer would change the curve:
    parameters are correlated, so it is far better known than each of them, and an exponent's error
    is multiplied by the log of x, some 30 for FLOPs.
    """
    value, low, high = ends["estimate"], ends["low"], ends["high"]
    if not value or low is None or high is None:
        return 3
    if high <= low:  # Fixed.
        return 5
    ratio = abs(value) / ((high - low) / 2)
    return min(max(math.ceil(math.log10(ratio)) + 2, 3), 5)
