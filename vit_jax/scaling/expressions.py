"""Computes columns from a table's columns: "1-top1", "100 - top5", "params*examples_seen".

    expression = term (("+" | "-") term)*
    term       = factor (("*" | "/") factor)*
    factor     = "-" factor | "(" expression ")" | number | name of a column

The name of a column is written literally, also if it contains spaces, slashes or brackets. If
several names match at a position, the longest one is used. A number is never a column name.
"""

import difflib
import re
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float

from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.scaling.table import column, numeric_column

_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?(?![\w.])")
_TERM = re.compile(r"[^-+*()]+")  # A name without operators, or a quotient of such names.
_SIMILAR = 0.75  # Of difflib's ratio: one or two letters differ.
_Operand = float | Float[np.ndarray, "n"]
_OPERATORS = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide}


def with_computed(table: Mapping[str, np.ndarray], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Returns the table with a column for each name that is an expression of its columns.

    Args:
      table: the result of `vit_jax.scaling.table.read_runs`.
      names: names of columns, or expressions of them.

    Returns:
      The table and the computed columns, named by their expressions. If a number of a row is
      missing (NaN), so is the result; after a division by 0 it is infinite or NaN.

    Raises:
      ConfigError: a name is neither a column nor an expression, or an expression uses text columns.
    """
    computed = {name: _Parser(table, name).values() for name in names if name not in table}
    return {**table, **computed}


class _Parser:
    """A recursive descent parser: a method for each rule of the grammar."""

    def __init__(self, table: Mapping[str, np.ndarray], text: str):
        self._table, self._text, self._position = table, text, 0
        by_length = sorted(table, key=len, reverse=True)
        self._names = {name.strip(): name for name in by_length if name.strip()}
        self._has_column = False

    def values(self) -> Float[np.ndarray, "n"]:
        if not re.search(r"[-+*/()]", self._text):
            column(
                self._table, self._text
            )  # Not an expression: raises that there is no such column.
        try:
            with np.errstate(all="ignore"):
                value = self._chain("+-")
        except RecursionError:
            raise self._error("it is nested too deeply") from None
        if self._next():
            raise self._error(f"{self._text[self._position :].strip()!r} is unexpected")
        if not self._has_column:
            raise self._error("it contains no column")
        assert isinstance(value, np.ndarray)  # Computed from a column.
        return value

    def _chain(self, signs: str) -> _Operand:
        """Evaluates operators of one precedence, from left to right."""
        operand = self._factor if signs == "*/" else lambda: self._chain("*/")
        value = operand()
        while (sign := self._next()) and sign in signs:
            self._position += 1
            value = _OPERATORS[sign](value, operand())
        return value

    def _factor(self) -> _Operand:
        sign = self._next()
        rest = self._text[self._position :]
        if name := next((name for name in self._names if self._is_here(name)), None):
            self._position += len(name)
            self._has_column = True
            return numeric_column(self._table, self._names[name])
        if number := _NUMBER.match(rest):
            self._position += number.end()
            return float(number[0])
        if sign == "-":
            self._position += 1
            return -self._factor()
        if sign == "(":
            self._position += 1
            value = self._chain("+-")
            if self._next() != ")":
                raise self._error("a bracket is not closed")
            self._position += 1
            return value
        if not _TERM.match(rest) or rest[0] == "/":
            raise self._error(f"a column or a number is missing before {rest!r}" if rest else
                              "a column or a number is missing at its end")  # fmt: skip
        raise self._unknown()

    def _unknown(self) -> ConfigError:
        """Returns the error of the terms that are no columns, with a corrected expression.

        The term at the position is one of them, since the parser has stopped there.
        """
        unknown, corrected = [], self._text[: self._position]
        while self._position < len(self._text):
            rest = self._text[self._position :]
            known = next((name for name in self._names if self._is_here(name)), "")
            number, term = _NUMBER.match(rest), _TERM.match(rest)
            if known or number or term is None or rest[0] == "/" or rest[0].isspace():
                piece = kept = known or (number[0] if number else rest[0])
            else:
                piece, kept = self._nearest(term[0].strip())
                unknown.append(piece)
            self._position += len(piece)
            corrected += kept
        terms = " or ".join(f'"{term}"' for term in dict.fromkeys(unknown))
        what = f"there is no column {terms}"
        try:
            _Parser(self._table, corrected).values()
        except ConfigError:  # Some term resembles no column.
            return self._error(what, did_you_mean(unknown[0], self._table))
        return self._error(what, f'Did you mean "{corrected}"?')

    def _nearest(self, term: str) -> tuple[str, str]:
        """Returns an unknown term and the nearest column, or the term itself if none resembles it.

        A slash may be a division, or part of a name such as "test/top1", of which the table may
        have the last part.
        """
        first, _, others = term.partition("/")
        first, last = first.strip(), others.rpartition("/")[2].strip()
        for text in (term, first):
            if near := difflib.get_close_matches(text, self._names, n=1, cutoff=_SIMILAR):
                return text, near[0]
        if last in self._names:
            return term, last
        near = difflib.get_close_matches(first, self._names, n=1, cutoff=0.5)
        return first, near[0] if near else first

    def _is_here(self, name: str) -> bool:
        """Returns whether the name, and not a longer word or a number, is at the position."""
        end = self._position + len(name)
        if not self._text.startswith(name, self._position) or _NUMBER.fullmatch(name):
            return False
        return not (re.match(r"\w", name[-1]) and re.match(r"[\w.]", self._text[end:]))

    def _next(self) -> str:
        """Skips spaces and returns the next character; "" at the end."""
        while self._text[self._position : self._position + 1].isspace():
            self._position += 1
        return self._text[self._position : self._position + 1]

    def _error(self, what: str, hint: str = "") -> ConfigError:
        return ConfigError(
            f'The table has no column "{self._text}", and it is not a valid expression of columns: '
            f"{what}. {hint or 'Write, for example, 1-top1, with + - * / and brackets.'}"
        )
