"""Intervals of what a fit says: by the profile likelihood, and by the bootstrap for comparison.

The default is the profile: a value belongs to the interval if the law, fitted again with that value
held fixed, misses the data by no more than the F distribution allows. It follows the law where it
bends, is infinite where the data do not say, and covers as often as it claims with a dozen points;
a percentile bootstrap does not (`python -m benchmarks.scaling_fits` prints the table).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from vit_jax.errors import DataError
from vit_jax.scaling.fitting import Fit, Refits, refits
from vit_jax.scaling.laws import Letter, Letters, log_inputs, roomy
from vit_jax.scaling.solver import Problem, letters_of, scaled_letters, solve

Goal = Callable[[Letters, Any], Any]
_STEPS = 20  # Of the search for an end of an interval.
_FIRM = 30.0  # The spring's strength over the profile's curvature at the estimate.
_FAR = 12.0  # Of a log: a factor of 160,000.
_FAR_UNITS = 1e4  # Of other letters, whose unit is of the size of the data.


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


def letter_intervals(
    fit: Fit, *, level: float = 0.9, clusters: Shaped[np.ndarray, "n"] | None = None
) -> dict[str, Interval]:
    """An interval for every letter.

    Args:
      fit: of a law.
      level: how often an interval is to cover.
      clusters: of the fit's rows: rows of one cluster, such as the evaluations of one run, err
        together. None: each row errs for itself.
    """
    table = fit.law.table
    units = np.array([1.0 if letter.log else _unit(fit, letter) for letter in table])
    far = np.where([letter.log for letter in table], _FAR, _FAR_UNITS)
    _, low, high = profile(
        fit,
        _letter_goals(fit.law),
        np.diag(1 / units),
        level=level,
        clusters=clusters,
        far=far,
    )
    intervals = {}
    for i, letter in enumerate(table):
        ends = (np.exp(x[i]) if letter.log else x[i] * units[i] for x in (low, high))
        intervals[letter.name] = Interval(fit.params[letter.name], *map(float, ends))
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
      clusters: as for `letter_intervals`.
      new_run: whether the interval is for the error of a run not yet made, of weight 1, and not
        for the law's curve.
    """
    logs = np.atleast_2d(np.stack(log_inputs(fit.law, inputs)).T)
    middle, low, high = profile(fit, _prediction(fit.law), logs, level=level, clusters=clusters)
    if new_run:
        spread = _student(level, _freedom(fit, clusters)) * deviation(fit)
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
    """Intervals for positive quantities that the letters decide, such as an optimum.

    Args:
      fit: of a law.
      goal: from the letters and a row of `extra` to the log of a quantity, in jax.numpy.
      extra: what the quantity depends on beside the letters, a row for each.
      level: how often an interval is to cover.
      clusters: as for `letter_intervals`.
    """
    found = profile(fit, goal, extra, level=level, clusters=clusters)
    return [Interval(*map(float, np.exp(ends))) for ends in zip(*found, strict=True)]


def deviation(fit: Fit) -> float:
    """Standard deviation of the noise of log y, of a row of weight 1."""
    square = float(fit.weights @ fit.log_residuals**2)
    return math.sqrt(square / (fit.n - len(fit.theta)))


def profile(
    fit: Fit,
    goal: Goal,
    extra: Float[np.ndarray, "m any"],
    *,
    level: float,
    clusters: Shaped[np.ndarray, "n"] | None = None,
    far: Float[np.ndarray, "m"] | float = _FAR,
) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """Estimates and ends of the intervals of goals: all ends are searched for at once.

    Args:
      fit: of a law.
      goal: from the letters and a row of `extra` to a number.
      extra: a row for each goal.
      level: how often an interval is to cover.
      clusters: as for `letter_intervals`.
      far: from the estimate; what is further off is as good as infinite.

    Returns:
      Estimate, low, high. An end is infinite where the law fits well enough however far one goes,
      and the utmost that the law allows where it is reached.
    """
    if not 0 < level < 1:
        raise DataError(f"level={level} must be a share: 0.9 for intervals that cover 90%.")
    count = len(extra)
    middle, slopes = _goal_slopes(fit, goal, extra)
    covariance, design = _covariances(fit, slopes, clusters)
    scale, _ = _noise(fit)
    error = np.sqrt(np.maximum(scale * covariance * design, 1e-300))
    limit = _student(level, _freedom(fit, clusters))

    # Both ends of all goals. What is minimised is the loss and a spring from the goal to an aim: at
    # its minimum the goal is where it is, and the loss is the profile's there, whatever the spring.
    # Points inside and outside close in on where the root of the loss's rise passes the limit.
    side = np.repeat([-1.0, 1.0], count)
    far = np.tile(np.broadcast_to(far, count), 2)
    extra, centre, design = (np.concatenate([x, x]) for x in (extra, middle, design))
    reach = np.clip(1.05 * limit * np.concatenate([error, error]), 1e-6, 3.0)
    soft = np.clip(_FIRM / np.concatenate([covariance, covariance]), 1e-12, 1e12)
    firmness = soft.copy()
    inside, inside_root = centre.copy(), np.zeros(2 * count)
    outside, outside_root = side * math.inf, np.full(2 * count, math.inf)
    theta = np.tile(fit.theta, (2 * count, 1))
    utmost = np.zeros(2 * count, bool)
    base = _loss(fit)
    for _ in range(_STEPS):
        bracketed = np.isfinite(outside)
        done = bracketed & (outside_root - inside_root < 0.05 * limit)
        (rows,) = np.nonzero(~done & ~utmost & (np.abs(inside - centre) < far))
        if not len(rows):
            break
        with np.errstate(invalid="ignore"):
            share = (limit - inside_root[rows]) / (outside_root[rows] - inside_root[rows])
            between = inside[rows] + (outside[rows] - inside[rows]) * np.clip(share, 0.1, 0.9)
        aim = np.where(bracketed[rows], between, centre[rows] + side[rows] * reach[rows])
        held = _held(fit, goal, extra[rows], aim, firmness[rows])
        found = solve(fit.law, held, theta[rows])
        got = _goal_values(fit, goal, extra[rows], found.theta)
        rise = np.maximum(2 * (found.loss - base) / (scale * design[rows]), 0.0)
        root = np.sqrt(np.where(np.isnan(rise), np.inf, rise))
        gained = side[rows] * (got - inside[rows]) > 0.1 * side[rows] * (aim - inside[rows])
        over = (side[rows] * (got - inside[rows]) > 0) & (root > limit)
        outside[rows[over]], outside_root[rows[over]] = got[over], root[over]
        # Where a goal does not follow, the spring gets firmer, until it is clear that it cannot.
        firmness[rows[~gained & ~over]] *= 100.0
        utmost |= firmness > 1e7 * soft
        into = (gained | utmost[rows]) & (root <= limit)
        inside[rows[into]], inside_root[rows[into]] = got[into], root[into]
        theta[rows[into]] = found.theta[into]
        grow = np.clip(1.1 * limit / np.maximum(root[into], 1e-9), 1.1, 8.0)
        reach[rows[into]] = np.abs(got[into] - centre[rows[into]]) * grow
    with np.errstate(invalid="ignore"):
        share = (limit - inside_root) / (outside_root - inside_root)
        ends = np.where(np.isfinite(outside), inside + (outside - inside) * share, side * math.inf)
    ends = np.where(utmost, inside, ends)
    return middle, ends[:count], ends[count:]


def bootstrap(
    fit: Fit,
    *,
    draws: int = 1000,
    seed: int = 0,
    clusters: Shaped[np.ndarray, "n"] | None = None,
) -> Refits:
    """Fits to rows drawn with replacement, all in one vectorised search.

    Its percentiles are too narrow with few rows: .82 instead of .90 of a dozen points. What it is
    for: the shape of the uncertainty, and a check that needs no noise model.

    Args:
      fit: of a law.
      draws: how many fits.
      seed: of the draws.
      clusters: of the fit's rows; whole clusters are drawn. None: rows are.
    """
    names, member = np.unique(
        np.arange(fit.n) if clusters is None else clusters, return_inverse=True
    )
    rng = np.random.default_rng(seed)
    weights = np.empty((0, fit.n))
    need = len(fit.law.table)
    for _ in range(100):
        counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
        drawn = counts[:, member]
        # A draw of fewer different rows than letters determines nothing.
        weights = np.concatenate([weights, drawn[(drawn > 0).sum(1) > need]])[:draws]
        if len(weights) == draws:
            return refits(fit, weights=weights * fit.weights)
    raise DataError(
        f"Of {len(names)} runs a bootstrap hardly ever draws more than {need} different rows, as "
        f"many as {fit.law.name} has letters: take the profile's intervals, or add runs."
    )


def percentile_band(
    fit: Fit, draws: Refits, inputs: Mapping[str, Any], *, level: float = 0.9
) -> Band:
    """Predictions with percentiles of bootstrap fits.

    Args:
      fit: that was drawn from.
      draws: of `bootstrap`.
      inputs: m places, by role.
      level: the share of the draws between the ends.
    """
    logs = np.stack(log_inputs(fit.law, inputs))
    goal = _prediction(fit.law)
    values = np.stack(
        [
            _goal_values(fit, goal, np.tile(place, (len(draws.theta), 1)), draws.theta)
            for place in np.atleast_2d(logs.T)
        ],
        axis=1,
    )
    low, high = np.exp(np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0))
    return Band(np.atleast_1d(fit.predict(inputs)), low, high, level, "curve")


def _held(
    fit: Fit, goal: Goal, extra: np.ndarray, value: np.ndarray, firmness: np.ndarray
) -> Problem:
    logs = np.log(np.stack([fit.inputs[role] for role in fit.law.inputs])) - fit.scales[:, None]
    return Problem(
        logs=logs[None],
        log_y=np.log(fit.y)[None],
        weights=fit.weights[None],
        low=fit.low[None],
        high=fit.high[None],
        delta=np.full(1, fit.delta),
        scales=fit.scales,
        goal=goal,
        extra=extra,
        value=value,
        firmness=firmness,
    )


def _loss(fit: Fit) -> float:
    near = np.minimum(np.abs(fit.log_residuals), fit.delta)
    return float(np.sum(fit.weights * near * (np.abs(fit.log_residuals) - near / 2)))


def _noise(fit: Fit) -> tuple[float, float]:
    # What a rise of the loss is compared with, and the mean of psi'. For least squares it is the
    # variance; for Huber's loss sum psi^2 / (n - p) over the mean of psi', by which its likelihood
    # ratio is chi squared, with Huber's (1981) correction for few rows.
    p, n = len(fit.theta), fit.n
    pull = np.clip(fit.log_residuals, -fit.delta, fit.delta)
    near = np.average(np.abs(fit.log_residuals) <= fit.delta, weights=fit.weights)
    near = float(max(near, 1 / n))
    few = (1 + p / n * (1 - near) / near) ** 2
    return max(few * float(fit.weights @ pull**2) / (n - p) / near, 1e-24), near


def _freedom(fit: Fit, clusters: np.ndarray | None) -> int:
    groups = fit.n if clusters is None else len(np.unique(clusters))
    if groups <= len(fit.theta):
        raise DataError(
            f"{groups} clusters cannot say how sure the {len(fit.theta)} letters of {fit.law.name} "
            "are: there must be more clusters than letters. Fit a law with fewer, or add runs."
        )
    return groups - len(fit.theta)


def _covariances(fit, slopes, clusters):
    # Variance of each goal per unit of noise, and by what clusters multiply it (the sandwich's
    # variance over the model's; Kent 1982 adjusts a likelihood ratio by the same number).
    jacobian = _jacobian(fit) * np.sqrt(fit.weights)[:, None]
    length = np.linalg.norm(jacobian, axis=0) + 1e-300
    inverse = np.linalg.pinv(jacobian / length, rcond=1e-12)
    reach = (slopes / length) @ inverse  # How a goal moves with each row's error.
    variance = np.sum(reach**2, 1)
    if clusters is None:
        return variance, np.ones(len(slopes))
    if len(clusters) != fit.n:
        raise DataError(
            f"There are {len(clusters)} cluster names for {fit.n} fitted rows: give one for each "
            "of fit.rows."
        )
    scale, bent = _noise(fit)
    pull = np.clip(fit.log_residuals, -fit.delta, fit.delta) * np.sqrt(fit.weights) / bent
    names, member = np.unique(clusters, return_inverse=True)
    sums = np.zeros((len(names), len(slopes)))
    np.add.at(sums, member, (reach * pull).T)
    groups = len(names)
    correction = groups / (groups - 1) * (fit.n - 1) / (fit.n - len(fit.theta))
    robust = correction * np.sum(sums**2, 0)
    # Never below the model's: few clusters may agree by chance.
    return variance, np.maximum(robust / np.maximum(scale * variance, 1e-300), 1.0)


def _student(level: float, freedom: int) -> float:
    # The two-sided quantile of Student's t, by bisection: t^2 is F's with (1, freedom).
    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        with jax.enable_x64(True):
            tail = jax.scipy.special.betainc(freedom / 2, 0.5, freedom / (freedom + middle**2))
        low, high = (middle, high) if float(tail) > 1 - level else (low, middle)
        if high - low < 1e-12 * high:
            break
    return high


def _unit(fit: Fit, letter: Letter) -> float:
    # In which a letter is of order one: that of y, or what 1 becomes when inputs are scaled back.
    if letter.floor or letter.name == "e0":
        return float(np.exp(np.log(fit.y).mean()))
    with jax.enable_x64(True):
        scaled = scaled_letters(fit.law, fit.theta) | {letter.name: 1.0}
        scales = dict(zip(fit.law.inputs, fit.scales, strict=True))
        return float(fit.law.rescale(scaled, scales)[letter.name])


@functools.cache
def _letter_goals(law):
    def goal(letters, extra):
        values = [jnp.log(letters[x.name]) if x.log else letters[x.name] for x in law.table]
        return extra @ jnp.stack(values)

    return goal


@functools.cache
def _prediction(law):
    def goal(letters, extra):
        return law.log_predict(letters, dict(zip(law.inputs, extra, strict=True)))

    return goal


def _jacobian(fit: Fit) -> np.ndarray:
    logs = np.log(np.stack([fit.inputs[role] for role in fit.law.inputs])).T
    return _goal_slopes(fit, _prediction(fit.law), logs)[1]


def _goal_slopes(fit: Fit, goal: Goal, extra: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _read(fit, goal, extra, np.tile(fit.theta, (len(extra), 1)))


def _goal_values(fit: Fit, goal: Goal, extra: np.ndarray, theta: np.ndarray) -> np.ndarray:
    return _read(fit, goal, extra, theta)[0]


def _read(fit: Fit, goal: Goal, extra: np.ndarray, theta: np.ndarray) -> tuple[Any, Any]:
    count = len(extra)
    fill = ((0, roomy(count) - count), (0, 0))
    extra, theta = (np.pad(x, fill, mode="edge") for x in (extra, theta))
    with jax.enable_x64(True):
        values, slopes = _goals(fit.law, goal, theta, fit.scales, extra)
        return np.asarray(values)[:count], np.asarray(slopes)[:count]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _goals(law, goal, theta, scales, extra):
    def one(theta, extra):
        return goal(letters_of(law, theta, scales), extra)

    return jax.vmap(one)(theta, extra), jax.vmap(jax.jacfwd(one))(theta, extra)
