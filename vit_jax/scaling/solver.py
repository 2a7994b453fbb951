"""Levenberg-Marquardt for thousands of small robust fits at once, in float64 and within bounds.

One program fits a whole batch: the same law and number of points, but data, weights, starts and
bounds of each fit's own. The loss of a fit is sum_i w_i rho(log prediction_i - log y_i), with
Huber's rho: r^2 / 2 up to delta, delta (|r| - delta / 2) beyond; the steps are those of iteratively
reweighted least squares, damped until the loss falls. A parameter at its bound stays there while
the loss pulls it outwards.
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

# Fits of one program. A chunk ends with its slowest fit, so it should not be large; but thousands
# of fits would be many calls.
_CHUNK, _CHUNK_OF_MANY, _MANY = 16, 128, 512
_ROUND = 10


# From the paper's parameters and numbers to a number, by an array module. Of one fit they are
# scalars; of many, arrays of one length.
Goal = Callable[[Parameters, Any, ModuleType], Any]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A batch of fits of one law; axes of size 1 are for all of them.

    Attributes:
      logs: of the scaled inputs, fits x inputs x points.
      log_y: fits x points.
      weights: fits x points; 0 leaves a point out.
      low: the least of each searched value, fits x parameters.
      high: the largest.
      delta: Huber's, one a fit.
      scales: logs of what the inputs were divided by.
      goal: a quantity that is drawn to `value`, from the paper's parameters and `extra`.
      extra: numbers for the goal, fits x any; no columns without one.
      value: one a fit.
      penalty_weight: how much: penalty_weight (goal - value)^2 / 2 is added to what is minimised.
      room: the number of points that they are padded to at least.
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
    room: int = 0


class _Batch(NamedTuple):
    """The arrays of a problem for some of its fits, as a tree of JAX's."""

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
    """What a batch of fits came to.

    Attributes:
      theta: the searched values: parameters of scaled inputs, in logs where the law says so.
      loss: at them, without what the goal adds.
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
      law: of all the fits.
      problem: the data and bounds.
      start: searched values; its rows say how many fits there are.
      rounds: of 10 steps, after each of which the fits that have ended leave the batch.
    """
    count, points = len(start), problem.log_y.shape[1]
    room = max(padded_size(points), problem.room)
    # Points of weight 0 fill up, so that few programs serve all tables.
    fill = ((0, 0), (0, room - points))
    batch = _Batch(
        logs=np.pad(problem.logs, ((0, 0), *fill), mode="edge"),
        log_y=np.pad(problem.log_y, fill, mode="edge"),
        weights=np.pad(problem.weights, fill),
        low=problem.low,
        high=problem.high,
        delta=problem.delta,
        extra=problem.extra,
        value=problem.value,
        penalty_weight=problem.penalty_weight,
    )
    chunk = _CHUNK if count <= _MANY else _CHUNK_OF_MANY
    theta = np.clip(start, problem.low, problem.high)
    damping = np.full(count, 1e-3)
    loss, done = np.full(count, np.inf), np.zeros(count, bool)
    with jax.enable_x64(True):
        for _ in range(rounds):
            (open_,) = np.nonzero(~done)
            for first in range(0, len(open_), chunk):
                rows = open_[first : first + chunk]
                padded = np.resize(rows, chunk)
                out = _descend(
                    law,
                    problem.goal,
                    theta[padded],
                    damping[padded],
                    problem.scales,
                    _Batch(*(x if len(x) == 1 else x[padded] for x in batch)),
                )
                got = [np.asarray(x)[: len(rows)] for x in out]
                theta[rows], damping[rows], loss[rows], done[rows] = got
            if done.all():
                break
    return Solution(theta, loss, done & np.isfinite(loss))


def padded_size(points: int) -> int:
    """The number that points are padded to, so that programs are few: 64, 96, 128, 192, 256, ..."""
    size = 64
    while size < points:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return size


def parameters_of(law: Law, theta: Any, scales: Any, xp: ModuleType = np) -> Parameters:
    """The paper's parameters, of inputs as they are, from searched values (parameters x any)."""
    scaled = scaled_parameters(law, theta, xp)
    return law.rescale(scaled, dict(zip(law.inputs, scales, strict=True)), xp)


def scaled_parameters(law: Law, theta: Any, xp: ModuleType = np) -> Parameters:
    """The parameters of scaled inputs."""
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
    room: int = 0,
) -> tuple[Float[np.ndarray, "n p"], Float[np.ndarray, "p p"]]:
    """How log predictions, and the paper's parameters, move with each searched value.

    Args:
      law: of the fit.
      theta: its searched values.
      logs: of the scaled inputs.
      scales: logs of what the inputs were divided by.
      room: the number of points that they are padded to at least.
    """
    n = logs.shape[1]
    padded = np.pad(logs, ((0, 0), (0, max(padded_size(n), room) - n)), mode="edge")
    with jax.enable_x64(True):
        slopes, change = (np.asarray(x) for x in _jacobians(law, theta, padded, scales))
    return slopes[:n], change


@functools.partial(jax.jit, static_argnums=0)
def _jacobians(law, theta, logs, scales):
    def log_predict(theta):
        inputs = dict(zip(law.inputs, logs, strict=True))
        return law.log_predict(scaled_parameters(law, theta, jnp), inputs, jnp)

    def parameters(theta):
        found = parameters_of(law, theta, scales, jnp)
        return jnp.stack([found[name] for name in law.parameters])

    return jax.jacfwd(log_predict)(theta), jax.jacfwd(parameters)(theta)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _descend(law, goal, theta, damping, scales, batch):
    weights, low, high, delta = batch.weights, batch.low, batch.high, batch.delta

    def residuals(theta, logs, log_y, extra, value):
        inputs = dict(zip(law.inputs, logs, strict=True))
        out = law.log_predict(scaled_parameters(law, theta, jnp), inputs, jnp) - log_y
        if goal is not None:
            missed = goal(parameters_of(law, theta, scales, jnp), extra, jnp) - value
            out = jnp.append(out, missed)
        return out

    columns = (batch.logs, batch.log_y, batch.extra, batch.value)
    per_fit = (0, *(0 if len(x) > 1 else None for x in columns))
    data = tuple(x if len(x) > 1 else x[0] for x in columns)
    value_of = jax.vmap(residuals, per_fit)
    jacobian_of = jax.vmap(jax.jacfwd(residuals), per_fit)
    if goal is not None:
        weights = jnp.broadcast_to(weights, (len(theta), weights.shape[-1]))
        held = jnp.broadcast_to(batch.penalty_weight, (len(theta),))
        weights = jnp.append(weights, held[:, None], axis=-1)
    bend = jnp.broadcast_to(delta[:, None], (len(delta), weights.shape[-1]))
    if goal is not None:
        bend = bend.at[:, -1].set(jnp.inf)

    def loss_of(r):
        near = jnp.minimum(jnp.abs(r), bend)
        each = weights * near * (jnp.abs(r) - 0.5 * near)
        return jnp.where(weights > 0, each, 0.0)

    def body(state):
        step_number, theta, damping, loss, done, r = state
        slopes = jacobian_of(theta, *data)
        robust = weights * jnp.minimum(1.0, bend / jnp.maximum(jnp.abs(r), 1e-300))
        # Far points pull without a curvature of their own. While the steps succeed, it is left out
        # more and more, from reweighted least squares to Newton's method.
        share = jnp.minimum(1.0, 100.0 * damping)[:, None]
        curved = jnp.where(jnp.abs(r) > bend, share * robust, robust)
        slopes = jnp.where((robust > 0)[..., None], slopes, 0.0)
        pull = jnp.einsum("bnp,bn->bp", slopes, jnp.where(robust > 0, robust * r, 0.0))
        square = jnp.einsum("bnp,bnq->bpq", slopes * curved[..., None], slopes)
        free = ~(((theta <= low) & (pull > 0)) | ((theta >= high) & (pull < 0)))
        pull = jnp.where(free, pull, 0.0)
        # In units in which each parameter matters alike, so that small and large ones mix well.
        size = jnp.sqrt(jnp.diagonal(square, axis1=1, axis2=2)) + 1e-100
        square = jnp.where(free[:, :, None] & free[:, None, :], square, 0.0)
        square /= size[:, :, None] * size[:, None, :]
        square += jnp.eye(theta.shape[1]) * jnp.where(free, damping[:, None], 1.0)[:, None, :]
        root = jnp.linalg.cholesky(square)  # NaN where singular: the step is not taken.
        step = _substitute(root, _substitute(root, (pull / size)[..., None]), back=True)
        new = theta - step[..., 0] / size
        new = jnp.clip(new, low, high)
        new_r = value_of(new, *data)
        new_loss = loss_of(new_r).sum(-1)
        better = (new_loss <= loss) & ~done
        still = jnp.max(jnp.abs(new - theta) / (1e-3 + jnp.abs(theta)), axis=-1) < 1e-9
        # Along a valley in which the parameters trade against each other the steps need not end.
        level = (loss - new_loss <= 1e-11 * loss) & (damping <= 1.0)
        done |= (better & (still | level)) | (damping > 1e10)
        # A fit that has ended keeps its values, whatever the others still do.
        theta = jnp.where(better[:, None], new, theta)
        r = jnp.where(better[:, None], new_r, r)
        loss = jnp.where(better, new_loss, loss)
        damping = jnp.where(better, jnp.maximum(0.2 * damping, 1e-12), 5.0 * damping)
        return step_number + 1, theta, damping, loss, done, r

    r = value_of(theta, *data)
    loss = loss_of(r).sum(-1)
    loss = jnp.where(jnp.isnan(loss), jnp.inf, loss)
    state = (0, theta, damping, loss, jnp.zeros(len(theta), bool), r)
    more = lambda s: (s[0] < _ROUND) & ~jnp.all(s[4])  # noqa: E731
    _, theta, damping, _, done, r = jax.lax.while_loop(more, body, state)
    loss = loss_of(r)
    if goal is not None:
        loss = loss[:, :-1]
    return theta, damping, loss.sum(-1), done


def _substitute(root, right, back=False):
    return jax.lax.linalg.triangular_solve(
        root, right, left_side=True, lower=True, transpose_a=back
    )
