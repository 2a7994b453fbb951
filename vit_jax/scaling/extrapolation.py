"""Limits of extrapolation: whether the data support a law's prediction."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from vit_jax.scaling.fitting import Fit
from vit_jax.scaling.goodness_of_fit import LEVEL, form_p_value
from vit_jax.scaling.intervals import Band, band
from vit_jax.scaling.numbers import readable
from vit_jax.scaling.selection import ROUNDING

_WIDEST = 3.0  # Largest ratio of an interval's ends that counts as supported.


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether the data support a prediction.

    Attributes:
      supported: False: the predictions should not be reported.
      reason: the reason in words.
      band: the interval at each point.
    """

    supported: bool
    reason: str
    band: Band


def extrapolation(
    of: Fit,
    inputs: Mapping[str, Any],
    *,
    level: float = 0.9,
    clusters: Shaped[np.ndarray, "n"] | None = None,
    significance: float = LEVEL,
    doubt: str = "",
) -> Verdict:
    """Judges whether the data support predictions at some points.

    They do if the interval spans at most a factor of three and the residuals are not curved: the
    interval assumes the law's form (`goodness_of_fit`). The form itself is tested only over the
    range of the fitted runs, so no input may lie beyond that range by more than the factor that the
    runs span, however narrow the interval. Beyond the fitted runs there must be no other reason for
    doubt.

    Args:
      of: a fit of a law.
      inputs: the points, by role.
      level: coverage of the intervals.
      clusters: see `intervals.parameter_intervals`.
      significance: level of the lack-of-fit test: the share of correct laws that it rejects.
      doubt: why no point beyond the fitted runs is supported, and what to do; "": some may be.
    """
    predictions = band(of, inputs, level=level, clusters=clusters)
    reason = doubt if _is_beyond(of, inputs) else ""
    reason = reason or _refusal(of, predictions, significance=significance)
    reason = reason or _distance(of, inputs)
    if reason:
        return Verdict(False, reason, predictions)
    span = _factor(predictions)
    return Verdict(
        True, f"Supported: the {level:.0%} interval spans a factor of {span:.3g} at most.",
        predictions,
    )  # fmt: skip


def _factor(predictions: Band) -> float:
    """Returns the largest ratio of an interval's ends."""
    gap = float(np.max(np.log(predictions.high) - np.log(np.maximum(predictions.low, 1e-300))))
    return math.exp(min(gap, 700.0))


def _is_beyond(of: Fit, inputs: Mapping[str, Any]) -> bool:
    """Returns whether an input of some point is outside the range of the fitted runs."""
    return any(
        np.max(inputs[role]) > x.max() * ROUNDING or np.min(inputs[role]) * ROUNDING < x.min()
        for role, x in of.inputs.items()
    )


def _distance(of: Fit, inputs: Mapping[str, Any]) -> str:
    """Returns why a point lies too far from the fitted runs for their law: farther than they span.

    Returns "" if no point does.
    """
    for role, fitted in of.inputs.items():
        span = float(fitted.max() / fitted.min())
        factors = {
            "{} times the largest": float(np.max(inputs[role]) / fitted.max()),
            "1/{} of the smallest": float(fitted.min() / np.min(inputs[role])),
        }
        for where, factor in factors.items():
            if factor > span * ROUNDING:
                times = where.format(readable(factor))
                return (
                    f"{role} is {times} fitted {role}, and the fitted runs span a factor of "
                    f"{readable(span)}: a law is predicted beyond its runs by at most the factor "
                    "that they span. Add larger runs, or predict a nearer scale."
                )
    return ""


def _refusal(of: Fit, predictions: Band, *, significance: float) -> str:
    """Returns why predictions are not supported, "" if they are."""
    ratio = _factor(predictions)
    undetermined = [
        name for name, grade in of.identified.items() if grade in ("no", "at its bound")
    ]
    cause = (
        f" The data do not determine {', '.join(undetermined)} of {of.law.formula}."
        if undetermined
        else ""
    )
    if not of.converged:
        return f"The fit of {of.law.name} did not converge.{cause}"
    p_value = form_p_value(of)
    if p_value < significance:
        advice = (
            "Fit a law that levels off or breaks, or use --law=auto."
            if of.law.inputs == ("x",)
            else "Use the law between the fitted runs only, or fit fewer of them."
        )
        return (
            f"The residuals are curved (lack of fit, p = {p_value:.2g} < {significance:g}): the "
            f"runs do not have the form {of.law.formula}, or are not independent, and the interval "
            f"assumes both. {advice}"
        )
    if not ratio <= _WIDEST:
        return (
            f"The data cannot support this extrapolation: the {predictions.level:.0%} interval "
            f"spans a factor of {ratio:.3g}, more than {_WIDEST:g}.{cause} Add larger runs, or "
            "predict a nearer scale."
        )
    return ""
