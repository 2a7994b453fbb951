"""IsoFLOP valleys: the best size at each budget by a parabola, then a power law of the optima.

Approach 2 of Hoffmann et al. 2022 (2203.15556). A valley of L = E + A/N^alpha + B/D^beta along
N D = const is steeper on the side of the larger exponent, but a parabola is symmetric: its minimum
has a `bias`, which grows with the square of the log of the spread. A fit of the law of both inputs
(`fitting.fit("chinchilla", ...)`, `optima.compute_optimal`) has no such bias.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from vit_jax.errors import DataError
from vit_jax.scaling.fitting import Fit, fit
from vit_jax.scaling.method import DEFAULT, Method


@dataclasses.dataclass(frozen=True)
class Valley:
    """The runs of one budget and their parabola y = lowest + curvature / 2 (log x - log best)^2.

    Attributes:
      budget: compute of each run.
      x: sizes, ascending.
      y: losses.
      best: size at the parabola's minimum.
      lowest: loss at the minimum.
      curvature: second derivative of the parabola in log x.
      interior: whether `best` lies between the smallest and the largest size.
    """

    budget: float
    x: Float[np.ndarray, "n"]
    y: Float[np.ndarray, "n"]
    best: float
    lowest: float
    curvature: float
    interior: bool


@dataclasses.dataclass(frozen=True, eq=False)
class IsoFlop:
    """Valleys and the power law of their minima, best = b budget^c.

    Attributes:
      valleys: one per budget, ascending.
      optima: the power law fitted to the interior minima.
      exponent: c of the power law.
      spread: largest factor between the minimum and an end of its valley.
    """

    valleys: tuple[Valley, ...]
    optima: Fit
    exponent: float
    spread: float


def valley(budget: float, x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> Valley:
    """Fits a parabola in log x to the losses of one budget, by least squares.

    Raises:
      DataError: there are fewer than three sizes, or the parabola has no minimum.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if not (np.isfinite(y).all() and np.isfinite(x).all() and (x > 0).all()):
        raise DataError(f"The valley of budget {budget:g} has invalid sizes or losses.")
    if len(np.unique(x)) < 3:
        raise DataError(
            f"The valley of budget {budget:g} has {len(np.unique(x))} sizes; a parabola needs 3."
        )
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    middle = np.log(x).mean()
    if np.ptp(y) <= 1e-9 * np.abs(y).max():  # Equal but for rounding, as of 1 - top1.
        raise DataError(f"The losses of budget {budget:g} are all {y[0]:g}: they have no valley.")
    square, line, level = np.polyfit(np.log(x) - middle, y, 2)
    if square <= 0:
        raise DataError(
            f"The losses of budget {budget:g} have no valley: their parabola opens downwards. Add "
            "smaller and larger sizes."
        )
    best = math.exp(middle - line / (2 * square))
    return Valley(
        budget=float(budget),
        x=x,
        y=y,
        best=best,
        lowest=float(level - line**2 / (4 * square)),
        curvature=float(2 * square),
        interior=bool(x[0] < best < x[-1]),
    )


def isoflop(
    budget: Float[np.ndarray, "n"],
    x: Float[np.ndarray, "n"],
    y: Float[np.ndarray, "n"],
    *,
    method: Method = DEFAULT,
) -> IsoFlop:
    """Fits the valleys of all budgets, and a power law to their minima.

    Args:
      budget: compute of each run; a valley ends where the next budget is more than 2% larger.
      x: sizes: parameters, or examples.
      y: losses.
      method: how the power law is fitted; the parabolas are fitted by least squares.

    Raises:
      DataError: a valley cannot be fitted, or fewer than three have an interior minimum.
    """
    budget, x, y = (np.asarray(v, float) for v in (budget, x, y))
    order = np.argsort(budget, kind="stable")
    breaks = np.flatnonzero(np.diff(np.log(budget[order])) > 0.02) + 1
    valleys = tuple(
        valley(float(np.exp(np.log(budget[rows]).mean())), x[rows], y[rows])
        for rows in np.split(order, breaks)
    )
    interior = [v for v in valleys if v.interior]
    if len(interior) < 3:
        raise DataError(
            f"{len(interior)} of {len(valleys)} budgets have their optimum between the smallest "
            "and the largest size; their power law needs three. Sweep more sizes or budgets."
        )
    budgets = {"x": np.array([v.budget for v in interior])}
    optima = fit("power", budgets, [v.best for v in interior], method=method)
    spread = max(max(v.x[-1] / v.best, v.best / v.x[0]) for v in interior)
    return IsoFlop(valleys, optima, optima.params["c"], float(spread))


def bias(spread: float, *, alpha: float, beta: float, points: int) -> float:
    """Returns the relative bias of a parabola's best D, without noise.

    Args:
      spread: largest D / best D; the smallest D is the best divided by this.
      alpha: exponent of N in the law of both inputs.
      beta: exponent of D.
      points: number of points of the valley, evenly spaced in log D around the optimum.

    Returns:
      E.g. -.0510 for a spread of 16, 15 points and Hoffmann et al.'s .34 and .28.
    """
    # Along the budget N falls as D grows; at the optimum alpha A / N^alpha = beta B / D^beta.
    t = math.log(spread) * np.linspace(-1, 1, points)
    loss = beta * np.exp(alpha * t) + alpha * np.exp(-beta * t)
    square, line, _ = np.polyfit(t, loss, 2)
    return math.exp(-line / (2 * square)) - 1
