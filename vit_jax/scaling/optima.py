"""Optima of a fitted law: the best size for a budget, the best shape for a compute."""

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
      budget: training FLOPs.
      n: number of parameters.
      d: number of examples.
      y: the loss at the optimum.
    """

    budget: float
    n: Interval
    d: Interval
    y: Interval


def optimal_point(
    params: Mapping[str, float], budget: float, *, flops_per: float = 6.0
) -> tuple[float, float]:
    """Returns N and D that minimise A / N^alpha + B / D^beta with flops_per N D = budget.

    Hoffmann et al. 2022, equation 4: N = G (C / k)^(beta / (alpha + beta)).

    Args:
      params: parameters of the law chinchilla.
      budget: C, training FLOPs.
      flops_per: k, FLOPs per parameter and example (or token): 6 for text.
    """
    log_n, log_d = _log_optimum(params, np.log(budget / flops_per), np)
    return float(np.exp(log_n)), float(np.exp(log_d))


def compute_optimal(
    of: Fit, budget: float, *, flops_per: float = 6.0, level: float = 0.9, clusters: Any = None
) -> Optimum:
    """Computes the compute-optimal N and D of a budget, with intervals.

    Args:
      of: a fit of the law chinchilla.
      budget: C, training FLOPs; C = flops_per N D.
      flops_per: FLOPs per parameter and example: 6 for a token of text; for a ViT, 6 times its
        tokens. A fitted or counted number for your models is better.
      level: coverage of the intervals.
      clusters: see `intervals.parameter_intervals`.

    Raises:
      DataError: the fit is of another law, or a parameter is at a bound, so there is no optimum.
    """
    if of.law is not CHINCHILLA:
        raise DataError(f"Compute-optimal sizes need a fit of chinchilla, not of {of.law.name}.")
    at_bound = [k for k in ("A", "B", "alpha", "beta") if k in of.at_bound]
    if at_bound:
        raise DataError(
            f"There is no best size: {' and '.join(at_bound)} of the fit lie at their bounds, so "
            "the runs do not show that both parameters and examples matter. Vary both."
        )
    # One program for n, d and y: each row of extra selects one of them.
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
    """The best value of a shape dimension for a compute.

    Attributes:
      t: compute, in the unit of the fit.
      x: the best value of the dimension.
      exponent: s = c / (a + b): the best value grows as t^s.
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
    """Solves d y / d x = 0 in SoViT's law: x = (alpha a t^c / (beta b))^(1 / (a + b)).

    Args:
      of: a fit of the law shape: x is a width, depth or MLP width, t is compute.
      t: compute, in the unit of the fit.
      level: coverage of the intervals.
      clusters: see `intervals.parameter_intervals`.

    Raises:
      DataError: the fit is of another law, the law has no minimum, or the minimum lies outside the
        fitted sizes.
    """
    if of.law is not SHAPE:
        raise DataError(f"Optimal shapes need a fit of the law shape, not of {of.law.name}.")
    if {"a", "b", "alpha", "beta"} & set(of.at_bound):
        raise DataError("The fitted law has no best shape: y is monotonic in x.")
    at = np.array([[math.log(t)]])
    (x,) = quantity(of, _goal_shape, at, level=level, clusters=clusters)
    swept = of.inputs["x"]
    if not swept.min() < x.estimate < swept.max():
        raise DataError(
            f"The best x at t = {t:g} would be {x.estimate:.4g}, outside the sweep from "
            f"{swept.min():g} to {swept.max():g}, so it is not supported by runs. Sweep further."
        )
    (exponent,) = quantity(of, _goal_exponent, np.zeros((1, 1)), level=level, clusters=clusters)
    return ShapeOptimum(float(t), x, exponent)


def joint_update(
    shape: Mapping[str, float], exponents: Mapping[str, float], tau: float
) -> dict[str, float]:
    """Returns the shape for tau times the compute: x_k tau^(s_k / 3) for each of three dimensions.

    Args:
      shape: width, depth and mlp (or other names) of the model to grow.
      exponents: exponent s of each dimension.
      tau: factor of compute.

    Raises:
      DataError: `shape` and `exponents` have different dimensions.
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
