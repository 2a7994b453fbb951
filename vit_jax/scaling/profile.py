"""Profile likelihood intervals.

A value belongs to the interval of a quantity if the law, refitted with that value as a constraint,
fits no worse than the F distribution allows. All ends of intervals are searched for at once.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import special

from vit_jax.errors import DataError
from vit_jax.scaling.fitting import Fit
from vit_jax.scaling.laws import Law
from vit_jax.scaling.rows import TooFewRows, advice_to_add
from vit_jax.scaling.solver import Goal, Problem, padded_size, parameters_of, solve

FAR = 12.0  # In logs: ends beyond a factor of 160,000 count as infinite.
_STEPS = 20  # Maximum number of steps of the search for an end.
_LONGEST_STEP = 3.0  # Largest first distance of an aim from the estimate.
_PENALTY_RATIO = 30.0  # Initial penalty weight over the profile's curvature at the estimate.


def profile(
    fit: Fit,
    goal: Goal,
    extra: Float[np.ndarray, "m any"],
    *,
    level: float,
    clusters: Shaped[np.ndarray, "n"] | None = None,
    far: Float[np.ndarray, "m"] | float = FAR,
    numerical: tuple[Bool[np.ndarray, "p"], Bool[np.ndarray, "p"]] | None = None,
) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """Computes estimates and interval ends of several goals, all in one search.

    Args:
      fit: a fit of a law.
      goal: (parameters, row of `extra`) -> a number, see `solver.Goal`.
      extra: further arguments of the goal, a row for each goal.
      level: coverage of each interval.
      clusters: see `intervals.parameter_intervals`.
      far: distance from the estimate beyond which an end counts as infinite.
      numerical: of goals that are the parameters, in order: which lower and upper bounds of theta
        only keep the solver's numbers finite. An end that they limit is infinite.

    Returns:
      Estimate, low, high. An end is infinite if the law fits well enough at any distance. If the
      parameters' bounds limit the goal, the end is the extreme value that the goal can reach.
    """
    if not 0 < level < 1:
        raise DataError(f"level={level} must be a share: 0.9 for intervals that cover 90%.")
    count = len(extra)
    limit = student_quantile(level, degrees_of_freedom(fit, clusters))
    middle = goal_values(fit, goal, extra, np.tile(fit.theta, (count, 1)))
    slopes = _goal_slopes(fit, goal, extra)
    covariance, design = _covariances(fit, slopes, clusters)
    scale, _ = _noise(fit)
    error = np.sqrt(np.maximum(scale * covariance * design, 1e-300))

    # Both ends of all goals. Minimises the loss plus a penalty that pulls the goal to an aim. At
    # the minimum the loss is the profile's loss at the goal's value, for any penalty weight. Points
    # inside and outside bracket the value where the root of the loss increase reaches the limit.
    side = np.repeat([-1.0, 1.0], count)
    far = np.tile(np.broadcast_to(far, count), 2)
    extra, centre, design = (np.concatenate([x, x]) for x in (extra, middle, design))
    reach = np.clip(1.05 * limit * np.concatenate([error, error]), 1e-6, _LONGEST_STEP)
    # The error of an undetermined goal says nothing about the curvature within reach: the weight of
    # its penalty is that of an error whose reach is the largest.
    error = np.minimum(np.concatenate([error, error]), _LONGEST_STEP / limit)
    initial_weight = np.clip(_PENALTY_RATIO * scale * design / error**2, 1e-12, 1e12)
    penalty_weight = initial_weight.copy()
    inside, inside_root = centre.copy(), np.zeros(2 * count)
    outside, outside_root = side * math.inf, np.full(2 * count, math.inf)
    theta = np.tile(fit.theta, (2 * count, 1))
    at_extreme = np.zeros(2 * count, bool)  # The goal can go no further.
    base = _loss(fit)
    for _ in range(_STEPS):
        bracketed = np.isfinite(outside)
        done = bracketed & (outside_root - inside_root < 0.05 * limit)
        (rows,) = np.nonzero(~done & ~at_extreme & (np.abs(inside - centre) < far))
        if not len(rows):
            break
        with np.errstate(invalid="ignore"):
            share = (limit - inside_root[rows]) / (outside_root[rows] - inside_root[rows])
            between = inside[rows] + (outside[rows] - inside[rows]) * np.clip(share, 0.1, 0.9)
        aim = np.where(bracketed[rows], between, centre[rows] + side[rows] * reach[rows])
        problem = _penalised_problem(fit, goal, extra[rows], aim, penalty_weight[rows])
        solution = solve(fit.law, problem, theta[rows])
        values = goal_values(fit, goal, extra[rows], solution.theta)
        increase = np.maximum(2 * (solution.loss - base) / (scale * design[rows]), 0.0)
        root = np.sqrt(np.where(np.isnan(increase), np.inf, increase))
        moved = side[rows] * (values - inside[rows]) > 0.1 * side[rows] * (aim - inside[rows])
        crossed = (side[rows] * (values - inside[rows]) > 0) & (root > limit)
        outside[rows[crossed]], outside_root[rows[crossed]] = values[crossed], root[crossed]
        # If a goal does not move, its penalty weight is raised until it is clear that it cannot.
        penalty_weight[rows[~moved & ~crossed]] *= 100.0
        at_extreme |= penalty_weight > 1e7 * initial_weight
        accepted = (moved | at_extreme[rows]) & (root <= limit)
        inside[rows[accepted]], inside_root[rows[accepted]] = values[accepted], root[accepted]
        theta[rows[accepted]] = solution.theta[accepted]
        grow = np.clip(1.1 * limit / np.maximum(root[accepted], 1e-9), 1.1, 8.0)
        reach[rows[accepted]] = np.abs(values[accepted] - centre[rows[accepted]]) * grow
    with np.errstate(invalid="ignore"):
        share = (limit - inside_root) / (outside_root - inside_root)
        ends = np.where(np.isfinite(outside), inside + (outside - inside) * share, side * math.inf)
    ends = np.where(at_extreme, inside, ends)
    if numerical is not None:
        limited = _at_numerical_bound(fit, theta, numerical, at_extreme)
        ends = np.where(limited & np.concatenate(numerical), side * math.inf, ends)
    return middle, np.minimum(ends[:count], middle), np.maximum(ends[count:], middle)


def _at_numerical_bound(
    fit: Fit,
    theta: Float[np.ndarray, "m p"],
    numerical: tuple[Bool[np.ndarray, "p"], Bool[np.ndarray, "p"]],
    at_extreme: Bool[np.ndarray, "m"],
) -> Bool[np.ndarray, "m"]:
    """Returns which ends the solver's own bounds limit."""
    margin = 1e-4 * (1 + np.abs(theta))  # The solver stops shortly before a bound.
    low, high = numerical
    at_bound = (low & (theta <= fit.low + margin)) | (high & (theta >= fit.high - margin))
    # The loss may also rise since the coefficient of a steep power can become no smaller. Of
    # several terms one may vanish without an effect on the others.
    coefficients = np.array([each.log and not each.starts for each in fit.law.table])
    if coefficients.sum() > 1:
        coefficients[:] = False
    return (at_extreme & at_bound.any(axis=1)) | (at_bound & coefficients).any(axis=1)


def _penalised_problem(
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


def rise(fit: Fit, other: Fit) -> float:
    """Returns the root of the increase of the loss from a fit to another, in units of the noise."""
    return math.sqrt(max(2 * (_loss(other) - _loss(fit)) / _noise(fit)[0], 0.0))


def _noise(fit: Fit) -> tuple[float, float]:
    # The scale of loss increases, and the mean of psi'. For least squares the scale is the
    # variance. For Huber's loss it is sum psi^2 / (n - p) over the mean of psi', with which the
    # likelihood ratio is chi squared, with Huber's (1981) correction for few rows.
    p, n = fit.free_parameters, fit.n
    pull = np.clip(fit.log_residuals, -fit.delta, fit.delta)
    near = np.average(np.abs(fit.log_residuals) <= fit.delta, weights=fit.weights)
    near = float(max(near, 1 / n))
    few = (1 + p / n * (1 - near) / near) ** 2
    return max(few * float(fit.weights @ pull**2) / (n - p) / near, 1e-24), near


def degrees_of_freedom(fit: Fit, clusters: Shaped[np.ndarray, "n"] | None) -> int:
    """Returns the number of rows, or of clusters of rows, minus the number of parameters.

    Raises:
      DataError: there are too few clusters, or `clusters` has the wrong length.
    """
    if clusters is not None and len(clusters) != fit.n:
        raise DataError(
            f"There are {len(clusters)} cluster names for {fit.n} fitted rows: give one for each "
            "of fit.rows."
        )
    groups = fit.n if clusters is None else len(np.unique(clusters))
    if groups <= fit.free_parameters:
        raise TooFewRows(
            f"{groups} clusters are too few for intervals of the {fit.free_parameters} parameters "
            f"of {fit.law.name}: there must be more clusters than parameters. "
            f"{advice_to_add(fit.law, 'runs')}",
            available=f"{groups} clusters",
        )
    return groups - fit.free_parameters


def _covariances(fit, slopes, clusters):
    # Variance of each goal per unit of noise, and its design effect: the factor by which clusters
    # increase it (sandwich variance over model variance; Kent 1982 adjusts a likelihood ratio so).
    jacobian = fit.slopes * np.sqrt(fit.weights)[:, None] * (fit.low < fit.high)
    length = np.linalg.norm(jacobian, axis=0)
    length = np.where(length == 0, 1.0, length)
    inverse = np.linalg.pinv(jacobian / length, rcond=1e-12)
    influence = (slopes / length) @ inverse  # Derivative of each goal by each row's error.
    variance = np.maximum(np.sum(influence**2, 1), 1e-200)
    if clusters is None:
        return variance, np.ones(len(slopes))
    scale, mean_slope = _noise(fit)
    pull = np.clip(fit.log_residuals, -fit.delta, fit.delta) * np.sqrt(fit.weights) / mean_slope
    names, member = np.unique(clusters, return_inverse=True)
    sums = np.zeros((len(names), len(slopes)))
    np.add.at(sums, member, (influence * pull).T)
    groups = len(names)
    correction = groups / (groups - 1) * (fit.n - 1) / (fit.n - fit.free_parameters)
    robust = correction * np.sum(sums**2, 0)
    # At least the model variance: few clusters may agree by chance.
    return variance, np.maximum(robust / np.maximum(scale * variance, 1e-300), 1.0)


def student_quantile(level: float, freedom: int) -> float:
    """Returns the two-sided quantile of Student's t distribution."""
    return float(special.stdtrit(freedom, (1 + level) / 2))


@functools.cache
def prediction(law: Law) -> Goal:
    """Returns the goal that is the log of a prediction; `extra` are logs of the inputs."""

    def goal(parameters, extra, xp):
        return law.log_predict(parameters, dict(zip(law.inputs, extra, strict=True)), xp)

    return goal


def goal_values(
    fit: Fit, goal: Goal, extra: Float[np.ndarray, "m any"], theta: Float[np.ndarray, "m p"]
) -> Float[np.ndarray, "m"]:
    """Evaluates a goal for rows of solver parameters."""
    with np.errstate(all="ignore"):  # A search may end at an infinite goal.
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
