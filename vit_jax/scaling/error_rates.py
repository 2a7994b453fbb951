"""Notes on errors that are rates of wrong answers: chance level, and the largest possible error."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from vit_jax.scaling.numbers import readable
from vit_jax.scaling.selection import grows

_NAMES = ("error", "error_rate", "error rate", "err")
_MOST_CLASSES = 100  # With more, any error near 1 would be near chance.


def largest_error(name: str, y: Float[np.ndarray, "n"]) -> int | None:
    """Returns the largest possible value of a column of error rates: 1, or 100 of percentages.

    None: the name does not say that it is an error rate, or the values are no such rates. A loss
    may have any value.

    Args:
      name: the column, such as "error" or "test/error", or the expression, such as "1-top1".
      y: its values.
    """
    complement = name.replace(" ", "").partition("-")[0]
    if complement in ("1", "100") and "-" in name:
        largest = int(complement)
    elif name.rsplit("/", 1)[-1].strip().lower() in _NAMES:
        largest = 1 if y.max() <= 1 else 100
    else:
        return None
    return largest if y.min() >= 0 and y.max() <= largest else None


def chance_note(name: str, scale: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> str:
    """Returns a note if no learning is visible in error rates, else "".

    All errors lie near 1 - 1/k for a number of classes k, and do not fall with the scale. The
    number of classes is not in the table, so the note states the one that it compares with.
    """
    largest = largest_error(name, y)
    if largest is None or grows(scale, -y):
        return ""
    correct = 1 - y / largest
    if not 1 / _MOST_CLASSES <= correct.min() < 1:
        return ""
    classes = max(round(1 / float(correct.min())), 2)
    chance = 1 / classes
    if np.max(np.abs(correct - chance)) > 0.2 * chance * (1 - chance):
        return ""
    return (
        f"No learning is visible: {name} is from {readable(y.min())} to {readable(y.max())} and "
        f"does not fall with the scale. Guessing among about {classes} equally frequent classes "
        f"has {readable(largest * (1 - chance))}."
    )


def beyond_note(
    name: str, y: Float[np.ndarray, "n"], intervals: Mapping[str, Mapping[str, Any]]
) -> str:
    """Returns a note of the intervals that exceed the largest possible error, else "".

    Args:
      name: the column, see `largest_error`.
      y: its values.
      intervals: intervals of errors, by what the note calls them; the end "high" of None is
        infinite.
    """
    largest = largest_error(name, y)
    if largest is None:
        return ""
    beyond = [
        label for label, ends in intervals.items() if ends["high"] is None or ends["high"] > largest
    ]
    if not beyond:
        return ""
    return (
        f"The interval of {', '.join(beyond)} exceeds {largest}, the largest possible {name}: the "
        "law does not know of it. Read its upper end as that value."
    )
