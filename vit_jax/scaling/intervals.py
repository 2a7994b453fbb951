"""Intervals of what a fit says: parameters, predictions, quantities that the parameters decide.

All are by the profile likelihood: they follow the law where it bends, are infinite where the data
do not say, and cover as often as they claim with a few points, of which a percentile bootstrap
covers less (`python -m benchmarks.scaling_fits` prints the table). They assume the law's form.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from vit_jax.scaling.fitting import Fit
from vit_jax.scaling.laws import Parameter, log_inputs
from vit_jax.scaling.profile import FAR, Goal, freedom, prediction, profile, student
from vit_jax.scaling.solver import scaled_parameters

_FAR_UNITS = 1e4  # Of parameters that are no logs, whose unit is of the size of the data.


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and what the data leave open; infinite ends where they do not say."""

    estimate: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Band:
    """Predictions with an interval at each place, of the curve or of a new run.

    Attributes:
      estimate: the fitted law's.
      low: lower ends.
      high: upper ends; may be infinite.
      level: how often the interval covers, at each place.
      of: "curve", the law without noise, or "new run", which has the noise of the fitted ones.
    """

    estimate: Float[np.ndarray, "m"]
    low: Float[np.ndarray, "m"]
    high: Float[np.ndarray, "m"]
    level: float
    of: str


def parameter_intervals(
    fit: Fit, *, level: float = 0.9, clusters: Shaped[np.ndarray, "n"] | None = None
) -> dict[str, Interval]:
    """An interval for every parameter.

    Args:
      fit: of a law.
      level: how often an interval is to cover.
      clusters: of the fit's rows: rows of one cluster, such as the evaluations of one run, err
        together. None: each row errs for itself.
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
    )
    intervals = {}
    for i, parameter in enumerate(table):
        ends = (np.exp(x[i]) if parameter.log else x[i] * units[i] for x in (low, high))
        intervals[parameter.name] = Interval(fit.params[parameter.name], *map(float, ends))
    return intervals


def band(
    fit: Fit,
    inputs: Mapping[str, Any],
    *,
    level: float = 0.9,
    clusters: Shaped[np.ndarray, "n"] | None = None,
    new_run: bool = False,
) -> Band:
    """Predictions with intervals.

    Args:
      fit: of a law.
      inputs: m places, by role.
      level: how often each interval is to cover; not all at once.
      clusters: as for `parameter_intervals`.
      new_run: whether the interval is for the error of a run not yet made, of weight 1, and not
        for the law's curve.
    """
    logs = np.atleast_2d(np.stack(log_inputs(fit.law, inputs)).T)
    middle, low, high = profile(fit, prediction(fit.law), logs, level=level, clusters=clusters)
    if new_run:
        spread = student(level, freedom(fit, clusters)) * deviation(fit)
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
    """Intervals for positive quantities that the parameters decide, such as an optimum.

    Args:
      fit: of a law.
      goal: from the parameters and a row of `extra` to the log of a quantity, see `solver.Goal`.
      extra: what the quantity depends on beside the parameters, a row for each.
      level: how often an interval is to cover.
      clusters: as for `parameter_intervals`.
    """
    found = profile(fit, goal, extra, level=level, clusters=clusters)
    return [Interval(*map(float, np.exp(ends))) for ends in zip(*found, strict=True)]


def deviation(fit: Fit) -> float:
    """Standard deviation of the noise of log y, of a row of weight 1."""
    square = float(fit.weights @ fit.log_residuals**2)
    return math.sqrt(square / (fit.n - len(fit.theta)))


def _unit(fit: Fit, parameter: Parameter) -> float:
    # In which a parameter is of order one: that of y, or what 1 becomes with unscaled inputs.
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
