"""What is asked of a table of runs: a law, columns for its inputs, which rows, what to predict."""

import dataclasses
from collections.abc import Mapping, Sequence

from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.scaling import laws

AUTO, ISOFLOP = "auto", "isoflop"
NAMES = (*laws.LAWS, ISOFLOP, AUTO)
# The columns of our own tables for the inputs of a law, where none is named.
COLUMNS = {
    "x": "train_flops",
    "n": "params",
    "d": "examples_seen",
    "u": "examples",
    "t": "train_flops",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a table.

    Attributes:
      law: one of `NAMES`.
      y: the column of errors or losses.
      columns: a column for some of the inputs x, n, d, u, t; `COLUMNS` for the others. For the law
        shape x may be several, separated by commas: a star's dimensions.
      group: columns; rows that agree in them are fitted together.
      where: conditions that a row must fulfil, see `vit_jax.scaling.query`.
      hold_back: conditions; rows that fulfil all of them are not fitted: the law is judged by them.
      chosen_by: an evaluation that chooses among runs of a group with equal inputs.
      budgets: training FLOPs, for chinchilla's optima.
      predict: values of x at which an error is predicted.
      level: how often an interval covers.
    """

    law: str = AUTO
    y: str = "error"
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    group: Sequence[str] = ()
    where: Sequence[str] = ()
    hold_back: Sequence[str] = ()
    chosen_by: str = ""
    budgets: Sequence[float] = ()
    predict: Sequence[float] = ()
    level: float = 0.9

    def __post_init__(self):
        if self.law not in NAMES:
            raise ConfigError(f"--law={self.law}: no such law. {did_you_mean(self.law, NAMES)}")
        if not 0 < self.level < 1:
            raise ConfigError(f"--level={self.level}: write a share, such as 0.9.")
        if self.predict and self.roles != ("x",):
            raise ConfigError(
                f"--predict is for laws of one input; {self.law} has {', '.join(self.roles)}."
            )
        if self.budgets and self.law != laws.CHINCHILLA.name:
            raise ConfigError(f"--budget is for the law chinchilla, not for {self.law}.")

    @property
    def roles(self) -> tuple[str, ...]:
        """The inputs of the law."""
        if self.law == ISOFLOP:
            return ("x", "t")
        return ("x",) if self.law == AUTO else laws.law(self.law).inputs

    def column(self, role: str) -> str:
        """The table's column for an input."""
        if role == "x" and self.law == ISOFLOP:
            return self.columns.get(role, "params")
        return self.columns.get(role, COLUMNS[role])
