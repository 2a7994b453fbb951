"""Selects and groups the rows of a table of runs to which laws are fitted.

A condition is COLUMN OPERATOR VALUE, with one of the operators = != < <= > >= ~. A value such as
50% is a share of the column's largest number; ~ matches text with a pattern such as vit-*.
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


def _matches_pattern(values: np.ndarray, pattern: str) -> np.ndarray:
    return np.array([fnmatch.fnmatchcase(value, pattern) for value in values.tolist()], bool)


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "~": _matches_pattern,
}
_SIGNS = "|".join(_OPERATORS)


@dataclasses.dataclass(frozen=True)
class Group:
    """A group of rows.

    Attributes:
      group: value of each grouping column, as text; {} without grouping columns.
      rows: indices of the rows in the table.
    """

    group: dict[str, str]
    rows: Int[np.ndarray, "n"]


def label(group: Mapping[str, str]) -> str:
    """Returns a short name of a group: its values, with the column where a value says too little.

    That is a number or a boolean: "vit-8k", but "model.width=16". Empty text is two quotes.
    """
    return ", ".join(
        f"{name}={value}" if _needs_column(value) else value or '""'
        for name, value in group.items()
    )


def _needs_column(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return value in ("True", "False")
    return True


def matches(table: Table, condition: str) -> Bool[np.ndarray, "n"]:
    """Returns which rows fulfil a condition.

    Args:
      table: the result of `vit_jax.scaling.table.read_runs`.
      condition: such as "evaluation=test", "total_train_flops<1e14", "examples>=50%".

    Raises:
      ConfigError: the condition is invalid, has an unknown column, or compares text with a number.
    """
    name, sign, text = _parse(table, condition)
    values = column(table, name)
    if values.dtype.kind == "U" or values.dtype.kind == "b":
        if sign not in ("=", "!=", "~"):
            raise ConfigError(f"{condition!r}: {name} has no numbers: use =, != or ~.")
        if values.dtype.kind == "b":
            values, text = values.astype(str), text.capitalize()
        operand = text
        if sign == "=" and text not in values:
            hint = did_you_mean(text, sorted({*values.tolist()})[:50])
            raise ConfigError(f"{condition!r}: no row has that value. {hint}")
    elif sign == "~":
        raise ConfigError(f"{condition!r}: {name} has numbers: use one of = != < <= > >=.")
    else:
        operand = _number(text, values, condition)
    return _OPERATORS[sign](values, operand)


def _parse(table: Table, condition: str) -> tuple[str, str, str]:
    """Splits a condition into column, operator and value; column names may contain operators.

    Raises:
      ConfigError: the condition is invalid.
    """
    column_names = sorted(map(re.escape, table), key=len, reverse=True)
    for name in (*column_names, ".+?"):
        pattern = rf"\s*(?P<name>{name})\s*(?P<sign>{_SIGNS})\s*(?P<value>.*?)\s*"
        if match := re.fullmatch(pattern, condition, flags=re.DOTALL):
            return match["name"], match["sign"], match["value"]
    raise ConfigError(
        f"{condition!r} is not a condition: write COLUMN, one of {' '.join(_OPERATORS)}, and a "
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
    """Selects rows; returns their indices and a note for each step of the selection.

    A table of `vit_jax.sweeps.table` has several rows per run. Of these, rows of the last step are
    used, and of the evaluation "test" if there are several; a condition on `final` or `evaluation`
    replaces this default.

    Args:
      table: the result of `vit_jax.scaling.table.read_runs`.
      needed: numeric columns in which a row must have a value.
      where: conditions that a row must fulfil.
      chosen_by: an evaluation, such as "val". Of the runs with equal values in the columns `alike`,
        the one with the least `y` in this evaluation is selected (early stopping); "": all.
      y: the column of errors.
      alike: columns, see `chosen_by`.

    Raises:
      ConfigError: a condition or a column is wrong, or several evaluations are left.
      DataError: no row is left.
    """
    notes = []
    conditions = list(where)
    named = {_parse(table, condition)[0] for condition in conditions}
    # In other tables a column of this name may have another meaning: its type must match.
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
        raise DataError("The table has columns but no rows.")
    mask = np.ones(size, bool)
    for condition in conditions:
        mask &= matches(table, condition)
        notes.append(f"{mask.sum():,} {'of these ' if notes else ''}with {condition}")
    notes = [f"Of {size:,} rows: {', '.join(notes)}"] if notes else []
    for name in needed:
        has_value = np.isfinite(numeric_column(table, name))
        if (mask & ~has_value).any():
            notes.append(f"{(mask & ~has_value).sum():,} rows left out: they have no {name}")
        mask &= has_value
    (rows,) = np.nonzero(mask)
    if notes:
        notes.append(f"{len(rows):,} of {size:,} rows are left")
    if not len(rows):
        hint = ""
        if "final=true" in conditions and "final" not in named:
            hint = "\nRows of earlier steps are used with --where=final=false."
        raise DataError("No row of the table is left:\n  " + "\n  ".join(notes) + hint)
    if chosen_by:
        rows = _choose_best(table, rows, chosen_by, y, alike)
        notes.append(
            f"{len(rows):,} rows: of runs with equal {', '.join(alike)} the best by {chosen_by}"
        )
    return rows, notes


def _kind(table: Table, name: str) -> str:
    """Returns NumPy's kind of a column's dtype; "" if there is no such column."""
    return table[name].dtype.kind if name in table else ""


def _choose_best(
    table: Table, rows: np.ndarray, evaluation: str, y: str, alike: Sequence[str]
) -> np.ndarray:
    is_scored = matches(table, f"evaluation={evaluation}")
    if _kind(table, "final") == "b":
        is_scored &= table["final"]
    names = column(table, "run")
    scores = dict(zip(names[is_scored].tolist(), column(table, y)[is_scored].tolist(), strict=True))
    best: dict[tuple, int] = {}
    for row in rows.tolist():
        key = tuple(column(table, name)[row] for name in alike)
        score = scores.get(names[row].item(), np.inf)
        if key not in best or score < scores.get(names[best[key]].item(), np.inf):
            best[key] = row
    return np.array(sorted(best.values()), np.int64)


def groups(table: Table, rows: Int[np.ndarray, "n"], names: Sequence[str]) -> Iterator[Group]:
    """Yields the groups of rows with equal values in some columns, in the order of the table.

    Raises:
      ConfigError: the table has no such column.
    """
    columns = [column(table, name)[rows] for name in names]
    keys = [tuple(str(value) for value in values) for values in zip(*columns, strict=True)]
    members: dict[tuple[str, ...], list[int]] = {}
    for row, key in zip(rows.tolist(), keys or [()] * len(rows), strict=True):
        members.setdefault(key, []).append(row)
    for key, indices in members.items():
        yield Group(dict(zip(names, key, strict=True)), np.array(indices))
