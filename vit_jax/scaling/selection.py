"""Which law: by the error at larger scales that were held out, and what may be extrapolated.

Rolling origin: fit the runs up to a scale, predict those of the next, for several scales. That is
what a law is used for, so laws are chosen by it, and not by how they fit. Rows that are set aside
as the final test are not looked at. All laws see the same rows: for those of a frontier, give its.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import special

from vit_jax.errors import DataError
from vit_jax.scaling.fitting import Fit, fit
from vit_jax.scaling.goodness_of_fit import LEVEL, form_p_value
from vit_jax.scaling.intervals import Band, band
from vit_jax.scaling.laws import FRONTIER, SHIFTED, Law
from vit_jax.scaling.laws import law as law_by_name
from vit_jax.scaling.solver import padded_size

CANDIDATES = ("power", "power_floor", "m3", "m4", "frontier", "bnsl")
AVERAGED = CANDIDATES[1:]  # The laws that can level off.
_ANCHOR = 5  # Rows at the largest scales that an average is shifted to meet.
_LEAST_STEP = 2.0
_ROUNDING = 1 + 1e-6  # Scales that are evenly spaced are so but for the last bits.
_WIDEST = 3.0


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """How a law predicted scales that it had not seen.

    Attributes:
      cuts: the largest scale of each fit, descending.
      errors: RMSE of log predictions on the scales after each cut, up to `step` times it.
      mean: of the errors.
    """

    cuts: tuple[float, ...]
    errors: tuple[float, ...]
    mean: float


@dataclasses.dataclass(frozen=True, eq=False)
class Average:
    """The geometric mean of several laws' predictions, shifted to meet the largest runs.

    Laws that fit alike extrapolate to different sides of the truth. Of 56 rules it was the best on
    the halves of `benchmark.vision.csv` that may be looked at; on the others, which it then saw
    once, the mean of its log errors is .030, where M4's is .042 (`benchmarks.scaling_rules`).

    Attributes:
      members: the fits.
      shift: what is added to the mean log prediction: the mean log miss of the last five rows.
    """

    members: tuple[Fit, ...]
    shift: float

    def predict(self, inputs: Mapping[str, Any]) -> Float[np.ndarray, "*m"]:
        """Errors of given inputs."""
        return np.exp(
            np.mean([np.log(member.predict(inputs)) for member in self.members], axis=0)
            + self.shift
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """The law that predicted held-out scales best, fitted to all rows but the final test's.

    A law whose residuals are curved over those rows (`goodness_of_fit`) is not chosen, unless those
    of all are: then the average of several may stand in for the form that none has.

    Attributes:
      law: its name.
      fit: of it.
      average: of the laws that level off; None where the inputs have no such laws.
      best: what predicts: `law`, or "average" if no law's form holds and it had the smaller error.
      held_out: by law, and of "average".
      bent: laws whose residuals bend.
      skipped: laws that could not take part, and why.
    """

    law: str
    fit: Fit
    average: Average | None
    best: str
    held_out: dict[str, HeldOut]
    bent: tuple[str, ...]
    skipped: dict[str, str]

    def predict(self, inputs: Mapping[str, Any]) -> Float[np.ndarray, "*m"]:
        """Errors of given inputs, by the best."""
        if self.best == "average" and self.average is not None:
            return self.average.predict(inputs)
        return self.fit.predict(inputs)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether the data support a prediction.

    Attributes:
      supported: if not, no number should be quoted.
      reason: in words.
      band: the interval at each place.
    """

    supported: bool
    reason: str
    band: Band


def choose(
    inputs: Mapping[str, Any],
    y: Any,
    *,
    laws: Sequence[str] = CANDIDATES,
    holdout: Bool[np.ndarray, "n"] | None = None,
    delta: float | None = None,
    origins: int = 3,
) -> Choice:
    """Chooses a law by rolling origin, and fits it.

    Args:
      inputs: arrays of n positive numbers, by role; the laws must have these inputs.
      y: n errors or losses.
      laws: names to choose among.
      holdout: rows of the final test, which are left out of everything.
      delta: as for `fitting.fit`.
      origins: how many scales to predict from.

    Raises:
      DataError: no law can be fitted, or the rows have too few scales to hold any out.
    """
    y = np.asarray(y, float)
    keep = np.ones(len(y), bool) if holdout is None else ~np.asarray(holdout)
    inputs = {role: np.asarray(x, float)[keep] for role, x in inputs.items()}
    y = y[keep]
    held_out, skipped = rolling_origin(laws, inputs, y, delta=delta, origins=origins)
    singles = [name for name in held_out if name != "average"]
    fits = {name: fit(of_all_rows(name), inputs, y, delta=delta) for name in singles}
    average = None
    if "average" in held_out:
        members = [fits[name] for name in AVERAGED if name in fits]
        average = _averaged(members, inputs, y)
    bent = tuple(name for name in singles if form_p_value(fits[name]) < LEVEL)
    straight = [name for name in singles if name not in bent]
    chosen = min(straight or singles, key=lambda name: held_out[name].mean)
    better = "average" in held_out and held_out["average"].mean < held_out[chosen].mean
    best = "average" if better and not straight else chosen
    return Choice(chosen, fits[chosen], average, best, held_out, bent, skipped)


def rolling_origin(
    laws: Sequence[str],
    inputs: Mapping[str, Float[np.ndarray, "n"]],
    y: Float[np.ndarray, "n"],
    *,
    delta: float | None = None,
    origins: int = 3,
) -> tuple[dict[str, HeldOut], dict[str, str]]:
    """Fits the smaller scales and predicts the next, from several cuts.

    A step is a factor of 2 of a run's scale (`scale_of`), or the largest gap between scales.

    Args:
      laws: names.
      inputs: of all rows, by role.
      y: of all rows.
      delta: as for `fitting.fit`.
      origins: how many cuts, a step apart.

    Returns:
      What each law came to, at the cuts that all could fit, and "average" of those that level off;
      the laws that could not be fitted below the last cut, and why.

    Raises:
      DataError: no law could be.
    """
    scale = scale_of(inputs)
    known = np.unique(scale)
    gaps = known[1:] / known[:-1]
    step = max([_LEAST_STEP, *gaps])
    room = padded_size(len(y))  # For all cuts the same programs.
    errors: dict[str, dict[float, float]] = {name: {} for name in laws}
    skipped: dict[str, str] = {}
    for j in range(1, origins + 1):
        cut = known[-1] / step**j
        below = scale <= cut * _ROUNDING
        after = ~below & (scale <= cut * step * _ROUNDING)
        part = {role: x[below] for role, x in inputs.items()}
        ahead = {role: x[after] for role, x in inputs.items()}
        if not after.any():
            continue
        fits = {}
        for name in laws:
            if name in skipped:
                continue
            try:
                fits[name] = fit(of_all_rows(name), part, y[below], delta=delta, room=room)
            except DataError as error:
                if j == 1:
                    skipped[name] = str(error)
                continue
            errors[name][cut] = log_error(fits[name].predict(ahead), y[after])
        members = [fits[name] for name in AVERAGED if name in fits]
        if len(members) > 1:
            mean = _averaged(members, part, y[below])
            errors.setdefault("average", {})[cut] = log_error(mean.predict(ahead), y[after])
    taking_part = [name for name, by_cut in errors.items() if by_cut and name not in skipped]
    if not taking_part:
        raise DataError(
            f"No law could be judged on larger scales: a factor of {step:.3g} below the largest "
            f"there are too few runs. {next(iter(skipped.values()), '')}"
        )
    shared = sorted(set.intersection(*(set(errors[name]) for name in taking_part)), reverse=True)
    held_out = {}
    for name in taking_part:
        each = tuple(errors[name][cut] for cut in shared)
        held_out[name] = HeldOut(tuple(map(float, shared)), each, float(np.mean(each)))
    return held_out, skipped


def scale_of(inputs: Mapping[str, Float[np.ndarray, "n"]]) -> Float[np.ndarray, "n"]:
    """How large runs are: their compute t, else n times d, else x."""
    roles = ("t",) if "t" in inputs else tuple(role for role in inputs if role != "u")
    return np.prod([inputs[role] for role in roles], axis=0)


def grows(scale: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> bool:
    """Whether y grows with scale: by Spearman's rank correlation, at the 1% level, one-sided.

    Fewer than four rows say nothing.
    """
    freedom = len(y) - 2
    if freedom < 2 or not np.ptp(scale) or not np.ptp(y):
        return False
    correlation = float(np.corrcoef(_ranks(scale), _ranks(y))[0, 1])
    t = correlation * math.sqrt(freedom / max(1 - correlation**2, 1e-12))
    return float(special.stdtr(freedom, -t)) < 0.01


def _ranks(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """The place of each value in ascending order; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def extrapolation(
    of: Fit,
    inputs: Mapping[str, Any],
    *,
    level: float = 0.9,
    clusters: Shaped[np.ndarray, "n"] | None = None,
) -> Verdict:
    """Whether a fit may be read at some places.

    Only where its interval spans less than threefold, and if its residuals do not bend: an interval
    takes the law's form for granted (`goodness_of_fit`).

    Args:
      of: a fit of a law.
      inputs: the places, by role.
      level: of the intervals.
      clusters: as for `intervals.band`.
    """
    found = band(of, inputs, level=level, clusters=clusters)
    gap = float(np.max(np.log(found.high) - np.log(np.maximum(found.low, 1e-300))))
    ratio = math.exp(min(gap, 700.0))
    loose = [name for name, word in of.identified.items() if word in ("no", "at its bound")]
    because = f" Of {of.law.formula} they do not determine {', '.join(loose)}." if loose else ""
    span = f"the {level:.0%} interval spans a factor of {ratio:.3g}"
    if not of.converged:
        return Verdict(False, f"The fit of {of.law.name} did not converge.{because}", found)
    chance = form_p_value(of)
    if chance < LEVEL:
        return Verdict(
            False,
            f"The residuals bend (noise alone would bend them so in {chance:.2g} of cases): the "
            f"runs do not have the form {of.law.formula}, or are not independent, and the interval "
            "takes both for granted. Fit a law that levels off or breaks, or let auto choose.",
            found,
        )
    if not ratio <= _WIDEST:
        return Verdict(
            False,
            f"The data cannot support this extrapolation: {span}, more than {_WIDEST:g}.{because} "
            "Add larger runs, or ask for a nearer scale.",
            found,
        )
    return Verdict(True, f"Supported: {span} at most.", found)


def average(inputs: Mapping[str, Any], y: Any, *, delta: float | None = None) -> Average:
    """Fits the laws that can level off, as many as the rows allow, and averages them.

    Args:
      inputs: {"x": n positive numbers}.
      y: n errors or losses.
      delta: as for `fitting.fit`.

    Raises:
      DataError: no law can be fitted.
    """
    inputs, y = {role: np.asarray(x, float) for role, x in inputs.items()}, np.asarray(y, float)
    fits, skipped = [], []
    for name in AVERAGED:
        try:
            fits.append(fit(of_all_rows(name), inputs, y, delta=delta))
        except DataError as error:
            skipped.append(str(error))
    if not fits:
        raise DataError(skipped[0])
    return _averaged(fits, inputs, y)


def of_all_rows(name: str) -> Law:
    """A law by its name, of the rows as they are: laws are compared on the same ones."""
    return SHIFTED if name == FRONTIER.name else law_by_name(name)


def log_error(prediction: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> float:
    """Root of the mean squared difference of logs: the error of a law at held-out scales."""
    return math.sqrt(float(np.mean((np.log(prediction) - np.log(y)) ** 2)))


def _averaged(members, inputs, y):
    plain = Average(tuple(members), 0.0)
    last = np.argsort(scale_of(inputs), kind="stable")[-_ANCHOR:]
    at = {role: x[last] for role, x in inputs.items()}
    return Average(tuple(members), float(np.mean(np.log(y[last]) - np.log(plain.predict(at)))))
