"""The rows that a law is fitted to: their checks, logs and scales."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vit_jax.errors import DataError
from vit_jax.scaling.laws import LAWS, Law, log_inputs
from vit_jax.scaling.pareto import pareto


class TooFewRows(DataError):
    """The rows are fewer than a law needs: more of them help, and so does a smaller law.

    Attributes:
      available: what there is too little of, such as "2 rows".
    """

    def __init__(self, message: str, *, available: str):
        super().__init__(message)
        self.available = available


@dataclasses.dataclass(frozen=True)
class FitData:
    """The rows to fit: their indices among the given rows, logs of inputs, errors, weights."""

    rows: Int[np.ndarray, "n"]
    logs: Float[np.ndarray, "inputs n"]
    y: Float[np.ndarray, "n"]
    weights: Float[np.ndarray, "n"]
    scales: Float[np.ndarray, "inputs"]

    @property
    def scaled(self) -> Float[np.ndarray, "inputs n"]:
        """Returns the logs of the scaled inputs."""
        return self.logs - self.scales[:, None]

    def inputs(self, law: Law) -> dict[str, Float[np.ndarray, "n"]]:
        """Returns the inputs by role."""
        return {role: np.exp(x) for role, x in zip(law.inputs, self.logs, strict=True)}


def advice_to_add(law: Law, what: str) -> str:
    """Returns the advice to add rows, or to fit a smaller law if there is one of these inputs."""
    sizes = [len(other.table) for other in LAWS.values() if other.inputs == law.inputs]
    return (
        f"Fit a law with fewer parameters, or add {what}."
        if (min(sizes, default=0) < len(law.table))
        else f"Add {what}."
    )


def check_rows(law: Law, inputs: Mapping[str, Any], y: Any, weights: Any, *, fixed: int) -> FitData:
    """Checks that rows can determine the parameters of a law, and returns those to fit.

    Args:
      law: the law.
      inputs: arrays of n positive numbers, for every role of the law.
      y: n errors or losses.
      weights: weights of the rows; None: equal weights.
      fixed: number of parameters that are not fitted.

    Raises:
      ConfigError: the inputs are not those of the law.
      DataError: the rows cannot determine the parameters; `TooFewRows` if more rows would.
    """
    logs = np.stack(log_inputs(law, inputs))
    y = np.asarray(y, np.float64)
    weights = np.ones_like(y) if weights is None else np.asarray(weights, np.float64)
    if logs.ndim != 2 or y.shape != logs.shape[1:] or weights.shape != y.shape:
        raise DataError(
            f"The law {law.name} needs columns of one length: {', '.join(law.inputs)} have "
            f"{logs.shape[1:]}, y {y.shape}, weights {weights.shape}."
        )
    bad = ~(np.isfinite(y) & (y > 0))
    if bad.any():
        raise DataError(
            f"y must be positive and finite, since its logs are fitted, but {bad.sum()} of "
            f"{y.size} rows are not, such as {y[bad][0]}: drop them, or use an error, not a score."
        )
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise DataError("Weights must be finite and at least 0.")
    keep = weights > 0
    if law.pareto:
        keep &= pareto(np.exp(logs[0]), np.where(keep, y, np.inf))
    (rows,) = np.nonzero(keep)
    logs, y, weights = logs[:, rows], y[rows], weights[rows]
    what = "rows on the Pareto frontier" if law.pareto else "rows"
    need = len(law.table) - fixed + 1
    if len(y) < need:
        raise TooFewRows(
            f"The law {law.name} has {need - 1} {'free ' if fixed else ''}parameters: it needs at "
            f"least {need} {what}, and there are {len(y)}. {advice_to_add(law, 'runs')}",
            available=f"{len(y)} {what}",
        )
    for role, values in zip(law.inputs, logs, strict=True):
        if np.ptp(values) < 1e-9:
            raise DataError(
                f"The input {role} is {math.exp(values[0]):g} in all rows, so the dependence of y "
                "on it cannot be fitted. Add runs with other values."
            )
    if np.ptp(np.log(y)) < 1e-9:
        raise DataError(
            f"y is {y[0]:g} in all {what}, so its dependence on {' and '.join(law.inputs)} cannot "
            "be fitted. Exclude runs at chance level, or add runs with other results."
        )
    distinct = len(np.unique(logs.round(9), axis=1).T)
    if distinct < need - 1:
        raise TooFewRows(
            f"The law {law.name} has {need - 1} parameters, but the rows have only {distinct} "
            f"different {' and '.join(law.inputs)}. {advice_to_add(law, 'sizes')}",
            available=f"{distinct} different {' and '.join(law.inputs)}",
        )
    return FitData(rows, logs, y, weights, _scales(law, logs))


def _scales(law: Law, logs: Float[np.ndarray, "inputs n"]) -> Float[np.ndarray, "inputs"]:
    # u has the scale of d: the law depends on d / u, how often each example is seen.
    roles = ["d" if role == "u" else role for role in law.inputs]
    return np.array([logs[law.inputs.index(role)].mean() for role in roles])
