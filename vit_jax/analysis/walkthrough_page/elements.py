"""Elements of the page: numbers that know their array, tables, shapes, figures."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.analysis.walkthrough_page.arithmetic import Arrays

SHOWN = 5  # Components of a vector that a table shows.
_DIGITS = 4  # Significant digits of the largest number of a table.
_LEAST, _MOST = 3, 7  # Digits after the point.
_BARS = 100.0


class Number(NamedTuple):
    """A number of an array.

    Attributes:
      name: of the array.
      indices: one for each axis.
    """

    name: str
    indices: tuple[int, ...] = ()


Cell = Number | str


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      label: HTML of the row's head.
      cells: numbers, or HTML.
      style: CSS class: query, key, value, result.
    """

    label: str
    cells: Sequence[Cell]
    style: str = ""


class Elements:
    """Makes the elements of a step, and records the numbers that are shown.

    Attributes:
      arrays: all arrays, by name.
      shown: {name/index: number} of the numbers that were shown so far.
    """

    def __init__(self, arrays: Arrays):
        self.arrays = arrays
        self.shown: dict[str, float] = {}

    def number(self, name: str, *index: int, digits: int | None = None) -> str:
        """Returns a number of an array as HTML.

        Args:
          name: of the array.
          *index: a whole number for each axis.
          digits: after the point; None: four significant ones, at least three after the point.
        """
        value = self._value(Number(name, index))
        digits = _digits([value]) if digits is None else digits
        # Without a minus before what is rounded to zero.
        text = f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")
        path = "/".join([name, *map(str, index)])
        self.shown[path] = float(f"{value:.9g}")
        return f'<data class="number" data-number="{path}">{text}</data>'

    def _value(self, number: Number) -> float:
        value = self.arrays[number.name][number.indices]
        assert value.ndim == 0, number
        return float(value)

    def shape(self, name: str) -> str:
        """Returns the shape of an array, such as [197, 768]."""
        text = ", ".join(str(size) for size in self.arrays[name].shape)
        return f'<span class="shape" data-shape="{name}">[{text}]</span>'

    def size(self, name: str, axis: int) -> str:
        """Returns the size of an array along an axis."""
        text = f"{self.arrays[name].shape[axis]:,}"
        return f'<data class="number" data-size="{name}/{axis}">{text}</data>'

    def shapes(self, *steps: tuple[str, str]) -> str:
        """Returns a line of shapes: (symbol as HTML, name of the array) with arrows between."""
        parts = [f"<span>{symbol} {self.shape(name)}</span>" for symbol, name in steps]
        return f'<p class="shapes">{" <i>→</i> ".join(parts)}</p>'

    def product_shapes(
        self, row: tuple[str, str], matrix: tuple[str, str], result: tuple[str, str]
    ) -> str:
        """Returns a line of shapes of a product: of one row of an array, and a whole array.

        The arguments are each (symbol as HTML, name of the array).
        """
        one = f"{row[0]} [{self.size(row[1], 1)}]"
        both = f"<span>{one}, {matrix[0]} {self.shape(matrix[1])}</span>"
        after = f"<span>{result[0]} {self.shape(result[1])}</span>"
        return f'<p class="shapes">{both} <i>→</i> {after}</p>'

    def vector(self, name: str, *index: int) -> list[Cell]:
        """Returns the cells of the first components of a vector, and the last one."""
        size = self.arrays[name].shape[-1]
        cells: list[Cell] = [Number(name, (*index, i)) for i in range(min(size, SHOWN))]
        return [*cells, "…", Number(name, (*index, size - 1))] if size > SHOWN else cells

    def vectors(self, symbol: str, rows: Sequence[Row], *, caption: str) -> str:
        """Returns a table of vectors that have one size: a row for each.

        Args:
          symbol: HTML of the index of a component.
          rows: each with the cells of `vector`.
          caption: of the table.
        """
        name = next(cell.name for cell in rows[0].cells if isinstance(cell, Number))
        size = self.arrays[name].shape[-1]
        first = [str(i + 1) for i in range(min(size, SHOWN))]
        heads = [*first, "…", f"{size:,}"] if size > SHOWN else first
        style = "vector" if size > SHOWN else ""
        return self.table([symbol, *heads], rows, caption=caption, style=style)

    def table(
        self, heads: Sequence[str], rows: Sequence[Row], *, caption: str, by_column: bool = False,
        style: str = "",
    ) -> str:  # fmt: skip
        """Returns a table in a box that scrolls.

        Args:
          heads: HTML of the column heads, the first of the rows' labels.
          rows: the rows.
          caption: what the table shows.
          by_column: choose the number of digits for each column, not for the table.
          style: CSS class.
        """
        columns = list(zip(*(row.cells for row in rows), strict=True))
        groups = columns if by_column else [[cell for column in columns for cell in column]] * len(
            columns
        )  # fmt: skip
        digits = [
            _digits([self._value(cell) for cell in group if isinstance(cell, Number)])
            for group in groups
        ]
        head = "".join(f'<th scope="col">{text}</th>' for text in heads)
        lines = [f"<tr>{head}</tr>"]
        for row in rows:
            cells = "".join(
                f"<td>{self.number(cell.name, *cell.indices, digits=places)}</td>"
                if isinstance(cell, Number)
                else f"<td>{cell}</td>"
                for cell, places in zip(row.cells, digits, strict=True)
            )
            row_class = f' class="{row.style}"' if row.style else ""
            lines.append(f'<tr{row_class}><th scope="row">{row.label}</th>{cells}</tr>')
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{plain(caption)}">'
            f'<table class="{style}">'
            f"<caption>{caption}</caption>" + "".join(lines) + "</table></div>"
        )

    def worked(
        self,
        terms: Sequence[tuple[Number, Number, Number]],
        total: Number,
        *,
        after: tuple[str, Number] | None = None,
    ) -> str:
        """Returns the first terms of a sum of products: (factor, factor, product), and the sum.

        Args:
          terms: of the sum.
          total: the sum.
          after: what is done with the sum, as HTML, and its result; None: nothing.
        """
        shown = []
        for term in terms:
            left, right, product = (self.number(number.name, *number.indices) for number in term)
            shown.append(
                f'<span class="term"><span>{left} · {right}</span> <b>{product}</b></span>'
            )
        more = len(terms) < self.arrays[terms[0][2].name].size
        result = self.number(total.name, *total.indices)
        rest = " <span>+ …</span>" if more else ""
        total_html = f'<span class="total">= <strong>{result}</strong></span>'
        if after is not None:
            final = self.number(after[1].name, *after[1].indices)
            total_html += f'; <span class="total">{after[0]} = <strong>{final}</strong></span>'
        return f'<p class="worked">{" + ".join(shown)}{rest} {total_html}</p>'


def _digits(values: Sequence[float]) -> int:
    """Returns the digits after the point: four significant ones of the largest number."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if not largest:
        return _LEAST
    return int(np.clip(_DIGITS - 1 - math.floor(math.log10(largest)), _LEAST, _MOST))


def plain(text: str) -> str:
    """Returns HTML text without its tags, for an attribute."""
    parts, inside = [], False
    for char in text:
        if char in "<>":
            inside = char == "<"
        elif not inside:
            parts.append(char)
    return "".join(parts).replace('"', "&quot;")


def text(*paragraphs: str) -> str:
    """Returns paragraphs of HTML."""
    return "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)


def formula(*lines: str) -> str:
    """Returns a displayed formula; each line is HTML."""
    body = "<br>".join(lines)
    return f'<p class="formula">{body}</p>'


def bar(share: float, style: str = "") -> str:
    """Returns a horizontal bar for a share from 0 to 1 of the widest one."""
    width = _BARS * float(np.clip(share, 0, 1))
    return f'<div class="bar {style}" aria-hidden="true"><i style="width:{width:.1f}%"></i></div>'


def escape(label: str) -> str:
    """Returns text, such as a class name, as HTML."""
    return html.escape(label)
