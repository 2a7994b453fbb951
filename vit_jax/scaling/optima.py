"""What a fitted law says to do: the best size for a budget, the best shape, where curves cross."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from vit_jax.errors import DataError
from vit_jax.scaling.fitting import Fit
from vit_jax.scaling.intervals import Interval, quantity
from vit_jax.scaling.laws import CHINCHILLA, SHAPE


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The compute-optimal run of a budget.

    Attributes:
      budget: FLOPs.
      n: parameters.
      d: examples.
      y: the loss there.
    """

    budget: float
    n: Interval
    d: Interval
    y: Interval


def optimal_point(
    params: Mapping[str, float], budget: float, *, flops_per: float = 6.0
) -> tuple[float, float]:
    """N and D of the least A / N^alpha + B / D^beta with flops_per N D = budget, in closed form.

    Hoffmann et al. 2022, equation 4: N = G (C / k)^(beta / (alpha + beta)).

    Args:
      params: parameters of the law chinchilla.
      budget: C, training FLOPs.
      flops_per: k, FLOPs for one parameter and one example (or token): 6 for text.
    """
    log_n, log_d = _log_optimum(params, np.log(budget / flops_per), np)
    return float(np.exp(log_n)), float(np.exp(log_d))


def compute_optimal(
    of: Fit, budget: float, *, flops_per: float = 6.0, level: float = 0.9, clusters: Any = None
) -> Optimum:
    """The best N and D of a budget, with intervals.

    Args:
      of: a fit of the law chinchilla.
      budget: C, training FLOPs; C = flops_per N D.
      flops_per: FLOPs for one parameter and one example: 6 for a token of text; for a ViT, 6 times
        its tokens. A fitted or counted number of your models is better.
      level: how often the intervals cover.
      clusters: of the fit's rows, as for `intervals.parameter_intervals`.

    Raises:
      DataError: the law is another, or an exponent is 0, so that more of one is of no use.
    """
    if of.law is not CHINCHILLA:
        raise DataError(f"Compute-optimal sizes need a fit of chinchilla, not of {of.law.name}.")
    useless = [k for k in ("A", "B", "alpha", "beta") if k in of.at_bound]
    if useless:
        raise DataError(
            f"There is no best size: {' and '.join(useless)} of the fit lie at their bounds: the "
            "runs do not show that both parameters and examples matter. Vary both."
        )
    # One program for all three: a row of extra names the one that it is about.
    rows = np.concatenate([np.full((3, 1), math.log(budget / flops_per)), np.eye(3)], axis=1)
    n, d, y = quantity(of, _goal, rows, level=level, clusters=clusters)
    return Optimum(float(budget), n, d, y)


def _log_optimum(p, log_product, xp):
    a, b = p["alpha"], p["beta"]
    log_g = (xp.log(a * p["A"]) - xp.log(b * p["B"])) / (a + b)
    log_n = log_g + b / (a + b) * log_product
    return log_n, log_product - log_n


def _goal(p, extra, xp):
    log_n, log_d = _log_optimum(p, extra[0], xp)
    log_y = CHINCHILLA.log_predict(p, {"n": log_n, "d": log_d}, xp)
    return xp.sum(extra[1:] * xp.stack([log_n, log_d, log_y]), axis=0)


@dataclasses.dataclass(frozen=True)
class ShapeOptimum:
    """The best value of one shape dimension at a compute.

    Attributes:
      t: compute, in the unit of the fit.
      x: the dimension's best value.
      exponent: s = c / (a + b): the best value grows as t^s once xi no longer matters.
    """

    t: float
    x: Interval
    exponent: Interval


def shape_optimal(
    of: Fit,
    t: float,
    *,
    level: float = 0.9,
    clusters: Shaped[np.ndarray, "n"] | None = None,
) -> ShapeOptimum:
    """Where d y / d x = 0 in SoViT's law: x = (alpha a t^c / (beta b))^(1 / (a + b)).

    Args:
      of: a fit of the law shape: x a width, depth or MLP width, t forward FLOPs.
      t: compute.
      level: how often the intervals cover.
      clusters: as for `intervals.parameter_intervals`.

    Raises:
      DataError: the law is another, it has no lowest point, or that lies outside the fitted sizes:
        the sweep has not seen the optimum.
    """
    if of.law is not SHAPE:
        raise DataError(f"Optimal shapes need a fit of the law shape, not of {of.law.name}.")
    if {"a", "b", "alpha", "beta"} & set(of.at_bound):
        raise DataError("The fitted law has no best shape: y only falls, or only rises, with x.")
    at = np.array([[math.log(t)]])
    (x,) = quantity(of, _goal_shape, at, level=level, clusters=clusters)
    swept = of.inputs["x"]
    if not swept.min() < x.estimate < swept.max():
        raise DataError(
            f"The best x at t = {t:g} would be {x.estimate:.4g}, but the runs have {swept.min():g} "
            f"to {swept.max():g}: an optimum at the edge of a sweep is none. Sweep further."
        )
    (exponent,) = quantity(of, _goal_exponent, np.zeros((1, 1)), level=level, clusters=clusters)
    return ShapeOptimum(float(t), x, exponent)


def joint_update(
    shape: Mapping[str, float], exponents: Mapping[str, float], tau: float
) -> dict[str, float]:
    """The shape of tau times the compute: x_k tau^(s_k / 3) for each of the three dimensions.

    Args:
      shape: width, depth and mlp (or other names) of the model to grow.
      exponents: s of each.
      tau: factor of compute.

    Raises:
      DataError: the two name different dimensions.
    """
    if set(shape) != set(exponents):
        raise DataError(
            f"A shape of {', '.join(shape)} needs exponents of those, not {', '.join(exponents)}."
        )
    return {k: x * tau ** (exponents[k] / 3) for k, x in shape.items()}


def _goal_shape(p, extra, xp):
    ratio = xp.log(p["alpha"] * p["a"]) - xp.log(p["beta"] * p["b"]) + p["c"] * extra[0]
    return ratio / (p["a"] + p["b"])


def _goal_exponent(p, extra, xp):
    return xp.log(p["c"]) - xp.log(p["a"] + p["b"])
