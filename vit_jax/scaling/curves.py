"""Where two curves cross, and how many more images one needs for the error of the other.

Curves are bands on one grid: of fitted laws (`intervals.band`) or of measured points, read between
them on the log of the size (`interpolated`). The interval of a difference is made of both curves'
intervals, end by end (the MOVER of Zou and Donner 2008), and what it cannot tell from a crossing is
the interval of the crossing: it may be open on a side, or there may be none within the data.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from vit_jax.errors import DataError
from vit_jax.scaling.intervals import Band, Interval


@dataclasses.dataclass(frozen=True)
class Crossing:
    """Where the first curve falls below the second, or rises above it.

    Attributes:
      x: the size, with an interval: an end that the grid does not reach is 0 or infinite. None:
        the curves do not cross within the grid.
      reason: in words.
    """

    x: Interval | None
    reason: str


def interpolated(
    grid: Float[np.ndarray, "m"],
    x: Float[np.ndarray, "n"],
    y: Float[np.ndarray, "n"],
    *,
    half_width: Float[np.ndarray, "n"] | None = None,
    level: float = 0.9,
) -> Band:
    """Measured points as a curve, linear in the log of the size.

    Args:
      grid: sizes to read it at, within the measured ones.
      x: measured sizes, ascending.
      y: errors.
      half_width: of the intervals of y; None: they are taken as exact.
      level: of those intervals.

    Raises:
      DataError: sizes are not ascending, or the grid leaves them.
    """
    if len(x) < 2 or not (np.diff(x) > 0).all():
        raise DataError("A measured curve needs two sizes or more, ascending.")
    if grid.min() < x[0] * (1 - 1e-9) or grid.max() > x[-1] * (1 + 1e-9):
        raise DataError(
            f"Sizes {grid.min():g} to {grid.max():g} leave the measured ones, {x[0]:g} to "
            f"{x[-1]:g}: fit a law to go beyond them."
        )
    middle, wide = (
        np.interp(np.log(grid), np.log(x), np.asarray(v, float))
        for v in (y, np.zeros(len(x)) if half_width is None else half_width)
    )
    return Band(middle, middle - wide, middle + wide, level, "curve")


def crossover(
    grid: Float[np.ndarray, "m"],
    first: Band,
    second: Band,
    *,
    names: tuple[str, str] = ("the first curve", "the second curve"),
) -> Crossing:
    """The size from which on another curve is the better one.

    Args:
      grid: sizes, ascending.
      first: errors of a model at them, such as a ViT.
      second: errors of another, such as a CNN.
      names: of both, for the reason.
    """
    middle, low, high = _difference(first, second)
    found = _zero(grid, middle, low, high)
    leader = names[0] if middle[-1] < 0 else names[1]
    if found is None:
        sure = (high < 0).all() or (low > 0).all()
        return Crossing(
            None,
            f"No crossing from {grid[0]:.4g} to {grid[-1]:.4g}: {leader} leads throughout"
            + ("." if sure else ", but not by more than the intervals."),
        )
    beyond = [
        side
        for side, end in (("smaller", found.low == 0), ("larger", math.isinf(found.high)))
        if end
    ]
    tail = f" The data leave it open at {' and '.join(beyond)} sizes." if beyond else ""
    return Crossing(found, f"From {found.estimate:.4g} on {leader} leads.{tail}")


def needed(grid: Float[np.ndarray, "m"], curve: Band, error: float) -> Interval | None:
    """The size that brings a curve to an error; None if it does not get there within the grid."""
    exact = Band(*(np.full(len(grid), error),) * 3, curve.level, curve.of)
    return _zero(grid, *_difference(curve, exact))


def more_images(
    grid: Float[np.ndarray, "m"], first: Band, second: Band, *, at: float
) -> Interval | None:
    """How many times the images the second model needs for the first one's error.

    Args:
      grid: sizes, ascending.
      first: errors of the model that is the standard.
      second: errors of the other.
      at: images that the first has.

    Returns:
      The factor; None if the second does not come to that error within the grid.
    """
    place = np.log(at)
    values = [np.interp(place, np.log(grid), v) for v in (first.estimate, first.low, first.high)]
    level = Band(*(np.full(len(grid), v) for v in values), first.level, first.of)
    found = _zero(grid, *_difference(second, level))
    if found is None:
        return None
    return Interval(*(end / at for end in (found.estimate, found.low, found.high)))


def _difference(first, second):
    middle = first.estimate - second.estimate
    low = np.hypot(first.estimate - first.low, second.high - second.estimate)
    high = np.hypot(first.high - first.estimate, second.estimate - second.low)
    return middle, middle - low, middle + high


def _zero(grid, middle, low, high):
    # The last change of sign, and the sizes around it that cannot be told from it.
    (changes,) = np.nonzero(np.diff(np.sign(middle)) != 0)
    if not len(changes):
        return None
    i = changes[-1]
    log_x = np.log(grid)
    estimate = log_x[i] + (log_x[i + 1] - log_x[i]) * middle[i] / (middle[i] - middle[i + 1])
    # Towards smaller sizes the end that must leave 0 is the one on the side where the curve is.
    near, far = (low, high) if middle[i] > 0 or middle[i + 1] < 0 else (-high, -low)
    left = next((j for j in range(i, -1, -1) if near[j] > 0), None)
    right = next((j for j in range(i + 1, len(grid)) if far[j] < 0), None)
    start = -math.inf if left is None else _between(log_x, near, left)
    stop = math.inf if right is None else _between(log_x, far, right - 1)
    return Interval(
        *(float(np.exp(v)) for v in (estimate, min(start, estimate), max(stop, estimate)))
    )


def _between(log_x, values, j):
    if values[j] == values[j + 1]:
        return log_x[j]
    return log_x[j] + (log_x[j + 1] - log_x[j]) * values[j] / (values[j] - values[j + 1])
