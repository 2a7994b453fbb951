"""Finds where two curves cross, and how many times the images one needs for the other's error.

Curves are bands on one grid: of fitted laws (`intervals.band`), or of measured points interpolated
over the log of the size (`interpolated`). The interval of a difference combines the intervals of
both curves (the MOVER method, Zou and Donner 2008). The interval of the crossing contains the sizes
at which that interval includes 0. It may be open on a side; there may be no crossing in the data.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from vit_jax.errors import DataError
from vit_jax.scaling.intervals import Band, Interval
from vit_jax.scaling.numbers import readable


@dataclasses.dataclass(frozen=True)
class Crossing:
    """The size at which two curves cross.

    Attributes:
      x: the size, with an interval; an end beyond the grid is 0 or infinite. None: the curves do
        not cross within the grid.
      reason: the result in words.
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
    """Interpolates measured points linearly in the log of the size.

    Args:
      grid: sizes at which to interpolate, within the measured ones.
      x: measured sizes, ascending.
      y: errors.
      half_width: half widths of the intervals of y; None: y is exact.
      level: coverage of those intervals.

    Raises:
      DataError: the sizes are not ascending, or the grid exceeds them.
    """
    if len(x) < 2 or not (np.diff(x) > 0).all():
        raise DataError("A measured curve needs at least two sizes, in ascending order.")
    if grid.min() < x[0] * (1 - 1e-9) or grid.max() > x[-1] * (1 + 1e-9):
        raise DataError(
            f"Sizes {grid.min():g} to {grid.max():g} exceed the measured ones, {x[0]:g} to "
            f"{x[-1]:g}: fit a law to extrapolate."
        )
    middle, half = (
        np.interp(np.log(grid), np.log(x), np.asarray(v, float))
        for v in (y, np.zeros(len(x)) if half_width is None else half_width)
    )
    return Band(middle, middle - half, middle + half, level, "curve")


def crossover(
    grid: Float[np.ndarray, "m"],
    first: Band,
    second: Band,
    *,
    names: tuple[str, str] = ("the first curve", "the second curve"),
) -> Crossing:
    """Finds the size on an ascending grid from which on the other curve has the smaller error."""
    middle, low, high = _difference(first, second)
    crossing = _last_zero(grid, middle, low, high)
    leader = names[0] if middle[-1] < 0 else names[1]
    if crossing is None:
        is_significant = (high < 0).all() or (low > 0).all()
        return Crossing(
            None,
            f"No crossing from {readable(grid[0], 4)} to {readable(grid[-1], 4)}: {leader} leads "
            "throughout" + ("." if is_significant else ", but not by more than the intervals."),
        )
    open_sides = [
        side
        for side, is_open in (("smaller", crossing.low == 0), ("larger", math.isinf(crossing.high)))
        if is_open
    ]
    note = f" The interval is open towards {' and '.join(open_sides)} sizes." if open_sides else ""
    return Crossing(crossing, f"From {readable(crossing.estimate, 4)} on {leader} leads.{note}")


def more_images(
    grid: Float[np.ndarray, "m"], first: Band, second: Band, *, at: float
) -> Interval | None:
    """Returns how many times the images the second model needs for the first one's error.

    Args:
      grid: sizes, ascending.
      first: errors of the reference model.
      second: errors of the other model.
      at: number of images of the reference model.

    Returns:
      The factor; None if the second model does not reach that error within the grid.
    """
    log_grid = np.log(grid)
    values = [np.interp(np.log(at), log_grid, v) for v in (first.estimate, first.low, first.high)]
    estimate, low, high = (np.full(len(grid), v) for v in values)
    target = Band(estimate, low, high, first.level, first.kind)
    size = _last_zero(grid, *_difference(second, target))
    if size is None:
        return None
    return Interval(*(end / at for end in (size.estimate, size.low, size.high)))


def _difference(first, second):
    middle = first.estimate - second.estimate
    low = np.hypot(first.estimate - first.low, second.high - second.estimate)
    high = np.hypot(first.high - first.estimate, second.estimate - second.low)
    return middle, middle - low, middle + high


def _last_zero(grid, middle, low, high):
    # The last change of sign, and the range of sizes around it whose interval contains 0.
    (changes,) = np.nonzero(np.diff(np.sign(middle)) != 0)
    if not len(changes):
        return None
    i = changes[-1]
    log_x = np.log(grid)
    estimate = log_x[i] + (log_x[i + 1] - log_x[i]) * middle[i] / (middle[i] - middle[i + 1])
    # Towards smaller sizes, the end that must exclude 0 is on the curve's side of 0.
    near, far = (low, high) if middle[i] > 0 or middle[i + 1] < 0 else (-high, -low)
    left = next((j for j in range(i, -1, -1) if near[j] > 0), None)
    right = next((j for j in range(i + 1, len(grid)) if far[j] < 0), None)
    start = -math.inf if left is None else _interpolated_zero(log_x, near, left)
    stop = math.inf if right is None else _interpolated_zero(log_x, far, right - 1)
    return Interval(
        *(float(np.exp(v)) for v in (estimate, min(start, estimate), max(stop, estimate)))
    )


def _interpolated_zero(log_x, values, j):
    if values[j] == values[j + 1]:
        return log_x[j]
    return log_x[j] + (log_x[j + 1] - log_x[j]) * values[j] / (values[j] - values[j + 1])
