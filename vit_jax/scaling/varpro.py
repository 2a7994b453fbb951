"""Initial values of a fit: variable projection over a grid of the nonlinear parameters.

Given these, the coefficients are the non-negative least squares solution of the relative errors,
which equal errors of logs to first order. All points of the grid are solved at once.
"""

import numpy as np
from jaxtyping import Float

from vit_jax.scaling.laws import Law
from vit_jax.scaling.method import Method, Scales, start_grid

_EDGE = 1e-3  # Initial value of a log coefficient instead of 0, as a share of the smallest y.


def starts(
    law: Law,
    logs: Float[np.ndarray, "inputs n"],
    y: Float[np.ndarray, "n"],
    weights: Float[np.ndarray, "n"],
    *,
    scales: Scales,
    method: Method,
    count: int,
) -> Float[np.ndarray, "starts p"]:
    """Returns the best initial values of theta, best first; all that the method names.

    Args:
      law: the law to fit.
      logs: logs of the scaled inputs.
      y: errors or losses.
      weights: weights of the points.
      scales: logs of the geometric means by which the inputs were divided.
      method: see `start_grid`.
      count: number of initial values, from different grid points, unless the method names some.
    """
    grid = start_grid(law, scales, method)
    if method.starts:
        count = len(next(iter(grid.values())))
    with_starts = [parameter.name for parameter in law.table if parameter.starts]
    shapes = {name: grid[name][:, None] for name in with_starts}
    inputs = dict(zip(law.inputs, logs[:, None, :], strict=True))
    if law.terms is None:
        return _implicit_starts(law, shapes, inputs, y, weights, count)
    columns, parameters = _columns(law, shapes, inputs)
    solved, squares = nonnegative(columns / y[:, None], np.ones_like(y), weights)
    best = np.argsort(squares, kind="stable")[:count]
    values = {name: solved[best, i] for i, name in enumerate(parameters)}
    values |= {name: points[best] for name, points in grid.items()}
    return _to_theta(law, values, y)


def nonnegative(
    columns: Float[np.ndarray, "grid n k"],
    target: Float[np.ndarray, "n"],
    weights: Float[np.ndarray, "n"],
) -> tuple[Float[np.ndarray, "grid k"], Float[np.ndarray, "grid"]]:
    """Solves non-negative least squares by trying all 2^k supports.

    Returns:
      The coefficients, and their weighted sum of squared residuals.
    """
    count, _, k = columns.shape
    size = np.sqrt(np.einsum("gnk,n->gk", columns**2, weights)) + 1e-300
    scaled = columns / size[:, None, :]
    weighted = scaled * weights[:, None]
    gram = np.einsum("gnk,gnl->gkl", weighted, scaled)
    right = np.einsum("gnk,n->gk", weighted, target)
    total = float(weights @ target**2)
    best, least = np.zeros((count, k)), np.full(count, total)
    for support in range(1, 2**k):
        on = np.array([bool(support >> i & 1) for i in range(k)])
        ridge = np.eye(on.sum()) * 1e-13  # For equal columns, which are singular.
        out = np.zeros((count, k))
        out[:, on] = np.linalg.solve(gram[:, on][:, :, on] + ridge, right[:, on, None])[..., 0]
        squares = total + np.einsum("gk,gkl,gl->g", out, gram, out) - 2 * np.sum(out * right, -1)
        better = (out >= 0).all(-1) & (squares < least)
        best[better], least[better] = out[better], squares[better]
    return best / size, least


def _columns(law, shapes, inputs):
    parameters = {parameter.name: 1.0 for parameter in law.table} | shapes
    # Shapes of chinchilla_repeat depend on its coefficients: 1 is their order for scaled inputs.
    terms = law.terms(parameters, inputs, np)
    widest = np.broadcast_shapes(*map(np.shape, [*terms.values(), *shapes.values()]))
    logs = np.stack([np.broadcast_to(x, widest) for x in terms.values()], -1)
    return np.exp(np.clip(logs, -300.0, 300.0)), list(terms)


def _implicit_starts(law, shapes, inputs, y, weights, count):
    # M4: given e, e0 and a, the log of its left side is linear in log x.
    (x,) = inputs.values()
    least, most = y.min(), y.max()
    top = max(1.0, most) if most <= 1 else 3 * most
    candidates, squares = [], []
    for e in (0.0, 0.3 * least, 0.6 * least, 0.85 * least, 0.97 * least):
        for e0 in {most + 0.01 * (top - most) + 1e-9, (top + most) / 2 + 1e-9, top + 1e-9}:
            left = np.log(y - e) - shapes["a"] * np.log(e0 - y)
            # Derivative of the left side by log y.
            gain = y / (y - e) + shapes["a"] * y / (e0 - y)
            w = weights / gain**2
            mean_x, mean = (np.sum(w * v, -1) / w.sum(-1) for v in (x, left))
            dx, dl = x - mean_x[:, None], left - mean[:, None]
            c = np.minimum(np.sum(w * dx * dl, -1) / np.sum(w * dx * dx, -1), -1e-3)
            squares.append(np.sum(w * (dl - c[:, None] * dx) ** 2, -1))
            one = np.ones_like(c)
            b = np.exp(mean - c * mean_x)
            candidates.append(np.stack([shapes["a"][:, 0], b, c, e * one, e0 * one], -1))
    order = np.argsort(np.concatenate(squares), kind="stable")[:count]
    chosen = np.concatenate(candidates)[order]
    return _to_theta(law, dict(zip(law.parameters, chosen.T, strict=True)), y)


def _to_theta(law, values, y):
    least = {p.name: 0.0 if p.starts else _EDGE * y.min() for p in law.table}
    return np.stack(
        [
            np.log(np.maximum(values[parameter.name], least[parameter.name]))
            if parameter.log
            else values[parameter.name]
            for parameter in law.table
        ],
        -1,
    )
