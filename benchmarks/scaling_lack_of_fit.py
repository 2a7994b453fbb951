"""Measures how often the lack-of-fit test refuses tables of correct laws, and of wrong ones.

    python -m benchmarks.scaling_lack_of_fit

A table has one or more groups of runs. Their errors follow a law, times log-normal noise of 2%. A
table is refused if the test rejects the law of any group at the level `significance(groups)`. The
first part of the output is the share of refused tables whose law is fitted to its own runs; it must
be at most .01. The second part is the power: the share of refused tables to which a law of another
form is fitted. The binomial standard error of 2,000 tables at .0075 is .0019.
"""

import dataclasses
import math

import numpy as np
from absl import flags

from vit_jax import cli
from vit_jax.errors import DataError
from vit_jax.scaling.fitting import fit
from vit_jax.scaling.goodness_of_fit import form_p_value, significance
from vit_jax.scaling.laws import law as law_by_name
from vit_jax.scaling.selection import unrestricted_law

FLOOR = {"b": 0.6, "c": -0.35, "e": 0.12}
BREAK = {"a": 0.0, "b": 0.6, "c0": 0.1, "c1": 0.5, "d1": 30.0, "f1": 0.2}
SLOW = {"a": 1.5, "b": 3.0, "c": -0.6, "e": 0.05, "e0": 0.9}
SHIFTED = {"a": 0.63, "b": 0.33, "c": 0.13, "d": 0.55}
CHINCHILLA = {"E": 0.1, "A": 8.0, "B": 30.0, "alpha": 0.35, "beta": 0.4}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Tables of runs and the law that is fitted to them.

    Attributes:
      law: name of the true law.
      params: its parameters.
      fitted: name of the fitted law.
      points: runs of each group, evenly spaced in log x from 1 to 1,000; for a law of two inputs
        the side of a grid.
      groups: groups of a table.
      heavy: whether the noise has Student's t distribution with three degrees of freedom.
    """

    law: str
    params: dict[str, float]
    fitted: str
    points: int
    groups: int = 1
    heavy: bool = False

    def __str__(self) -> str:
        noise = ", heavy tails" if self.heavy else ""
        return (
            f"{self.fitted} fitted to {self.law}, {self.groups} x {self.points}"
            f"{' x ' + str(self.points) if 'n' in law_by_name(self.law).inputs else ''} runs{noise}"
        )


CORRECT = (
    *(Setting("power", {"b": 0.6, "c": -0.35}, "power", points) for points in (6, 12, 48)),
    *(Setting("power_floor", FLOOR, "power_floor", points) for points in (6, 12, 48)),
    Setting("power_floor", FLOOR, "power_floor", 6, groups=2),
    Setting("power_floor", FLOOR, "power_floor", 12, groups=5),
    Setting("power_floor", FLOOR, "power_floor", 12, heavy=True),
    *(Setting("frontier", SHIFTED, "frontier", points) for points in (12, 48)),
    *(Setting("m4", SLOW, "m4", points) for points in (12, 48)),
    Setting("chinchilla", CHINCHILLA, "chinchilla", 6),
)
WRONG = (
    *(Setting("power_floor", FLOOR, "power", points) for points in (6, 8, 12)),
    *(Setting("bnsl", BREAK, "power_floor", points) for points in (6, 8, 12)),
    *(Setting("m4", SLOW, "power_floor", points) for points in (6, 8, 12, 24)),
)


def refused(setting: Setting, *, tables: int, seed: int = 0, noise: float = 0.02) -> float:
    """Returns the share of tables of which a law is rejected."""
    rng = np.random.default_rng(seed)
    law = law_by_name(setting.law)
    axis = np.geomspace(1, 1000, setting.points)
    inputs = {"x": axis}
    if "n" in law.inputs:
        inputs = dict(zip("nd", (v.ravel() for v in np.meshgrid(axis, axis)), strict=True))
    exact = law.predict(setting.params, inputs)
    count = 0
    for _ in range(tables):
        p_values = [
            _p_value(setting, inputs, exact * np.exp(noise * _errors(setting, rng, len(exact))))
            for _ in range(setting.groups)
        ]
        count += min(p_values) < significance(setting.groups)
    return count / tables


def _errors(setting: Setting, rng: np.random.Generator, size: int) -> np.ndarray:
    # Student's distribution with three degrees of freedom has variance 3.
    return rng.standard_t(3, size) / math.sqrt(3) if setting.heavy else rng.standard_normal(size)


def _p_value(setting: Setting, inputs: dict[str, np.ndarray], y: np.ndarray) -> float:
    try:
        return form_p_value(fit(unrestricted_law(setting.fitted), inputs, y))
    except DataError:  # A law that cannot be fitted is not rejected.
        return 1.0


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_integer(
        "tables", 2000, "Tables of each setting.", lower_bound=1, flag_values=values
    )


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Measures."""
    for title, settings, tables in (
        ("Correct laws", CORRECT, values.tables),
        ("Wrong laws", WRONG, -(-values.tables // 10)),
    ):
        print(f"{title}: share of {tables} tables that are refused", flush=True)
        for seed, setting in enumerate(settings):
            print(f"  {setting!s:60} {refused(setting, tables=tables, seed=seed):.4f}", flush=True)


if __name__ == "__main__":
    cli.run(cli.Command(__doc__, define, main))
