"""Fits published runs with the choices of their publications, and prints both results.

    python -m benchmarks.scaling_published --chinchilla=svg_extracted_data.csv \
        --scaling_vit=zhai2021_vit_fewshot_runs.csv --revisiting=benchmark.vision.csv

Any of the three may be left out. The tables:

- chinchilla: 245 runs of Hoffmann et al. 2022 (2203.15556), figure 4, extracted by Besiroglu et al.
  2024 (2404.10102): data/svg_extracted_data.csv of GitHub's epoch-research/analyzing-chinchilla.
  They leave out the five of highest loss, and minimise Huber's loss of log residuals with delta
  .001 from 4,500 starts. Published are the results of their notebook.
- scaling_vit: 262 runs of Zhai et al. 2021 (2106.04560), with the columns tpuv3_core_days and
  INet10.
- revisiting: benchmark.vision.csv of Alabdulmohsin et al. 2022 (2209.06640), least squares of logs.
"""

import math
import time
from collections.abc import Iterator

import numpy as np
from absl import flags

from vit_jax import cli
from vit_jax.scaling.fitting import Fit, fit
from vit_jax.scaling.method import DEFAULT, LEAST_SQUARES, Method
from vit_jax.scaling.optima import optimal_point
from vit_jax.scaling.selection import log_error
from vit_jax.scaling.table import read_runs

DELTA = 1e-3
OUTLIERS = 5
BUDGET = 5.88e23  # Chinchilla's own compute.
PUBLISHED = {
    "E": 1.817235504463726, "A": 477.84171252965143, "B": 2143.8637880335505,
    "alpha": 0.34731265761033453, "beta": 0.3671826173946711,
}  # fmt: skip
PUBLISHED_LOSS = 0.0010182740346154362
STARTS = {
    "alpha": (0.0, 0.5, 1.0, 1.5, 2.0),
    "beta": (0.0, 0.5, 1.0, 1.5, 2.0),
    "E": tuple(math.exp(e) for e in (-1.0, -0.5, 0.0, 0.5, 1.0)),
    "A": tuple(math.exp(a) for a in (0, 5, 10, 15, 20, 25)),
    "B": tuple(math.exp(b) for b in (0, 5, 10, 15, 20, 25)),
}
SCALING_VIT = {"a": 0.63, "b": 0.32, "c": 0.12, "d": 0.52}
REVISITING = {"power": 0.1046, "power_floor": 0.0823, "m3": 0.0615, "m4": 0.0415}


def chinchilla(path: str) -> Iterator[str]:
    """Yields lines with the parameters of the law of both inputs by method."""
    table = read_runs(path)
    n, flops, y = table["Model Size"], table["Training FLOP"], table["loss"]
    keep = y < np.sort(y)[-OUTLIERS]
    inputs = {"n": n[keep], "d": flops[keep] / (6 * n[keep])}
    yield f"chinchilla, {keep.sum()} runs"
    yield _line("published", PUBLISHED, f"Huber loss {PUBLISHED_LOSS:.11f}")
    for name, method in (
        ("delta .001", Method(delta=DELTA)),
        ("delta .001, 4,500 starts", Method(delta=DELTA, starts=STARTS)),
        ("default", DEFAULT),
        ("least squares", LEAST_SQUARES),
    ):
        began = time.perf_counter()
        fitted = fit("chinchilla", inputs, y[keep], method=method)
        seconds = time.perf_counter() - began
        best_n, best_d = optimal_point(fitted.params, BUDGET)
        yield _line(
            name,
            fitted.params,
            f"Huber loss {huber_loss(fitted):.11f}, delta {fitted.delta:.4g}, N* {best_n:.3g}, "
            f"D* {best_d:.3g} at {BUDGET:g} FLOPs, {seconds:.1f} s",
        )


def huber_loss(fitted: Fit) -> float:
    """Returns the sum of Huber's loss of log residuals with delta .001."""
    near = np.minimum(np.abs(fitted.log_residuals), DELTA)
    return float(np.sum(near * (np.abs(fitted.log_residuals) - near / 2)))


def scaling_vit(path: str) -> Iterator[str]:
    """Yields lines with the parameters of the frontier by method."""
    table = read_runs(path)
    x, y = table["tpuv3_core_days"], 1 - table["INet10"] / 100
    yield f"frontier, {len(x)} runs"
    yield _line("published", SCALING_VIT, "")
    for name, method in (("default", DEFAULT), ("least squares", LEAST_SQUARES)):
        fitted = fit("frontier", {"x": x}, y, method=method)
        yield _line(name, fitted.params, f"{fitted.n} runs on the frontier")


def revisiting(path: str) -> Iterator[str]:
    """Yields lines with the mean and median error of extrapolations by law, by least squares."""
    table = read_runs(path)
    keys = sorted({*zip(table["Model"].tolist(), table["Task"].tolist(), strict=True)})
    for name, published in REVISITING.items():
        errors = []
        for model, task in keys:
            rows = (table["Model"] == model) & (table["Task"] == task)
            x, y, early = (table[k][rows] for k in ("Seen Examples", "Loss", "Training"))
            near = early == 1
            fitted = fit(name, {"x": x[near]}, y[near], method=LEAST_SQUARES, pad_to=256)
            errors.append(log_error(fitted.predict({"x": x[~near]}), y[~near]))
        yield (
            f"{name}, {len(errors)} extrapolations: published mean error {published}, ours "
            f"{np.mean(errors):.4f}, median {np.median(errors):.4f}"
        )


def _line(name: str, params: dict[str, float], more: str) -> str:
    return f"  {name:26}" + "  ".join(f"{k} {v:.6g}" for k, v in params.items()) + f"  {more}"


PARTS = (chinchilla, scaling_vit, revisiting)


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    for part in PARTS:
        flags.DEFINE_string(part.__name__, None, "The table.", flag_values=values)


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Prints."""
    for part in PARTS:
        path = values[part.__name__].value
        for line in part(path) if path else ():
            print(line, flush=True)


if __name__ == "__main__":
    cli.run(cli.Command(__doc__, define, main))
