"""Thousands of fits by our solver and by Optimistix, which must reach the same minima.

    pip install optimistix
    python -m benchmarks.scaling_optimistix

The refits are those of `benchmarks.scaling_fits`: a bootstrap of the law chinchilla with Huber's
loss of delta .001, started from the parameters of the fit to all runs. Optimistix has no bounds;
its solvers are vectorised by `jax.vmap`. Prints the seconds of the first call, which compiles, and
of a second one, and the share of fits whose loss is above ours by more than a millionth.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.scaling_fits import chinchilla_refits
from vit_jax import cli
from vit_jax.scaling.fitting import Fit, refits
from vit_jax.scaling.solver import scaled_parameters


def compare(*, count: int) -> dict[str, float]:
    """Returns the seconds of each solver, and how its losses compare with ours.

    Args:
      count: number of refits.

    Raises:
      ImportError: optimistix is not installed.
    """
    import optimistix

    fitted, weights = chinchilla_refits(count)
    table = _timed("ours", lambda: refits(fitted, weights=weights).loss)
    ours = refits(fitted, weights=weights).loss
    tolerances = {"rtol": 1e-9, "atol": 1e-12}
    solvers = {
        "LevenbergMarquardt": (
            optimistix.least_squares,
            optimistix.LevenbergMarquardt(**tolerances),
        ),
        "BFGS": (optimistix.minimise, optimistix.BFGS(**tolerances)),
    }
    with jax.enable_x64(True):
        for name, (function, solver) in solvers.items():
            squares = function is optimistix.least_squares
            residuals = _residuals(fitted)
            objective = residuals if squares else _half_square(residuals)

            @jax.jit
            @jax.vmap
            def loss(row, function=function, solver=solver, objective=objective):
                start = jnp.asarray(fitted.theta)
                result = function(objective, solver, start, args=row, max_steps=2000, throw=False)
                return _half_square(_residuals(fitted))(result.value, row)

            table |= _timed(name, lambda loss=loss: np.asarray(loss(weights)))
            excess = np.asarray(loss(weights)) / ours - 1
            table[f"{name}, share of fits with a larger loss"] = float((excess > 1e-6).mean())
    return table


def _timed(name: str, run: Callable[[], np.ndarray]) -> dict[str, float]:
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {f"{name}, first call": seconds[0], f"{name}, second call": seconds[1]}


def _residuals(fitted: Fit) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns residuals whose half sum of squares is Huber's loss."""
    law = fitted.law
    logs = np.log(np.stack([fitted.inputs[role] for role in law.inputs])) - fitted.scales[:, None]

    def residuals(theta, weights):
        inputs = dict(zip(law.inputs, logs, strict=True))
        r = law.log_predict(scaled_parameters(law, theta, jnp), inputs, jnp) - np.log(fitted.y)
        near = jnp.minimum(jnp.abs(r), fitted.delta)
        rho = near * (jnp.abs(r) - near / 2)
        return jnp.sign(r) * jnp.sqrt(2 * weights * rho + 1e-300)  # No infinite slope at 0.

    return residuals


def _half_square(
    residuals: Callable[[jax.Array, jax.Array], jax.Array],
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return lambda theta, weights: jnp.sum(residuals(theta, weights) ** 2) / 2


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_integer(
        "refits", 4000, "Bootstrap refits to time.", lower_bound=5, flag_values=values
    )


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Measures."""
    for name, value in compare(count=values.refits).items():
        print(f"{name:50} {value:10.3f}", flush=True)


if __name__ == "__main__":
    cli.run(cli.Command(__doc__, define, main))
