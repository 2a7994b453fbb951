"""Profile likelihood: how far a quantity can move before the law no longer fits.

A value belongs to the interval of a quantity if the law, fitted again with that value, misses the
data by no more than the F distribution allows. All ends are searched for at once.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped
from scipy import special

from vit_jax.errors import DataError
from vit_jax.scaling.fitting import Fit
from vit_jax.scaling.laws import Law
from vit_jax.scaling.solver import Goal, Problem, padded_size, parameters_of, solve

FAR = 12.0  # Of a log: a factor of 160,000 is as good as infinite.
_STEPS = 20  # Of the search for an end of an interval.
_FIRM = 30.0  # The penalty's strength over the profile's curvature at the estimate.


def profile(
    fit: Fit,
    goal: Goal,
    extra: Float[np.ndarray, "m any"],
    *,
    level: float,
    clusters: Shaped[np.ndarray, "n"] | None = None,
    far: Float[np.ndarray, "m"] | float = FAR,
) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """Estimates and ends of the intervals of goals: all ends are searched for at once.

    Args:
      fit: of a law.
      goal: from the parameters and a row of `extra` to a number, see `solver.Goal`.
      extra: a row for each goal.
      level: how often an interval is to cover.
      clusters: as for `parameter_intervals`.
      far: from the estimate; what is further off is as good as infinite.

    Returns:
      Estimate, low, high. An end is infinite where the law fits well enough however far one goes,
      and the upper that the law allows where it is reached.
    """
    if not 0 < level < 1:
        raise DataError(f"level={level} must be a share: 0.9 for intervals that cover 90%.")
    count = len(extra)
    limit = student(level, freedom(fit, clusters))
    middle = goal_values(fit, goal, extra, np.tile(fit.theta, (count, 1)))
    slopes = _goal_slopes(fit, goal, extra)
    covariance, design = _covariances(fit, slopes, clusters)
    scale, _ = _noise(fit)
    error = np.sqrt(np.maximum(scale * covariance * design, 1e-300))

    # Both ends of all goals. The loss and a penalty that draws the goal to an aim are minimised: at
    # the minimum, the loss is the profile's at the value of the goal there, whatever the penalty.
    # Points inside and outside close in on where the root of the loss's rise passes the limit.
    side = np.repeat([-1.0, 1.0], count)
    far = np.tile(np.broadcast_to(far, count), 2)
    extra, centre, design = (np.concatenate([x, x]) for x in (extra, middle, design))
    reach = np.clip(1.05 * limit * np.concatenate([error, error]), 1e-6, 3.0)
    soft = np.clip(_FIRM / np.concatenate([covariance, covariance]), 1e-12, 1e12)
    penalty_weight = soft.copy()
    inside, inside_root = centre.copy(), np.zeros(2 * count)
    outside, outside_root = side * math.inf, np.full(2 * count, math.inf)
    theta = np.tile(fit.theta, (2 * count, 1))
    upper = np.zeros(2 * count, bool)
    base = _loss(fit)
    for _ in range(_STEPS):
        bracketed = np.isfinite(outside)
        done = bracketed & (outside_root - inside_root < 0.05 * limit)
        (rows,) = np.nonzero(~done & ~upper & (np.abs(inside - centre) < far))
        if not len(rows):
            break
        with np.errstate(invalid="ignore"):
            share = (limit - inside_root[rows]) / (outside_root[rows] - inside_root[rows])
            between = inside[rows] + (outside[rows] - inside[rows]) * np.clip(share, 0.1, 0.9)
        aim = np.where(bracketed[rows], between, centre[rows] + side[rows] * reach[rows])
        held = _held(fit, goal, extra[rows], aim, penalty_weight[rows])
        found = solve(fit.law, held, theta[rows])
        got = goal_values(fit, goal, extra[rows], found.theta)
        rise = np.maximum(2 * (found.loss - base) / (scale * design[rows]), 0.0)
        root = np.sqrt(np.where(np.isnan(rise), np.inf, rise))
        gained = side[rows] * (got - inside[rows]) > 0.1 * side[rows] * (aim - inside[rows])
        over = (side[rows] * (got - inside[rows]) > 0) & (root > limit)
        outside[rows[over]], outside_root[rows[over]] = got[over], root[over]
        # Where a goal does not follow, the penalty gets firmer, until it is clear that it cannot.
        penalty_weight[rows[~gained & ~over]] *= 100.0
        upper |= penalty_weight > 1e7 * soft
        into = (gained | upper[rows]) & (root <= limit)
        inside[rows[into]], inside_root[rows[into]] = got[into], root[into]
        theta[rows[into]] = found.theta[into]
        grow = np.clip(1.1 * limit / np.maximum(root[into], 1e-9), 1.1, 8.0)
        reach[rows[into]] = np.abs(got[into] - centre[rows[into]]) * grow
    with np.errstate(invalid="ignore"):
        share = (limit - inside_root) / (outside_root - inside_root)
        ends = np.where(np.isfinite(outside), inside + (outside - inside) * share, side * math.inf)
    ends = np.where(upper, inside, ends)
    return middle, np.minimum(ends[:count], middle), np.maximum(ends[count:], middle)


def _held(
    fit: Fit, goal: Goal, extra: np.ndarray, value: np.ndarray, penalty_weight: np.ndarray
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
        penalty_weight=penalty_weight,
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


def freedom(fit: Fit, clusters: Shaped[np.ndarray, "n"] | None) -> int:
    """Degrees of freedom of the noise: rows, or clusters of them, less parameters."""
    if clusters is not None and len(clusters) != fit.n:
        raise DataError(
            f"There are {len(clusters)} cluster names for {fit.n} fitted rows: give one for each "
            "of fit.rows."
        )
    groups = fit.n if clusters is None else len(np.unique(clusters))
    if groups <= len(fit.theta):
        raise DataError(
            f"{groups} clusters cannot say how sure the {len(fit.theta)} parameters of "
            f"{fit.law.name} are: there must be more clusters than parameters. Fit a law with "
            "fewer, or add runs."
        )
    return groups - len(fit.theta)


def _covariances(fit, slopes, clusters):
    # Variance of each goal per unit of noise, and by what clusters multiply it (the sandwich's
    # variance over the model's; Kent 1982 adjusts a likelihood ratio by the same number).
    jacobian = fit.slopes * np.sqrt(fit.weights)[:, None]
    length = np.linalg.norm(jacobian, axis=0)
    length = np.where(length == 0, 1.0, length)
    inverse = np.linalg.pinv(jacobian / length, rcond=1e-12)
    reach = (slopes / length) @ inverse  # How a goal moves with each row's error.
    variance = np.maximum(np.sum(reach**2, 1), 1e-200)
    if clusters is None:
        return variance, np.ones(len(slopes))
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


def student(level: float, freedom: int) -> float:
    """The two-sided quantile of Student's t."""
    return float(special.stdtrit(freedom, (1 + level) / 2))


@functools.cache
def prediction(law: Law) -> Goal:
    """The goal that is the log of a prediction; its row of numbers: logs of the inputs."""

    def goal(parameters, extra, xp):
        return law.log_predict(parameters, dict(zip(law.inputs, extra, strict=True)), xp)

    return goal


def goal_values(
    fit: Fit, goal: Goal, extra: Float[np.ndarray, "m any"], theta: Float[np.ndarray, "m p"]
) -> Float[np.ndarray, "m"]:
    """A goal of many fits' searched values."""
    with np.errstate(all="ignore"):  # A search may end where a goal is infinite.
        return np.asarray(goal(parameters_of(fit.law, theta.T, fit.scales), extra.T, np))


def _goal_slopes(fit: Fit, goal: Goal, extra: np.ndarray) -> np.ndarray:
    count = len(extra)
    padded = np.pad(extra, ((0, padded_size(count) - count), (0, 0)), mode="edge")
    with jax.enable_x64(True):
        return np.asarray(_slopes(fit.law, goal, fit.theta, fit.scales, padded))[:count]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _slopes(law, goal, theta, scales, extra):
    def one(theta, extra):
        return goal(parameters_of(law, theta, scales, jnp), extra, jnp)

    return jax.vmap(jax.jacfwd(one), (None, 0))(theta, extra)
