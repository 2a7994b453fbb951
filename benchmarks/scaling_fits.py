"""Measures the coverage of intervals, and the speed of thousands of fits.

    python -m benchmarks.scaling_fits

Coverage: draws frontiers from a known law with noise of the logs, fits them, and predicts at ten
times their largest x. The coverage is the share of 90% intervals that contain the true curve. The
binomial standard error of 200 draws at .90 is .021; --draws=1000 halves it. --draws=2 with
--refits=20 only tests this program.

Speed: seconds for 4,000 bootstrap refits of the law chinchilla to 240 runs by Huber's loss with
delta .001, compared with scipy.optimize.minimize (L-BFGS-B). SciPy starts from one point of
Hoffmann et al.'s grid, with exact gradients and with its finite differences; and from the
parameters of the fit to all runs, like ours, where it stops early, as its losses show. SciPy is
timed on the first 100 of the same draws, and the median is scaled up; its spread is that of five
blocks of 20.
"""

import collections
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags
from jaxtyping import Float
from scipy.optimize import minimize

from vit_jax import cli
from vit_jax.scaling.bootstrap import bootstrap, percentile_band
from vit_jax.scaling.fitting import Fit, fit, refits
from vit_jax.scaling.intervals import Band, band, deviation
from vit_jax.scaling.laws import law as law_by_name
from vit_jax.scaling.method import Method

LEVEL = 0.9
DRAWS = 500  # Draws of each bootstrap.
GRID_START = (0.5, 5.0, 5.0, 0.5, 0.5)  # Logs of E, A, B; alpha, beta.


@dataclasses.dataclass(frozen=True)
class Setting:
    """A law with noise, and its design points.

    Attributes:
      name: name in the table.
      law: name of the true law, which is also the fitted one.
      params: its parameters.
      noise: standard deviation of log y.
      points: number of points, evenly spaced in log x from 1 to 1,000.
      heavy: whether the noise has Student's t distribution with three degrees of freedom.
    """

    name: str
    law: str
    params: dict[str, float]
    noise: float
    points: int
    heavy: bool = False


FLOOR = {"b": 0.6, "c": -0.35, "e": 0.12}
SETTINGS = (
    Setting("E = .6 x^-.35 + .12, 12 points, 3%", "power_floor", FLOOR, 0.03, 12),
    Setting("the same, 1%", "power_floor", FLOOR, 0.01, 12),
    Setting("the same, 10%", "power_floor", FLOOR, 0.10, 12),
    Setting("the same, 6 points, 3%", "power_floor", FLOOR, 0.03, 6),
    Setting("the same, 40 points, 3%", "power_floor", FLOOR, 0.03, 40),
    Setting("the same, 12 points, heavy tails", "power_floor", FLOOR, 0.03, 12, heavy=True),
    Setting("E = .6 x^-.2 + .02", "power_floor", {"b": 0.6, "c": -0.2, "e": 0.02}, 0.03, 12),
    Setting("E = x^-.6 + .2", "power_floor", {"b": 1.0, "c": -0.6, "e": 0.2}, 0.03, 12),
    Setting("E = .6 x^-.35", "power", {"b": 0.6, "c": -0.35}, 0.03, 12),
    Setting(
        "E = .63 (x + .55)^-.33 + .13, 24 points",
        "frontier",
        {"a": 0.63, "b": 0.33, "c": 0.13, "d": 0.55},
        0.03,
        24,
    ),
)


def by_profile(of: Fit, x: np.ndarray, seed: int) -> tuple[float, float]:
    """Returns the profile interval, the default of `vit_jax.scaling`."""
    return _ends(band(of, {"x": x}, level=LEVEL))


def by_percentiles(of: Fit, x: np.ndarray, seed: int) -> tuple[float, float]:
    """Returns percentiles of fits to rows drawn with replacement."""
    drawn = bootstrap(of, draws=DRAWS, seed=seed)
    return _ends(percentile_band(of, drawn, {"x": x}, level=LEVEL))


def by_simulation(of: Fit, x: np.ndarray, seed: int) -> tuple[float, float]:
    """Returns percentiles of fits to the law with simulated noise, its variance over n - p."""
    noise = np.random.default_rng(seed).standard_normal((DRAWS, of.n)) * deviation(of)
    drawn = refits(of, y=of.predict(of.inputs) * np.exp(noise))
    return _ends(percentile_band(of, drawn, {"x": x}, level=LEVEL))


METHODS: dict[str, Callable[[Fit, np.ndarray, int], tuple[float, float]]] = {
    "profile": by_profile,
    "pairs bootstrap": by_percentiles,
    "parametric": by_simulation,
}


def coverage(
    setting: Setting, methods: Sequence[str], *, draws: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Returns the coverage of intervals, and the median ratio of their ends, by method."""
    rng = np.random.default_rng(seed)
    # Without the Pareto frontier, which would select by noise.
    law = dataclasses.replace(law_by_name(setting.law), pareto=False)
    x = np.logspace(0, 3, setting.points)
    target = np.array([10 * x[-1]])
    truth = law.predict(setting.params, {"x": x})
    (goal,) = law.predict(setting.params, {"x": target})
    hits: dict[str, int] = collections.Counter()
    spans: dict[str, list[float]] = collections.defaultdict(list)
    for draw in range(draws):
        z = rng.standard_normal(len(x))
        if setting.heavy:
            z = rng.standard_t(3, len(x)) / math.sqrt(3)
        of = fit(law, {"x": x}, truth * np.exp(setting.noise * z))
        for method in methods:
            low, high = METHODS[method](of, target, draw)
            hits[method] += low <= goal <= high
            spans[method].append(high / low if low > 0 else math.inf)
    return {m: (hits[m] / draws, statistics.median(spans[m])) for m in methods}


def speed(*, count: int, against: int = 100) -> dict[str, float]:
    """Returns the times of our refits and of SciPy's, and ratios of their losses.

    Args:
      count: number of our refits.
      against: number of them on which SciPy is timed, at least 5.
    """
    of, weights = chinchilla_refits(count)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        ours = refits(of, weights=weights)
        times.append(time.perf_counter() - began)
    table = {
        "ours, first call, with compilation": times[0],
        "ours, later calls, median": statistics.median(times[1:]),
        "ours, later calls, spread": max(times[1:]) - min(times[1:]),
        "ours, share converged": float(ours.converged.mean()),
    }
    fitted = [math.log(of.params[k]) for k in "EAB"] + [of.params[k] for k in ("alpha", "beta")]
    settings = {
        "exact gradients": (True, GRID_START),
        "own differences": (False, GRID_START),
        "from our start": (True, fitted),
    }
    for name, (exact, start) in settings.items():
        theirs, losses = [], []
        for row in weights[:against]:
            began = time.perf_counter()
            losses.append(_scipy(of, row, start, exact=exact))
            theirs.append((time.perf_counter() - began) * count)
        typical = statistics.median(theirs)
        blocks = [statistics.median(block) for block in np.array_split(theirs, 5)]
        ratio = np.array(losses) / ours.loss[:against]
        table |= {
            f"SciPy, {name}": typical,
            f"SciPy, {name}, spread": float(max(blocks) - min(blocks)),
            f"SciPy, {name}, over our first call": typical / times[0],
            f"SciPy, {name}, over our later calls": typical / statistics.median(times[1:]),
            f"SciPy, {name}, its loss over ours, least": float(ratio.min()),
            f"SciPy, {name}, its loss over ours, median": float(np.median(ratio)),
        }
    return table


def chinchilla_refits(count: int) -> tuple[Fit, Float[np.ndarray, "count 240"]]:
    """Returns a fit to 240 runs, and how often each of `count` bootstrap draws has each run."""
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(7, 10, 240), 10 ** rng.uniform(9, 11.5, 240)
    true = {"E": 1.82, "A": 482.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366}
    y = law_by_name("chinchilla").predict(true, {"n": n, "d": d})
    y *= np.exp(0.01 * rng.standard_normal(240))
    fitted = fit("chinchilla", {"n": n, "d": d}, y, method=Method(delta=1e-3))
    return fitted, rng.multinomial(240, np.full(240, 1 / 240), size=count).astype(float)


def _scipy(of: Fit, weights: np.ndarray, start: Sequence[float], *, exact: bool) -> float:
    # Hoffmann et al.'s objective: Huber's loss of logs through log-sum-exp.
    log_n, log_d, log_y = np.log(of.inputs["n"]), np.log(of.inputs["d"]), np.log(of.y)

    def objective(p: np.ndarray) -> tuple[float, np.ndarray]:
        e, a, b, alpha, beta = p
        terms = np.stack([np.full(len(log_n), e), a - alpha * log_n, b - beta * log_d])
        top = terms.max(0)
        shares = np.exp(terms - top)
        total = shares.sum(0)
        shares /= total
        residuals = top + np.log(total) - log_y
        near = np.minimum(np.abs(residuals), of.delta)
        pull = weights * np.clip(residuals, -of.delta, of.delta)
        slopes = [shares[0], shares[1], shares[2], -shares[1] * log_n, -shares[2] * log_d]
        return float(weights @ (near * (np.abs(residuals) - near / 2))), np.array(slopes) @ pull

    if exact:
        return float(minimize(objective, start, jac=True, method="L-BFGS-B").fun)
    return float(minimize(lambda p: objective(p)[0], start, method="L-BFGS-B").fun)


def _ends(predictions: Band) -> tuple[float, float]:
    return float(predictions.low[0]), float(predictions.high[0])


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_integer(
        "draws", 200, "Frontiers of each setting.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "refits", 4000, "Bootstrap refits to time.", lower_bound=5, flag_values=values
    )


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Measures."""
    for name, value in speed(count=values.refits).items():
        print(f"{name:50} {value:10.3f}", flush=True)
    print(f"\n{'coverage of 90% intervals (span)':44}" + "".join(f"{m:>24}" for m in METHODS))
    for seed, setting in enumerate(SETTINGS):
        results = coverage(setting, tuple(METHODS), draws=values.draws, seed=seed)
        cells = [f"{share:.3f} ({span:.3g}x)" for share, span in results.values()]
        print(f"{setting.name:44}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


if __name__ == "__main__":
    cli.run(cli.Command(__doc__, define, main))
