"""A question about a table of runs: the law, columns for its inputs, the rows, the predictions."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.scaling import laws
from vit_jax.scaling.columns import COLUMNS
from vit_jax.scaling.method import DEFAULT, Method

AUTO, ISOFLOP = "auto", "isoflop"
NAMES = (*laws.LAWS, ISOFLOP, AUTO)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a table of runs.

    Attributes:
      law: one of `NAMES`.
      y: the column of errors or losses, or an expression of columns such as "1-top1"
        (`vit_jax.scaling.expressions`).
      columns: a column or an expression for some of the inputs x, n, d, u, t; `COLUMNS` for the
        others. For the law shape, x may be several, separated by commas: a star's dimensions.
      group: columns; rows with equal values in these are fitted together.
      where: conditions that a row must fulfil, see `vit_jax.scaling.query`.
      hold_back: conditions; rows that fulfil all of them are the test set and not fitted.
      frontier: whether only rows on the Pareto frontier of y over x are used; the law frontier
        always uses only these.
      chosen_by: an evaluation that chooses among runs of a group with equal inputs.
      budgets: training FLOPs whose optima are computed, for chinchilla.
      predict: values of x at which an error is predicted.
      level: coverage of the intervals.
      weights: a column or an expression: the weight of each row in the fit; "": equal weights.
      method: the loss, bounds and initial values of the fit.
    """

    law: str = AUTO
    y: str = "error"
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    group: Sequence[str] = ()
    where: Sequence[str] = ()
    hold_back: Sequence[str] = ()
    frontier: bool = False
    chosen_by: str = ""
    budgets: Sequence[float] = ()
    predict: Sequence[float] = ()
    level: float = 0.9
    weights: str = ""
    method: Method = DEFAULT

    def __post_init__(self):
        if self.law not in NAMES:
            raise ConfigError(f"--law={self.law}: no such law. {did_you_mean(self.law, NAMES)}")
        if not 0 < self.level < 1:
            raise ConfigError(f"--level={self.level}: write a share, such as 0.9.")
        if self.predict and self.roles != ("x",):
            raise ConfigError(
                f"--predict is for laws of one input; {self.law} has {', '.join(self.roles)}."
            )
        if self.frontier and self.roles != ("x",):
            raise ConfigError(
                f"--frontier is for laws of one input; {self.law} has {', '.join(self.roles)}."
            )
        if self.hold_back and self.law == ISOFLOP:
            raise ConfigError(
                "--hold_back needs a law that predicts single runs, which isoflop does not: fit "
                "chinchilla to test on rows that are held back."
            )
        for flag, numbers in (("predict", self.predict), ("budget", self.budgets)):
            if any(not 0 < number < math.inf for number in numbers):
                text = ",".join(f"{number:g}" for number in numbers)
                raise ConfigError(f"--{flag}={text}: write numbers above 0, such as 1e15.")
        if unknown := [role for role in self.columns if role not in self.roles]:
            raise ConfigError(
                f"--{unknown[0]}={self.columns[unknown[0]]}: the law {self.law} has no input "
                f"{unknown[0]}, only {', '.join(self.roles)}."
            )
        if self.law in laws.LAWS:
            self.method.check(laws.law(self.law))
        elif self.method.bounds or self.method.starts:
            raise ConfigError(
                f"Bounds and starts are of one law's parameters: choose a law, not {self.law}."
            )
        if self.weights and self.law == ISOFLOP:
            raise ConfigError("The parabolas of isoflop have no weights: fit chinchilla with them.")
        if self.budgets and self.law != laws.CHINCHILLA.name:
            raise ConfigError(f"--budget is for the law chinchilla, not for {self.law}.")

    def as_json(self) -> dict[str, Any]:
        """Returns the attributes as JSON values; infinite numbers are text."""
        text = json.dumps(dataclasses.asdict(self), default=str)
        return json.loads(text, parse_constant=str)

    @property
    def roles(self) -> tuple[str, ...]:
        """Returns the roles of the law's inputs."""
        if self.law == ISOFLOP:
            return ("x", "t")
        return ("x",) if self.law == AUTO else laws.law(self.law).inputs

    @property
    def on_frontier(self) -> bool:
        """Returns whether only rows on the Pareto frontier are used."""
        return self.frontier or self.law == laws.FRONTIER.name

    def column(self, role: str) -> str:
        """Returns the table's column for an input."""
        if role == "x" and self.law == ISOFLOP:
            return self.columns.get(role, "params")
        return self.columns.get(role, COLUMNS[role])

    @property
    def needed(self) -> list[str]:
        """Returns the columns and expressions in which a row must have a number."""
        inputs = [name for role in self.roles for name in self.columns_of(role)]
        return [self.y, *inputs, *([self.weights] if self.weights else [])]

    @property
    def scale(self) -> str:
        """Returns the name of the scale of `selection.scale_of`, from the names of its columns."""
        roles = ("t",) if "t" in self.roles else [role for role in self.roles if role != "u"]
        return " x ".join(self.column(role) for role in roles)

    def columns_of(self, role: str) -> list[str]:
        """Returns the columns for an input: several for x of the law shape, the arms of a star."""
        name = self.column(role)
        if role != "x" or self.law != laws.SHAPE.name:
            return [name]
        return list(dict.fromkeys(part.strip() for part in name.split(",")))


def parse_bounds(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Parses bounds such as "alpha=0.1:1", "E=0:2", or "E=1.5" for a fixed parameter.

    Raises:
      ConfigError: a text is not of this form.
    """
    bounds = {}
    for text in texts:
        name, values = _parse_assignment(text, ":", "bounds", "alpha=0.1:1")
        if len(values) > 2:
            raise ConfigError(f"--bounds={text}: write PARAMETER=LOW:HIGH, such as alpha=0.1:1.")
        assert values  # No text is no number.
        bounds[name] = (values[0], values[-1])
    return bounds


def parse_starts(texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Parses initial values such as "alpha=0.5,1,1.5".

    Raises:
      ConfigError: a text is not of this form.
    """
    return dict(_parse_assignment(text, ",", "starts", "alpha=0.5,1") for text in texts)


def _parse_assignment(
    text: str, separator: str, flag: str, example: str
) -> tuple[str, tuple[float, ...]]:
    name, _, values = text.partition("=")
    try:
        return name.strip(), tuple(map(float, values.split(separator)))
    except ValueError:
        raise ConfigError(
            f"--{flag}={text}: write a parameter and numbers, such as {example}."
        ) from None
