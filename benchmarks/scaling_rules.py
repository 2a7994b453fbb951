"""Chooses a rule to extrapolate learning curves on their first halves; tests it on the second.

    python -m benchmarks.scaling_rules --table=benchmark.vision.csv

The table is that of Alabdulmohsin et al. 2022 (2209.06640): errors of 72 few-shot tasks over the
examples seen; its column Training marks the first half. Rules are single laws and averages of laws,
calibrated to the last 0, 3, 5 or 10 rows. The score of a rule is its log error on the last half of
the examples of the first half, fitted to the rows before, and likewise on the second quarter. Only
the best rule, and single laws, are then tested on the second half.
"""

import collections
import csv
import itertools
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
from absl import flags

from vit_jax import cli
from vit_jax.errors import DataError
from vit_jax.scaling.fitting import fit
from vit_jax.scaling.selection import CANDIDATES, log_error, unrestricted_law

SETS = {
    **{name: (name,) for name in CANDIDATES},
    "m4, bnsl": ("m4", "bnsl"),
    "m3, m4, bnsl": ("m3", "m4", "bnsl"),
    "power_floor, m3, m4, bnsl": ("power_floor", "m3", "m4", "bnsl"),
    "power_floor, m3, m4, frontier, bnsl": CANDIDATES[1:],
}
ANCHORS = (0, 3, 5, 10)
JOIN: dict[str, Callable[..., np.ndarray]] = {"mean": np.mean, "median": np.median}


def rules() -> Iterator[tuple[str, str, int]]:
    """Yields rules: a set of laws, how to average them, and the number of calibration rows."""
    for name, join, anchor in itertools.product(SETS, JOIN, ANCHORS):
        if len(SETS[name]) > 1 or join == "mean":
            yield name, join, anchor


def judge(x: np.ndarray, y: np.ndarray, far_x: np.ndarray, far_y: np.ndarray) -> dict:
    """Returns the error of every rule on the far rows, with laws that the near rows can fit."""
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    near, far = {}, {}
    for name in CANDIDATES:
        try:
            fitted = fit(unrestricted_law(name), {"x": x}, y)
        except DataError:  # Fewer rows than parameters.
            continue
        near[name], far[name] = (np.log(fitted.predict({"x": v})) for v in (x, far_x))
    errors = {}
    for name, join, anchor in rules():
        laws = [law for law in SETS[name] if law in near] or ["power"]
        near_mean, far_mean = (JOIN[join]([v[law] for law in laws], axis=0) for v in (near, far))
        shift = (np.log(y) - near_mean)[-anchor:].mean() if anchor else 0.0
        errors[name, join, anchor] = log_error(np.exp(far_mean + shift), far_y)
    return errors


def curves(path: str) -> list[np.ndarray]:
    """Returns an array of rows (x, y, is in the first half) for every task."""
    tasks = collections.defaultdict(list)
    with pathlib.Path(path).open() as file:
        for row in csv.DictReader(file):
            task = tasks[row["Model"], row["Task"]]
            task.append([float(row[k]) for k in ("Seen Examples", "Loss", "Training")])
    return [np.array(rows).T for rows in tasks.values()]


def report(path: str) -> Iterator[str]:
    """Yields the lines of the output: scores of all rules, then test errors."""
    validation, test = [], []
    for x, y, half in curves(path):
        first = half == 1
        test.append(judge(x[first], y[first], x[~first], y[~first]))
        for cut in x[first].max() / np.array([2, 4]):
            near, far = first & (x <= cut), first & (x > cut) & (x <= 2 * cut)
            if near.sum() > 3 and far.any():
                validation.append(judge(x[near], y[near], x[far], y[far]))
    yield f"{len(validation)} extrapolations within the first halves, by {len([*rules()])} rules"
    score = {rule: np.mean([errors[rule] for errors in validation]) for rule in rules()}
    order = sorted(score, key=score.get)
    for rule in order:
        yield f"{rule[0]:36} {rule[1]:7} last {rule[2]:2}   {score[rule]:.4f}"
    yield "On the second halves, mean and median:"
    for rule in (order[0], *((name, "mean", 0) for name in CANDIDATES)):
        errors = [errors[rule] for errors in test]
        text = f"{np.mean(errors):.4f} {np.median(errors):.4f}"
        yield f"{rule[0]:36} {rule[1]:7} last {rule[2]:2}   {text}"


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("table", None, "benchmark.vision.csv.", flag_values=values)


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Measures."""
    for line in report(values.table):
        print(line, flush=True)


if __name__ == "__main__":
    cli.run(cli.Command(__doc__, define, main, required=("table",)))
