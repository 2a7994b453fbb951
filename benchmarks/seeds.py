"""Trains a config with several seeds and prints each accuracy, their mean and their spread.

    python -m benchmarks.seeds --config=quickstart --workdir=runs/seeds --num_seeds=5

Every seed is a run in its own folder of the work directory, with other initial parameters and
another order of the data. The same command resumes after an interruption.
"""

import pathlib
import statistics
import time

from absl import flags
from ml_collections import FrozenConfigDict

from vit_jax import cli
from vit_jax.config import freeze, thaw
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.training.run import train


def accuracy(config: FrozenConfigDict, seed: int, folder: pathlib.Path) -> float:
    """Trains the config with this seed, or resumes it; returns the last test accuracy."""
    seeded = thaw(config)
    seeded.seed = seed
    train(freeze(seeded), folder / f"seed{seed}")
    lines = read_jsonl(folder / f"seed{seed}" / "metrics.jsonl")
    return next(line["test/top1"] for line in reversed(lines) if "test/top1" in line)


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    cli.define_config(values)
    flags.DEFINE_string("workdir", None, "Folder of all runs.", flag_values=values)
    flags.DEFINE_integer("num_seeds", 5, "Seeds 0, 1, 2, ...", lower_bound=1, flag_values=values)


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Measures."""
    results = []
    for seed in range(values.num_seeds):
        began = time.perf_counter()
        results.append(accuracy(cli.read_config(values), seed, pathlib.Path(values.workdir)))
        seconds = time.perf_counter() - began
        print(f"seed {seed}: test/top1 {results[-1]:.2%}, {seconds:.0f} s", flush=True)
    spread = statistics.stdev(results) if len(results) > 1 else float("nan")
    print(
        f"{len(results)} seeds: mean {statistics.mean(results):.2%}, standard deviation "
        f"{spread:.2%}, smallest {min(results):.2%}, largest {max(results):.2%}"
    )


if __name__ == "__main__":
    cli.run(
        cli.Command(
            __doc__,
            define,
            main,
            required=(
                "config",
                "workdir",
            ),
        )
    )
