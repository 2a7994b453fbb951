"""Which rows of a table of runs a law is fitted to: conditions, the chosen of several runs, groups.

    query(table, y="error", where=("evaluation=test", "seed=0"), group=("model",), ...)

A condition is COLUMN OPERATOR VALUE with one of = != < <= > >= ~; a value such as 50% stands for a
share of the column's largest number, and ~ compares text with a pattern such as vit-*.
"""

import dataclasses
import fnmatch
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from vit_jax.errors import ConfigError, DataError, did_you_mean
from vit_jax.scaling.table import column, numeric_column

Table = Mapping[str, np.ndarray]


def _like(values: np.ndarray, pattern: str) -> np.ndarray:
    return np.array([fnmatch.fnmatchcase(value, pattern) for value in values.tolist()], bool)


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "~": _like,
}
_SIGNS = "|".join(_OPERATORS)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows that belong together.

    Attributes:
      group: value of each grouping column, as text; {} if nothing is grouped by.
      rows: numbers of the rows in the table.
    """

    group: dict[str, str]
    rows: Int[np.ndarray, "n"]

    @property
    def name(self) -> str:
        """The group's values, for legends: "vit-8k"."""
        return ", ".join(self.group.values())


def matches(table: Table, condition: str) -> Bool[np.ndarray, "n"]:
    """Which rows fulfil a condition.

    Args:
      table: of `vit_jax.scaling.table.read_runs`.
      condition: such as "evaluation=test", "total_train_flops<1e14", "examples>=50%".

    Raises:
      ConfigError: it is no condition, names no column, or compares text with a number.
    """
    name, sign, text = _parsed(table, condition)
    values = column(table, name)
    if values.dtype.kind == "U" or values.dtype.kind == "b":
        if sign not in ("=", "!=", "~"):
            raise ConfigError(f"{condition!r}: {name} has no numbers: use =, != or ~.")
        if values.dtype.kind == "b":
            values, text = values.astype(str), text.capitalize()
        wanted = text
        if sign == "=" and text not in values:
            hint = did_you_mean(text, sorted({*values.tolist()})[:50])
            raise ConfigError(f"{condition!r}: no row has that value. {hint}")
    elif sign == "~":
        raise ConfigError(f"{condition!r}: {name} has numbers: use one of = != < <= > >=.")
    else:
        wanted = _number(text, values, condition)
    return _OPERATORS[sign](values, wanted)


def _parsed(table: Table, condition: str) -> tuple[str, str, str]:
    """Column, operator and value; the names of the table's own columns may have operators in them.

    Raises:
      ConfigError: it is no condition.
    """
    ours = sorted(map(re.escape, table), key=len, reverse=True)
    for name in (*ours, ".+?"):
        pattern = rf"\s*(?P<name>{name})\s*(?P<sign>{_SIGNS})\s*(?P<value>.*?)\s*"
        if match := re.fullmatch(pattern, condition, flags=re.DOTALL):
            return match["name"], match["sign"], match["value"]
    raise ConfigError(
        f"{condition!r} is no condition: write COLUMN, one of {' '.join(_OPERATORS)}, and a "
        "value, such as evaluation=test or 'total_train_flops<1e14'."
    )


def _number(text: str, values: np.ndarray, condition: str) -> float:
    share = text.endswith("%")
    try:
        number = float(text.removesuffix("%").replace("_", ""))
    except ValueError:
        raise ConfigError(
            f"{condition!r} compares a column of numbers with {text!r}: write a number, or a share "
            "of the largest such as 50%."
        ) from None
    if not share:
        return number
    finite = values[np.isfinite(values)].astype(float)
    return number / 100 * float(np.max(finite, initial=-np.inf))


def select(
    table: Table,
    *,
    needed: Sequence[str],
    where: Sequence[str],
    chosen_by: str = "",
    y: str,
    alike: Sequence[str] = (),
) -> tuple[Int[np.ndarray, "n"], list[str]]:
    """The rows to use, and what was done to find them, a line each.

    In a table of `vit_jax.sweeps.table`, which has several rows a run, those of a run's last step
    count, and of the evaluation "test" if there are several; a condition on `final` or `evaluation`
    replaces that.

    Args:
      table: of `vit_jax.scaling.table.read_runs`.
      needed: columns of numbers that a row must have.
      where: conditions that a row must fulfil.
      chosen_by: an evaluation, such as "val": of the runs that agree in the columns `alike`, the
        one with its least `y` is taken, as one stops early; "": all are.
      y: the column of errors.
      alike: columns.

    Raises:
      ConfigError: a condition or a column is wrong, or several evaluations are left.
      DataError: no row is left.
    """
    said = []
    conditions = list(where)
    named = {_parsed(table, condition)[0] for condition in conditions}
    # Of anybody's table a column of such a name may be something else.
    if _kind(table, "final") == "b" and "final" not in named:
        conditions.append("final=true")
    if _kind(table, "evaluation") == "U" and "evaluation" not in named:
        evaluations = sorted({*table["evaluation"].tolist()} - {""})
        if "test" in evaluations:
            conditions.append("evaluation=test")
        elif len(evaluations) > 1:
            raise ConfigError(
                f"The table has the evaluations {', '.join(evaluations)}: choose one with "
                f"--where=evaluation={evaluations[0]}."
            )
    size = len(column(table, y))
    if not size:
        raise DataError("The table has columns and no rows.")
    mask = np.ones(size, bool)
    for condition in conditions:
        mask &= matches(table, condition)
        said.append(f"{mask.sum():,} of {size:,} rows with {condition}")
    for name in needed:
        there = np.isfinite(numeric_column(table, name))
        if (mask & ~there).any():
            said.append(f"{(mask & ~there).sum():,} rows left out: they have no {name}")
        mask &= there
    (rows,) = np.nonzero(mask)
    if not len(rows):
        raise DataError("No row of the table is left:\n  " + "\n  ".join(said))
    if chosen_by:
        rows = _chosen(table, rows, chosen_by, y, alike)
        said.append(
            f"{len(rows):,} rows: of runs alike in {', '.join(alike)} the best by {chosen_by}"
        )
    return rows, said


def _kind(table: Table, name: str) -> str:
    """The kind of a column's values, as NumPy has it; "" if there is no such column."""
    return table[name].dtype.kind if name in table else ""


def _chosen(
    table: Table, rows: np.ndarray, evaluation: str, y: str, alike: Sequence[str]
) -> np.ndarray:
    judged = matches(table, f"evaluation={evaluation}")
    if _kind(table, "final") == "b":
        judged &= table["final"]
    names = column(table, "run")
    score = dict(zip(names[judged].tolist(), column(table, y)[judged].tolist(), strict=True))
    best: dict[tuple, int] = {}
    for row in rows.tolist():
        key = tuple(column(table, name)[row] for name in alike)
        own = score.get(names[row].item(), np.inf)
        if key not in best or own < score.get(names[best[key]].item(), np.inf):
            best[key] = row
    return np.array(sorted(best.values()), np.int64)


def groups(table: Table, rows: Int[np.ndarray, "n"], names: Sequence[str]) -> Iterator[Rows]:
    """The rows that agree in some columns, in the order of the table.

    Raises:
      ConfigError: the table has no such column.
    """
    columns = [column(table, name)[rows] for name in names]
    keys = [tuple(str(value) for value in values) for values in zip(*columns, strict=True)]
    members: dict[tuple[str, ...], list[int]] = {}
    for row, key in zip(rows.tolist(), keys or [()] * len(rows), strict=True):
        members.setdefault(key, []).append(row)
    for key, mine in members.items():
        yield Rows(dict(zip(names, key, strict=True)), np.array(mine))
