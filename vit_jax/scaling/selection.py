"""Model selection by the error at held-out larger scales.

Laws are chosen by their extrapolation error rather than by their fit, with a rolling origin: fit
the runs up to a scale, predict those of the next, for several scales. The test set is not used. All
laws are fitted to the same rows; to fit a Pareto frontier, pass only its rows.
"""

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import special

from vit_jax.errors import DataError
from vit_jax.scaling.fitting import Fit, fit
from vit_jax.scaling.goodness_of_fit import LEVEL, form_p_value
from vit_jax.scaling.laws import FRONTIER, SHIFTED, Law
from vit_jax.scaling.laws import law as law_by_name
from vit_jax.scaling.method import DEFAULT, Method
from vit_jax.scaling.rows import TooFewRows
from vit_jax.scaling.solver import padded_size

CANDIDATES = ("power", "power_floor", "m3", "m4", "frontier", "bnsl")
AVERAGED = CANDIDATES[1:]  # The laws that can level off.
_ANCHOR = 5  # Number of rows at the largest scales to which an average is calibrated.
_LEAST_STEP = 2.0  # Minimum ratio of two cuts.
ROUNDING = 1 + 1e-6  # Tolerance for rounding in evenly spaced scales.


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Errors of a law on held-out larger scales.

    Attributes:
      cuts: the largest scale of each fit, descending.
      errors: RMSE of log predictions for scales above each cut, up to one step.
      mean: mean of `errors`.
    """

    cuts: tuple[float, ...]
    errors: tuple[float, ...]
    mean: float


@dataclasses.dataclass(frozen=True, eq=False)
class Average:
    """The geometric mean of several laws' predictions, calibrated to the largest runs.

    Laws that fit equally well extrapolate to different sides of the truth. Of 56 rules this was the
    best on the first halves of the curves in `benchmark.vision.csv`; on the second halves, used
    once, its mean log error is .030, and that of M4 is .042 (`benchmarks.scaling_rules`).

    Attributes:
      members: the fits.
      shift: added to the mean log prediction: the mean log error at the last five rows.
    """

    members: tuple[Fit, ...]
    shift: float

    def predict(self, inputs: Mapping[str, Any]) -> Float[np.ndarray, "*m"]:
        """Predicts errors from inputs by role."""
        return np.exp(
            np.mean([np.log(member.predict(inputs)) for member in self.members], axis=0)
            + self.shift
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """The law that predicted held-out scales best, fitted to all rows outside the test set.

    A law with curved residuals (lack of fit, see `goodness_of_fit`) is only chosen if all laws have
    curved residuals. Then the average of several laws may predict instead.

    Attributes:
      law: name of the law.
      fit: fit of the law.
      average: average of the laws that level off; None if fewer than two could be fitted.
      best: name of the predictor: `law`, or "average" if all laws have lack of fit and the average
        had the smaller held-out error.
      held_out: held-out errors by law, and of "average".
      curved: laws with curved residuals.
      skipped: laws that could not be fitted, with the reason.
    """

    law: str
    fit: Fit
    average: Average | None
    best: str
    held_out: dict[str, HeldOut]
    curved: tuple[str, ...]
    skipped: dict[str, str]

    def predict(self, inputs: Mapping[str, Any]) -> Float[np.ndarray, "*m"]:
        """Predicts errors with the best predictor."""
        if self.best == "average" and self.average is not None:
            return self.average.predict(inputs)
        return self.fit.predict(inputs)


def choose(
    inputs: Mapping[str, Any],
    y: Any,
    *,
    laws: Sequence[str] = CANDIDATES,
    holdout: Bool[np.ndarray, "n"] | None = None,
    weights: Float[np.ndarray, "n"] | None = None,
    method: Method = DEFAULT,
    significance: float = LEVEL,
    origins: int = 3,
) -> Choice:
    """Chooses a law by rolling origin, and fits it.

    Args:
      inputs: arrays of n positive numbers, by role; the laws must have these inputs.
      y: n errors or losses.
      laws: names of the candidate laws.
      holdout: rows of the test set, which are not used.
      weights: see `fitting.fit`.
      method: see `fitting.fit`.
      significance: level of the lack-of-fit test of each law.
      origins: number of cuts from which larger scales are predicted.

    Raises:
      DataError: no law can be fitted, or there are too few scales to hold any out.
    """
    y = np.asarray(y, float)
    keep = np.ones(len(y), bool) if holdout is None else ~np.asarray(holdout)
    inputs = {role: np.asarray(x, float)[keep] for role, x in inputs.items()}
    y = y[keep]
    how = {"weights": None if weights is None else weights[keep], "method": method}
    held_out, skipped = rolling_origin(laws, inputs, y, origins=origins, **how)
    if not held_out:
        why = next(iter(skipped.values()), "no law was named")
        raise DataError(
            f"No law could be tested on larger scales, since {why}. Add runs of more "
            "scales, mostly smaller ones"
            f"{_untested(inputs, y, **how)}."
        )
    singles = [name for name in held_out if name != "average"]
    fits = {name: fit(unrestricted_law(name), inputs, y, **how) for name in singles}
    average = None
    if "average" in held_out:
        members = [fits[name] for name in AVERAGED if name in fits]
        average = _make_average(members, inputs, y)
    curved = tuple(name for name in singles if form_p_value(fits[name]) < significance)
    adequate = [name for name in singles if name not in curved]
    chosen = min(adequate or singles, key=lambda name: held_out[name].mean)
    better = "average" in held_out and held_out["average"].mean < held_out[chosen].mean
    best = "average" if better and not adequate else chosen
    return Choice(chosen, fits[chosen], average, best, held_out, curved, skipped)


def _untested(
    inputs: Mapping[str, Float[np.ndarray, "n"]], y: Float[np.ndarray, "n"], **how: Any
) -> str:
    """Returns the end of an advice: the laws that so few rows can be fitted to, "" without any."""
    names = []
    for name in ("power", "power_floor"):
        with contextlib.suppress(DataError):
            fit(name, inputs, y, **how)
            names.append(f"--law={name}")
    return f", or fit {' or '.join(names)}, without that test" if names else ""


def rolling_origin(
    laws: Sequence[str],
    inputs: Mapping[str, Float[np.ndarray, "n"]],
    y: Float[np.ndarray, "n"],
    *,
    weights: Float[np.ndarray, "n"] | None = None,
    method: Method = DEFAULT,
    origins: int = 3,
) -> tuple[dict[str, HeldOut], dict[str, str]]:
    """Fits rows up to several cuts, and predicts the scales of the next step.

    The step between cuts is a factor of 2 of the scale (`scale_of`), or the largest gap between
    scales if that is larger.

    Args:
      laws: names of the laws.
      inputs: inputs of all rows, by role.
      y: errors of all rows.
      weights: see `fitting.fit`; held-out errors are not weighted.
      method: see `fitting.fit`.
      origins: number of cuts, a step apart.

    Returns:
      The held-out errors of each law, and of "average" of the laws that level off, at the cuts that
      all laws could fit; and the laws that could not be fitted at the largest cut, with the reason.
      Without any law that could be fitted the first is empty.
    """
    scale = scale_of(inputs)
    scales = np.unique(scale)
    gaps = scales[1:] / scales[:-1]
    step = max([_LEAST_STEP, *gaps])
    pad_to = padded_size(len(y))  # All cuts share the same programs.
    errors: dict[str, dict[float, float]] = {name: {} for name in laws}
    skipped: dict[str, str] = {}
    for j in range(1, origins + 1):
        cut = scales[-1] / step**j
        below = scale <= cut * ROUNDING
        after = ~below & (scale <= cut * step * ROUNDING)
        part = {role: x[below] for role, x in inputs.items()}
        how = {"weights": None if weights is None else weights[below], "method": method}
        ahead = {role: x[after] for role, x in inputs.items()}
        if not after.any():
            continue
        fits = {}
        for name in laws:
            if name in skipped:
                continue
            try:
                fits[name] = fit(unrestricted_law(name), part, y[below], pad_to=pad_to, **how)
            except DataError as error:
                if j == 1:
                    skipped[name] = _too_few(step, error)
                continue
            errors[name][cut] = log_error(fits[name].predict(ahead), y[after])
        members = [fits[name] for name in AVERAGED if name in fits]
        if len(members) > 1:
            mean = _make_average(members, part, y[below])
            errors.setdefault("average", {})[cut] = log_error(mean.predict(ahead), y[after])
    fitted = [name for name, by_cut in errors.items() if by_cut and name not in skipped]
    if not fitted:
        return {}, skipped
    shared = sorted(set.intersection(*(set(errors[name]) for name in fitted)), reverse=True)
    held_out = {}
    for name in fitted:
        at_cuts = tuple(errors[name][cut] for cut in shared)
        held_out[name] = HeldOut(tuple(map(float, shared)), at_cuts, float(np.mean(at_cuts)))
    return held_out, skipped


def _too_few(step: float, error: DataError) -> str:
    """Returns why a law could not be fitted to the runs below the first cut, as a clause."""
    share = f"up to 1/{step:.3g} of the largest scale"
    if isinstance(error, TooFewRows):  # The same words for all laws: a report says them once.
        return f"there are only {error.available} {share}, too few for a fit"
    cause = str(error).partition(". ")[0].rstrip(".")
    cause = cause[:1].lower() + cause[1:]
    return f"the runs {share} are not enough for a fit ({cause})"


def scale_of(inputs: Mapping[str, Float[np.ndarray, "n"]]) -> Float[np.ndarray, "n"]:
    """Returns the scale of runs: their compute t, else n times d, else x."""
    roles = ("t",) if "t" in inputs else tuple(role for role in inputs if role != "u")
    return np.prod([inputs[role] for role in roles], axis=0)


def grows(scale: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> bool:
    """Tests whether y grows with scale: Spearman's rank correlation, one-sided, at the 1% level.

    Returns False for fewer than four rows.
    """
    freedom = len(y) - 2
    if freedom < 2 or not np.ptp(scale) or not np.ptp(y):
        return False
    correlation = float(np.corrcoef(_ranks(scale), _ranks(y))[0, 1])
    t = correlation * math.sqrt(freedom / max(1 - correlation**2, 1e-12))
    return float(special.stdtr(freedom, -t)) < 0.01


def _ranks(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Returns the ranks of the values; ties get the mean of their ranks."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[index]


def average(inputs: Mapping[str, Any], y: Any) -> Average:
    """Fits the laws that can level off, as far as the rows suffice, and averages them.

    Raises:
      DataError: no law can be fitted.
    """
    inputs, y = {role: np.asarray(x, float) for role, x in inputs.items()}, np.asarray(y, float)
    fits, skipped = [], []
    for name in AVERAGED:
        try:
            fits.append(fit(unrestricted_law(name), inputs, y))
        except DataError as error:
            skipped.append(str(error))
    if not fits:
        raise DataError(skipped[0])
    return _make_average(fits, inputs, y)


def unrestricted_law(name: str) -> Law:
    """Returns a law by its name that is fitted to all rows, also if it is the frontier's."""
    return SHIFTED if name == FRONTIER.name else law_by_name(name)


def log_error(prediction: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> float:
    """Returns the root mean squared difference of logs."""
    return math.sqrt(float(np.mean((np.log(prediction) - np.log(y)) ** 2)))


def _make_average(members, inputs, y):
    plain = Average(tuple(members), 0.0)
    last = np.argsort(scale_of(inputs), kind="stable")[-_ANCHOR:]
    at = {role: x[last] for role, x in inputs.items()}
    return Average(tuple(members), float(np.mean(np.log(y[last]) - np.log(plain.predict(at)))))
