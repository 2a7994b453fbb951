"""Intervals of parameters, predictions and quantities derived from the parameters.

All are profile likelihood intervals: they follow the curvature of the law, are infinite where the
data leave a quantity undetermined, and have their nominal coverage also with a few points, where a
percentile bootstrap covers less (`python -m benchmarks.scaling_fits` prints the table). They assume
the law's form.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from vit_jax.scaling.fitting import Fit
from vit_jax.scaling.fitting import fit as fit_law
from vit_jax.scaling.laws import Parameter, log_inputs
from vit_jax.scaling.method import Method, numerical_bounds
from vit_jax.scaling.profile import (
    FAR,
    Goal,
    degrees_of_freedom,
    prediction,
    profile,
    rise,
    student_quantile,
)
from vit_jax.scaling.solver import scaled_parameters

_FAR_UNITS = 1e4  # For parameters that are not logs, in units of the size of the data.


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with an interval; an end is infinite where the data do not bound it."""

    estimate: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Band:
    """Predictions with an interval at each point, of the curve or of a new run.

    Attributes:
      estimate: predictions of the fitted law.
      low: lower ends.
      high: upper ends; may be infinite.
      level: coverage at each point (pointwise, not simultaneous).
      kind: "curve", the law without noise, or "new run", with the noise of the fitted runs.
    """

    estimate: Float[np.ndarray, "m"]
    low: Float[np.ndarray, "m"]
    high: Float[np.ndarray, "m"]
    level: float
    kind: str


def parameter_intervals(
    fit: Fit, *, level: float = 0.9, clusters: Shaped[np.ndarray, "n"] | None = None
) -> dict[str, Interval]:
    """Computes an interval for every parameter.

    Args:
      fit: a fit of a law.
      level: coverage of each interval.
      clusters: cluster of each fitted row. Errors of rows in one cluster, such as the evaluations
        of one run, are dependent. None: the errors of all rows are independent.
    """
    table = fit.law.table
    units = np.array([1.0 if parameter.log else _unit(fit, parameter) for parameter in table])
    far = np.where([parameter.log for parameter in table], FAR, _FAR_UNITS)
    _, low, high = profile(
        fit,
        _parameter_goals(fit.law),
        np.diag(1 / units),
        level=level,
        clusters=clusters,
        far=far,
        numerical=numerical_bounds(fit.law, fit.y, (fit.low, fit.high)),
    )
    intervals = {}
    for i, parameter in enumerate(table):
        ends = (np.exp(x[i]) if parameter.log else x[i] * units[i] for x in (low, high))
        intervals[parameter.name] = Interval(fit.params[parameter.name], *map(float, ends))
    if all(math.isfinite(end) for x in intervals.values() for end in (x.low, x.high)):
        return intervals
    # The path from the estimate may miss a slow power law without a floor that fits as well.
    for other in _without_floor(fit):
        limit = student_quantile(level, degrees_of_freedom(fit, clusters))
        if rise(fit, other) <= limit:
            for name, found in intervals.items():
                value = other.params[name]
                low_end, high_end = min(found.low, value), max(found.high, value)
                intervals[name] = Interval(found.estimate, low_end, high_end)
    return intervals


def _without_floor(fit: Fit) -> list[Fit]:
    """Returns the fit whose floors are 0; none if the bounds of the fit exclude it."""
    table = fit.law.table
    bounds = {
        p.name: (0.0, 0.0) for p, low in zip(table, fit.low, strict=True) if p.floor and not low
    }
    if not bounds:
        return []
    method = Method(delta=fit.delta, bounds=bounds)
    other = fit_law(fit.law, fit.inputs, fit.y, weights=fit.weights, method=method)
    is_within = np.all((fit.low <= other.theta) & (other.theta <= fit.high))
    return [other] if is_within else []


def identified(fit: Fit, intervals: Mapping[str, Interval]) -> dict[str, str]:
    """Grades how well the data determine each parameter.

    The grade is that of the standard errors (`Fit.identified`), which assume that the loss is
    quadratic, unless the interval is unbounded or reaches 0: then it is "no", since not even the
    order of magnitude is known. It is "weakly" at best if the interval spans more than a factor of
    three.

    Args:
      fit: a fit of a law.
      intervals: its `parameter_intervals`.
    """
    grades = dict(fit.identified)
    for name, found in intervals.items():
        is_bounded = math.isfinite(found.low) and math.isfinite(found.high)
        if grades[name] in ("well", "weakly") and not (
            is_bounded and (found.low > 0 or found.high < 0)
        ):
            grades[name] = "no"
        elif grades[name] == "well" and max(found.high / found.low, found.low / found.high) > 3:
            grades[name] = "weakly"
    return grades


def band(
    fit: Fit,
    inputs: Mapping[str, Any],
    *,
    level: float = 0.9,
    clusters: Shaped[np.ndarray, "n"] | None = None,
    new_run: bool = False,
) -> Band:
    """Computes predictions with intervals.

    Args:
      fit: a fit of a law.
      inputs: m points, by role.
      level: coverage at each point (pointwise, not simultaneous).
      clusters: see `parameter_intervals`.
      new_run: whether the interval is for the error of a new run of weight 1, instead of the curve.
    """
    logs = np.atleast_2d(np.stack(log_inputs(fit.law, inputs)).T)
    middle, low, high = profile(fit, prediction(fit.law), logs, level=level, clusters=clusters)
    if new_run:
        spread = student_quantile(level, degrees_of_freedom(fit, clusters)) * deviation(fit)
        low = middle - np.hypot(middle - low, spread)
        high = middle + np.hypot(high - middle, spread)
    return Band(np.exp(middle), np.exp(low), np.exp(high), level, "new run" if new_run else "curve")


def quantity(
    fit: Fit,
    goal: Goal,
    extra: Float[np.ndarray, "m any"],
    *,
    level: float = 0.9,
    clusters: Shaped[np.ndarray, "n"] | None = None,
) -> list[Interval]:
    """Computes intervals for positive functions of the parameters, such as an optimum.

    Args:
      fit: a fit of a law.
      goal: (parameters, row of `extra`) -> log of the quantity, see `solver.Goal`.
      extra: further arguments of the goal, a row for each quantity.
      level: coverage of each interval.
      clusters: see `parameter_intervals`.
    """
    columns = profile(fit, goal, extra, level=level, clusters=clusters)
    return [Interval(*map(float, np.exp(values))) for values in zip(*columns, strict=True)]


def deviation(fit: Fit) -> float:
    """Returns the standard deviation of the noise of log y, for a row of weight 1."""
    square = float(fit.weights @ fit.log_residuals**2)
    return math.sqrt(square / (fit.n - fit.free_parameters))


def _unit(fit: Fit, parameter: Parameter) -> float:
    # A unit in which the parameter is of order one: that of y, or the value of 1 after rescaling.
    if parameter.floor or parameter.name == "e0":
        return float(np.exp(np.log(fit.y).mean()))
    scaled = scaled_parameters(fit.law, fit.theta) | {parameter.name: 1.0}
    scales = dict(zip(fit.law.inputs, fit.scales, strict=True))
    return float(fit.law.rescale(scaled, scales, np)[parameter.name])


@functools.cache
def _parameter_goals(law):
    def goal(parameters, extra, xp):
        values = [xp.log(parameters[x.name]) if x.log else parameters[x.name] for x in law.table]
        return xp.sum(extra * xp.stack(values), axis=0)

    return goal
