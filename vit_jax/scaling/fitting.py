"""Fits a law to runs: least squares or Huber's loss of log residuals, multi-start, with bounds.

Errors of a scaling study are relative, so residuals are log prediction - log y. A fit reports how
well its parameters are determined; `intervals` computes intervals.

`theta` are the solver's parameters: those of scaled inputs, in logs where `Parameter.log` is set.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from vit_jax.errors import DataError
from vit_jax.scaling import varpro
from vit_jax.scaling.laws import Law
from vit_jax.scaling.laws import law as law_by_name
from vit_jax.scaling.method import DEFAULT, Method, theta_bounds
from vit_jax.scaling.rows import FitData, check_rows
from vit_jax.scaling.solver import Problem, Solution, parameters_of, slopes_of, solve

_STARTS, _FINALISTS = 12, 4  # Initial values, and how many of them are fitted to convergence.
# Huber's constant for 95% of the efficiency of least squares under normal noise.
_HUBER = 1.345
_LEAST_DELTA = 1e-3  # The delta of Hoffmann et al.; a lower bound for exact data.


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law.

    Attributes:
      law: the fitted law.
      params: its parameters, in the paper's units.
      rows: indices of the given rows that were used, in order: all, except for a frontier law.
      inputs: inputs of those rows, by role.
      y: errors or losses of those rows.
      weights: weights of those rows.
      delta: Huber's delta, of log residuals; infinite: least squares.
      log_residuals: log prediction - log y.
      rmse_log: root of the weighted mean square of `log_residuals`.
      condition: condition number of the Jacobian, its columns scaled to length one. Above 1e3 the
        parameters are strongly correlated.
      standard_errors: relative standard errors of the parameters, from the Jacobian; rough values,
        see `intervals` for intervals.
      identified: by parameter: "well" (relative standard error below .1), "weakly" (below .5),
        "no", "at its bound", or "fixed" by equal bounds.
      converged: whether the search ended at a minimum.
      agreeing: share of the starts that reached this minimum.
      theta: the solver's parameters.
      slopes: Jacobian of the log predictions of the rows with respect to theta.
      low: lower bounds of theta.
      high: upper bounds of theta.
      scales: logs of the geometric means by which the inputs were divided.
    """

    law: Law
    params: dict[str, float]
    rows: Int[np.ndarray, "n"]
    inputs: dict[str, Float[np.ndarray, "n"]]
    y: Float[np.ndarray, "n"]
    weights: Float[np.ndarray, "n"]
    delta: float
    log_residuals: Float[np.ndarray, "n"]
    rmse_log: float
    condition: float
    standard_errors: dict[str, float]
    identified: dict[str, str]
    converged: bool
    agreeing: float
    theta: Float[np.ndarray, "p"]
    slopes: Float[np.ndarray, "n p"]
    low: Float[np.ndarray, "p"]
    high: Float[np.ndarray, "p"]
    scales: Float[np.ndarray, "inputs"]

    @property
    def n(self) -> int:
        """Returns the number of fitted rows."""
        return len(self.y)

    @property
    def at_bound(self) -> tuple[str, ...]:
        """Returns the parameters that are at a bound."""
        return tuple(name for name, grade in self.identified.items() if grade == "at its bound")

    @property
    def free_parameters(self) -> int:
        """Returns the number of parameters that are not fixed."""
        return int(np.sum(self.low < self.high))

    def predict(self, inputs: Mapping[str, Any]) -> Float[np.ndarray, "*m"]:
        """Predicts errors from positive numbers or arrays of one shape, for every role."""
        return self.law.predict(self.params, inputs)


def fit(
    law: Law | str,
    inputs: Mapping[str, Any],
    y: Any,
    *,
    weights: Any = None,
    method: Method = DEFAULT,
    pad_to: int = 0,
) -> Fit:
    """Fits a law.

    Args:
      law: a law, or its name.
      inputs: arrays of n positive numbers, for every role of the law.
      y: n errors or losses, above 0. If all are at most 1, they are taken as shares: then M4's e0
        is at most 1. A floor is at most the largest y.
      weights: weights of the rows, at least 0; None: equal weights.
      method: delta of Huber's loss, bounds and initial values.
      pad_to: minimum number of rows to compile for, so that fits of several sizes share programs.

    Raises:
      ConfigError: the law is unknown or has other inputs, or the method does not fit it.
      DataError: the rows cannot determine the parameters.
    """
    law = law_by_name(law) if isinstance(law, str) else law
    method.check(law)
    data = check_rows(law, inputs, y, weights, fixed=len(method.fixed))
    low, high = theta_bounds(law, data.y, data.scales, method)
    solution, delta = _search(law, data, (low, high), method=method, pad_to=pad_to)
    best = int(np.argmin(np.nan_to_num(solution.loss, nan=np.inf)))
    if not math.isfinite(solution.loss[best]):
        raise DataError(
            f"No start of the fit of {law.name} reached a finite loss: its inputs or y span too "
            "many orders of magnitude. Fit another law, or fewer rows."
        )
    agrees = solution.loss <= solution.loss[best] * (1 + 1e-6) + 1e-18
    theta = solution.theta[best]
    params = _params_at(law, theta, data.scales)
    log_residuals = np.log(law.predict(params, data.inputs(law))) - np.log(data.y)
    mean_square = float(data.weights @ log_residuals**2 / data.weights.sum())
    slopes, change = slopes_of(law, theta, data.scaled, data.scales, pad_to=pad_to)
    condition, errors, at_bound = _sensitivity(theta, slopes, change, data.weights, (low, high))
    deviation = math.sqrt(mean_square * len(data.y) / (len(data.y) - int(np.sum(low < high))))
    relative = {
        name: float(deviation * errors[i] / max(abs(params[name]), 1e-300))
        for i, name in enumerate(law.parameters)
    }
    return Fit(
        law=law,
        params=params,
        rows=data.rows,
        inputs=data.inputs(law),
        y=data.y,
        weights=data.weights,
        delta=float(delta),
        log_residuals=log_residuals,
        rmse_log=math.sqrt(mean_square),
        condition=condition,
        standard_errors=relative,
        identified={
            name: "fixed"
            if name in method.fixed
            else "at its bound"
            if at_bound[i]
            else _grade(relative[name])
            for i, name in enumerate(law.parameters)
        },
        converged=bool(solution.converged[best]),
        agreeing=float(agrees.mean()),
        theta=theta,
        slopes=slopes,
        low=low,
        high=high,
        scales=data.scales,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Refits:
    """The parameters of many fits of a law.

    Attributes:
      params: arrays by parameter, with one value per fit.
      theta: the solver's parameters.
      loss: loss of each fit.
      converged: whether the search of each fit ended at a minimum.
    """

    params: dict[str, Float[np.ndarray, "b"]]
    theta: Float[np.ndarray, "b p"]
    loss: Float[np.ndarray, "b"]
    converged: Bool[np.ndarray, "b"]


def refits(
    of: Fit,
    *,
    y: Float[np.ndarray, "b n"] | None = None,
    weights: Float[np.ndarray, "b n"] | None = None,
) -> Refits:
    """Refits the rows of a fit many times, in one vectorised search that starts from the fit.

    Args:
      of: the original fit.
      y: other errors of its rows, one row per refit; None: those of the fit.
      weights: other weights, one row per refit, such as the counts of a bootstrap draw.
    """
    count = len(y if y is not None else weights if weights is not None else [0])
    problem = Problem(
        logs=_scaled(of)[None],
        log_y=np.log(of.y[None] if y is None else y),
        weights=of.weights[None] if weights is None else weights,
        low=of.low[None],
        high=of.high[None],
        delta=np.full(1, of.delta),
        scales=of.scales,
    )
    solution = solve(of.law, problem, np.tile(of.theta, (count, 1)))
    parameters = parameters_of(of.law, solution.theta.T, of.scales)
    return Refits(
        {name: parameters[name] for name in of.law.parameters},
        solution.theta,
        solution.loss,
        solution.converged,
    )


def _search(
    law: Law,
    data: FitData,
    bounds: tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"]],
    *,
    method: Method,
    pad_to: int,
) -> tuple[Solution, float]:
    """Returns the minima found from the best starts, and the delta of the loss."""
    low, high = bounds
    delta = method.delta
    start = varpro.starts(
        law, data.scaled, data.y, data.weights, scales=data.scales, method=method, count=_STARTS
    )

    def search(delta: float, start: np.ndarray, rounds: int = 40) -> Solution:
        problem = Problem(
            logs=data.scaled[None],
            log_y=np.log(data.y)[None],
            weights=data.weights[None],
            low=low[None],
            high=high[None],
            delta=np.full(1, delta),
            scales=data.scales,
            pad_to=pad_to,
        )
        return solve(law, problem, start, rounds=rounds)

    # A few steps rank the starts; only the best are fitted to convergence.
    first = search(math.inf if delta is None else delta, start, rounds=4)
    best = first.theta[
        np.argsort(np.nan_to_num(first.loss, nan=np.inf), kind="stable")[:_FINALISTS]
    ]
    solution = search(math.inf if delta is None else delta, best)
    if delta is None:
        free = int(np.sum(low < high))
        delta = _huber_delta(law, solution.theta[np.nanargmin(solution.loss)], data, free)
        solution = search(delta, solution.theta)
    return solution, delta


def _huber_delta(law, theta, data, free):
    parameters = _params_at(law, theta, np.zeros(len(data.scales)))
    inputs = {role: np.exp(x) for role, x in zip(law.inputs, data.scaled, strict=True)}
    residuals = np.log(law.predict(parameters, inputs)) - np.log(data.y)
    absolute = np.abs(residuals)[data.weights > 0]
    deviation = np.median(absolute) / 0.6745
    deviation *= math.sqrt(len(absolute) / (len(absolute) - free))
    return max(_LEAST_DELTA, _HUBER * deviation)


def _params_at(law, theta, scales):
    parameters = parameters_of(law, theta, scales)
    return {name: float(parameters[name]) for name in law.parameters}


def _scaled(of: Fit) -> Float[np.ndarray, "inputs n"]:
    return np.log(np.stack([of.inputs[role] for role in of.law.inputs])) - of.scales[:, None]


def _grade(relative_error: float) -> str:
    return "well" if relative_error < 0.1 else "weakly" if relative_error < 0.5 else "no"


def _sensitivity(theta, slopes, change, weights, bounds):
    # Condition number and standard errors per unit of noise, of parameters not at bounds.
    low, high = bounds
    margin = 1e-9 * (1 + np.abs(theta))
    at_bound = (theta <= low + margin) | (theta >= high - margin)
    slopes = (slopes * np.sqrt(weights)[:, None])[:, ~at_bound]
    length = np.linalg.norm(slopes, axis=0)
    idle = length == 0  # Parameters without effect on predictions: their errors are infinite.
    length = np.where(idle, 1.0, length)
    values = np.linalg.svd(slopes / length, compute_uv=False)
    condition = float(values[0] / max(values[-1], 1e-300)) if len(values) else 1.0
    inverse = np.linalg.pinv(slopes / length, rcond=1e-14)
    change = change[:, ~at_bound]
    errors = np.linalg.norm((change / length) @ inverse, axis=1)
    errors[(change[:, idle] != 0).any(1)] = math.inf
    return condition, errors, at_bound
