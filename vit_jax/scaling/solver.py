"""Levenberg-Marquardt for thousands of small robust fits at once, in float64 and within bounds.

One program fits a whole batch: the fits share the law and the number of points, and have their own
data, weights, starts and bounds. The loss of a fit is sum_i w_i rho(log prediction_i - log y_i),
with Huber's rho: r^2 / 2 up to delta, delta (|r| - delta / 2) beyond. The steps are those of
iteratively reweighted least squares, damped until the loss decreases. A parameter stays at a bound
while the gradient points outwards.

SciPy fits one problem at a time; Optimistix 0.1.0 has no bounds, and takes 1.7 times (BFGS) and 130
times (Levenberg-Marquardt) as long for 2,000 refits (`benchmarks/scaling_optimistix.py`).
"""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from vit_jax.scaling.laws import Law, Parameters

# Fits per call. A chunk takes as long as its slowest fit, so it is small; with more than _MANY fits
# it is larger, to make fewer calls.
_CHUNK, _CHUNK_OF_MANY, _MANY = 16, 128, 512
_STEPS_PER_ROUND = 10


# (the paper's parameters, extra, array module) -> a number. The arguments are scalars for one fit,
# and arrays of one length for many fits.
Goal = Callable[[Parameters, Any, ModuleType], Any]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A batch of fits of one law; axes of size 1 are shared by all fits.

    Attributes:
      logs: logs of the scaled inputs, fits x inputs x points.
      log_y: fits x points.
      weights: fits x points; 0 excludes a point.
      low: lower bounds of theta, fits x parameters.
      high: upper bounds of theta, fits x parameters.
      delta: Huber's delta, one per fit.
      scales: logs of the geometric means by which the inputs were divided.
      goal: a function that a penalty pulls to `value`; None: no penalty.
      extra: further arguments of the goal, fits x any.
      value: target of the goal, one per fit.
      penalty_weight: adds penalty_weight (goal - value)^2 / 2 to the minimised loss.
      pad_to: minimum number of points to pad to.
    """

    logs: Float[np.ndarray, "#b inputs n"]
    log_y: Float[np.ndarray, "#b n"]
    weights: Float[np.ndarray, "#b n"]
    low: Float[np.ndarray, "#b p"]
    high: Float[np.ndarray, "#b p"]
    delta: Float[np.ndarray, "#b"]
    scales: Float[np.ndarray, "inputs"]
    goal: Goal | None = None
    extra: Float[np.ndarray, "#b extra"] = dataclasses.field(
        default_factory=lambda: np.empty((1, 0))
    )
    value: Float[np.ndarray, "#b"] = dataclasses.field(default_factory=lambda: np.zeros(1))
    penalty_weight: Float[np.ndarray, "#b"] = dataclasses.field(default_factory=lambda: np.zeros(1))
    pad_to: int = 0


class _Batch(NamedTuple):
    """The arrays of a problem for some of its fits, as a pytree."""

    logs: Any
    log_y: Any
    weights: Any
    low: Any
    high: Any
    delta: Any
    extra: Any
    value: Any
    penalty_weight: Any


@dataclasses.dataclass(frozen=True)
class Solution:
    """The solution of a batch of fits.

    Attributes:
      theta: parameters of scaled inputs, in logs where `Parameter.log` is set.
      loss: loss at theta, without the penalty.
      converged: whether the last step was negligible.
    """

    theta: Float[np.ndarray, "b p"]
    loss: Float[np.ndarray, "b"]
    converged: Bool[np.ndarray, "b"]


def solve(
    law: Law, problem: Problem, start: Float[np.ndarray, "b p"], *, rounds: int = 40
) -> Solution:
    """Fits every problem from its start.

    Args:
      law: the law of all fits.
      problem: the data and bounds.
      start: initial theta; one row per fit.
      rounds: maximum number of rounds of 10 steps. After each, finished fits leave the batch.
    """
    count, points = len(start), problem.log_y.shape[1]
    # Padding with points of weight 0 lets few programs serve all tables.
    padding = ((0, 0), (0, max(padded_size(points), problem.pad_to) - points))
    batch = _Batch(
        logs=np.pad(problem.logs, ((0, 0), *padding), mode="edge"),
        log_y=np.pad(problem.log_y, padding, mode="edge"),
        weights=np.pad(problem.weights, padding),
        low=problem.low,
        high=problem.high,
        delta=problem.delta,
        **_goal_arrays(problem, count),
    )
    chunk = _CHUNK if count <= _MANY else _CHUNK_OF_MANY
    theta = np.clip(start, problem.low, problem.high)
    damping = np.full(count, 1e-3)
    loss, done = np.full(count, np.inf), np.zeros(count, bool)
    with jax.enable_x64(True):
        for _ in range(rounds):
            (unfinished,) = np.nonzero(~done)
            for first in range(0, len(unfinished), chunk):
                rows = unfinished[first : first + chunk]
                padded = np.resize(rows, chunk)
                out = _descend(
                    law,
                    problem.goal,
                    theta[padded],
                    damping[padded],
                    problem.scales,
                    _Batch(*(x if len(x) == 1 else x[padded] for x in batch)),
                )
                results = [np.asarray(x)[: len(rows)] for x in out]
                theta[rows], damping[rows], loss[rows], done[rows] = results
            if done.all():
                break
    return Solution(theta, loss, done & np.isfinite(loss))


def _goal_arrays(problem: Problem, count: int) -> dict[str, np.ndarray]:
    """Returns the arrays of the goal, twice if there is one fit.

    An axis of size 1 is shared by all fits, which is another program: compiling it takes longer
    than all else for the last end of an interval that is still searched for.
    """
    arrays = {name: getattr(problem, name) for name in ("extra", "value", "penalty_weight")}
    if problem.goal is None or count > 1:
        return arrays
    return {name: np.repeat(values, 2, axis=0) for name, values in arrays.items()}


def padded_size(points: int) -> int:
    """Returns the number of points to pad to, so that programs are few: 64, 96, 128, 192, ..."""
    size = 64
    while size < points:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return size


def parameters_of(law: Law, theta: Any, scales: Any, xp: ModuleType = np) -> Parameters:
    """Returns the paper's parameters, for unscaled inputs, from theta (parameters x any)."""
    scaled = scaled_parameters(law, theta, xp)
    return law.rescale(scaled, dict(zip(law.inputs, scales, strict=True)), xp)


def scaled_parameters(law: Law, theta: Any, xp: ModuleType = np) -> Parameters:
    """Returns the parameters for scaled inputs from theta (parameters x any)."""
    return {
        parameter.name: xp.exp(value) if parameter.log else value
        for parameter, value in zip(law.table, theta, strict=True)
    }


def slopes_of(
    law: Law,
    theta: Float[np.ndarray, "p"],
    logs: Float[np.ndarray, "inputs n"],
    scales: Float[np.ndarray, "inputs"],
    *,
    pad_to: int = 0,
) -> tuple[Float[np.ndarray, "n p"], Float[np.ndarray, "p p"]]:
    """Returns the Jacobians of log predictions, and of the paper's parameters, by theta."""
    n = logs.shape[1]
    padded = np.pad(logs, ((0, 0), (0, max(padded_size(n), pad_to) - n)), mode="edge")
    with jax.enable_x64(True):
        slopes, change = (np.asarray(x) for x in _jacobians(law, theta, padded, scales))
    return slopes[:n], change


@functools.partial(jax.jit, static_argnums=0)
def _jacobians(law, theta, logs, scales):
    def log_predict(theta):
        inputs = dict(zip(law.inputs, logs, strict=True))
        return law.log_predict(scaled_parameters(law, theta, jnp), inputs, jnp)

    def parameters(theta):
        by_name = parameters_of(law, theta, scales, jnp)
        return jnp.stack([by_name[name] for name in law.parameters])

    return jax.jacfwd(log_predict)(theta), jax.jacfwd(parameters)(theta)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _descend(law, goal, theta, damping, scales, batch):
    weights, low, high, delta = batch.weights, batch.low, batch.high, batch.delta

    def residuals(theta, logs, log_y, extra, value):
        inputs = dict(zip(law.inputs, logs, strict=True))
        out = law.log_predict(scaled_parameters(law, theta, jnp), inputs, jnp) - log_y
        if goal is not None:
            goal_residual = goal(parameters_of(law, theta, scales, jnp), extra, jnp) - value
            out = jnp.append(out, goal_residual)
        return out

    columns = (batch.logs, batch.log_y, batch.extra, batch.value)
    per_fit = (0, *(0 if len(x) > 1 else None for x in columns))
    data = tuple(x if len(x) > 1 else x[0] for x in columns)
    residuals_of = jax.vmap(residuals, per_fit)
    jacobian_of = jax.vmap(jax.jacfwd(residuals), per_fit)
    if goal is not None:
        weights = jnp.broadcast_to(weights, (len(theta), weights.shape[-1]))
        penalty = jnp.broadcast_to(batch.penalty_weight, (len(theta),))
        weights = jnp.append(weights, penalty[:, None], axis=-1)
    thresholds = jnp.broadcast_to(delta[:, None], (len(delta), weights.shape[-1]))
    if goal is not None:
        thresholds = thresholds.at[:, -1].set(jnp.inf)

    def loss_of(r):
        near = jnp.minimum(jnp.abs(r), thresholds)
        each = weights * near * (jnp.abs(r) - 0.5 * near)
        return jnp.where(weights > 0, each, 0.0)

    def body(state):
        step_number, theta, damping, loss, done, r = state
        slopes = jacobian_of(theta, *data)
        robust = weights * jnp.minimum(1.0, thresholds / jnp.maximum(jnp.abs(r), 1e-300))
        # Residuals beyond delta have a gradient but no curvature. While steps succeed, their
        # curvature is reduced, which turns reweighted least squares into Newton's method.
        share = jnp.minimum(1.0, 100.0 * damping)[:, None]
        curved = jnp.where(jnp.abs(r) > thresholds, share * robust, robust)
        slopes = jnp.where((robust > 0)[..., None], slopes, 0.0)
        pull = jnp.einsum("bnp,bn->bp", slopes, jnp.where(robust > 0, robust * r, 0.0))
        square = jnp.einsum("bnp,bnq->bpq", slopes * curved[..., None], slopes)
        free = ~(((theta <= low) & (pull > 0)) | ((theta >= high) & (pull < 0)))
        pull = jnp.where(free, pull, 0.0)
        # Scales the parameters to unit curvature, for a well-conditioned matrix.
        size = jnp.sqrt(jnp.diagonal(square, axis1=1, axis2=2)) + 1e-100
        square = jnp.where(free[:, :, None] & free[:, None, :], square, 0.0)
        square /= size[:, :, None] * size[:, None, :]
        ridge = jnp.where(free, jnp.expand_dims(damping, 1), 1.0)
        square += jnp.eye(theta.shape[1]) * ridge[:, None, :]
        root = jnp.linalg.cholesky(square)  # NaN where singular: the step is not taken.
        step = _substitute(root, _substitute(root, (pull / size)[..., None]), back=True)
        new = theta - step[..., 0] / size
        new = jnp.clip(new, low, high)
        new_r = residuals_of(new, *data)
        new_loss = loss_of(new_r).sum(-1)
        better = (new_loss <= loss) & ~done
        still = jnp.max(jnp.abs(new - theta) / (1e-3 + jnp.abs(theta)), axis=-1) < 1e-9
        # Along a flat valley of correlated parameters the steps would never become small.
        level = (loss - new_loss <= 1e-11 * loss) & (damping <= 1.0)
        done |= (better & (still | level)) | (damping > 1e10)
        # A finished fit keeps its values while the others continue.
        theta = jnp.where(better[:, None], new, theta)
        r = jnp.where(better[:, None], new_r, r)
        loss = jnp.where(better, new_loss, loss)
        damping = jnp.where(better, jnp.maximum(0.2 * damping, 1e-12), 5.0 * damping)
        return step_number + 1, theta, damping, loss, done, r

    r = residuals_of(theta, *data)
    loss = loss_of(r).sum(-1)
    loss = jnp.where(jnp.isnan(loss), jnp.inf, loss)
    state = (0, theta, damping, loss, jnp.zeros(len(theta), bool), r)
    more = lambda s: (s[0] < _STEPS_PER_ROUND) & ~jnp.all(s[4])  # noqa: E731
    _, theta, damping, _, done, r = jax.lax.while_loop(more, body, state)
    loss = loss_of(r)
    if goal is not None:
        loss = loss[:, :-1]
    return theta, damping, loss.sum(-1), done


def _substitute(root, right, back=False):
    return jax.lax.linalg.triangular_solve(
        root, right, left_side=True, lower=True, transpose_a=back
    )
