"""The order in which runs are listed."""

import re

_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


def natural_order(name: str) -> tuple[list[str | float], str]:
    """Returns a key that sorts names by the numbers in them: lr=1e-4, lr=0.01, x-2, x-10."""
    parts = _NUMBER.split(name)  # Text and numbers alternate, so equal positions can be compared.
    return [float(part) if i % 2 else part for i, part in enumerate(parts)], name
