"""Columns computed from a table's columns: "1-top1", "100 - test/top1", "6*params*examples_seen".

    expression = term (("+" | "-") term)*
    term       = factor (("*" | "/") factor)*
    factor     = "-" factor | "(" expression ")" | number | name of a column

A column's name stands as it is, even with spaces, slashes or brackets in it: where several names
begin at one place, the longest is meant. A number is always a number.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float

from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.scaling.table import column, numeric_column

_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?(?![\w.])")
_Operand = float | Float[np.ndarray, "n"]
_OPERATORS = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide}


def with_computed(table: Mapping[str, np.ndarray], names: Iterable[str]) -> dict[str, np.ndarray]:
    """The table, and a column for each name that is an expression of its columns.

    Args:
      table: of `vit_jax.scaling.table.read_runs`.
      names: of columns, or expressions of them.

    Returns:
      The table with the computed columns, each by its expression. Where a number of a row is
      missing, so is the result; after a division by 0 it is infinite or NaN.

    Raises:
      ConfigError: a name is neither a column nor an expression, or is one of columns of text.
    """
    computed = {name: _Parser(table, name).values() for name in names if name not in table}
    return {**table, **computed}


class _Parser:
    """Reads an expression from left to right, a function for each rule of the grammar."""

    def __init__(self, table: Mapping[str, np.ndarray], text: str):
        self._table, self._text, self._at = table, text, 0
        by_length = sorted(table, key=len, reverse=True)
        self._names = {name.strip(): name for name in by_length if name.strip()}
        self._names_a_column = False

    def values(self) -> Float[np.ndarray, "n"]:
        if not re.search(r"[-+*/()]", self._text):
            column(self._table, self._text)  # It is no expression: that there is no such column.
        try:
            with np.errstate(all="ignore"):
                found = self._chain("+-")
        except RecursionError:
            raise self._error("it is nested too deeply") from None
        if self._next():
            raise self._error(f"{self._text[self._at :].strip()!r} is left over")
        if not self._names_a_column:
            raise self._error("it names no column")
        return found

    def _chain(self, signs: str) -> _Operand:
        """Operands with operators of one rank between them, from left to right."""
        operand = self._factor if signs == "*/" else lambda: self._chain("*/")
        found = operand()
        while (sign := self._next()) and sign in signs:
            self._at += 1
            found = _OPERATORS[sign](found, operand())
        return found

    def _factor(self) -> _Operand:
        sign = self._next()
        rest = self._text[self._at :]
        if name := next((name for name in self._names if self._is_here(name)), None):
            self._at += len(name)
            self._names_a_column = True
            return numeric_column(self._table, self._names[name])
        if number := _NUMBER.match(rest):
            self._at += number.end()
            return float(number[0])
        if sign == "-":
            self._at += 1
            return -self._factor()
        if sign == "(":
            self._at += 1
            found = self._chain("+-")
            if self._next() != ")":
                raise self._error("a bracket is not closed")
            self._at += 1
            return found
        unknown = re.match(r"[^-+*/()]*", rest)[0].strip()
        if not unknown:
            raise self._error(f"a column or a number is missing before {rest!r}" if rest else
                              "a column or a number is missing at its end")  # fmt: skip
        raise self._error(f'there is no column "{unknown}"', did_you_mean(unknown, self._table))

    def _is_here(self, name: str) -> bool:
        """Whether the name, and not a longer word or a number, stands at this place."""
        end = self._at + len(name)
        if not self._text.startswith(name, self._at) or _NUMBER.fullmatch(name):
            return False
        return not (re.match(r"\w", name[-1]) and re.match(r"[\w.]", self._text[end:]))

    def _next(self) -> str:
        """The next character that is no space; "" at the end."""
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1
        return self._text[self._at : self._at + 1]

    def _error(self, what: str, hint: str = "") -> ConfigError:
        return ConfigError(
            f'The table has no column "{self._text}", and as an expression of columns it cannot be '
            f"read: {what}. {hint or 'Write such as 1-top1, with + - * / and brackets.'}"
        )
