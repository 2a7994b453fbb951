"""A fit as text: a table for the terminal, and one HTML page that needs no other file."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: .6em 0 1.2em; }
th, td { text-align: left; padding: .2em 1em .2em 0; border-bottom: 1px solid #e6e6e6; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
code { background: #f4f4f4; padding: .1em .3em; }
figure { margin: 1em 0; } svg { max-width: 100%; height: auto; }
.no { color: #b34700; } .grey { color: #666; }
"""

_OVERTAKES = "Where one group overtakes another"
_GROWN = "The centre's shape for ten times the compute (SoViT's joint update)"

Result = Mapping[str, Any]


def number(value: Any) -> str:
    """Four digits of a number; words for what is none."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:,}" if isinstance(value, int) and abs(value) < 1e6 else f"{value:.4g}"


def interval(found: Result) -> str:
    """An interval as "[.31, .36]"; an end that the data leave open is infinite."""
    low, high = found.get("low"), found.get("high")
    return f"[{'-∞' if low is None else number(low)}, {'∞' if high is None else number(high)}]"


def text(result: Result) -> str:
    """The result of `vit_jax.scaling.study.study` for a terminal."""
    lines = [*result["rows"]]
    for entry in result["groups"]:
        lines.append("")
        lines += _group_text(entry, level=result["level"])
    if result["crossings"]:
        lines += ["", _OVERTAKES, *_crossings(result)]
    if result["grown"]:
        lines += ["", _GROWN, *_aligned(_grown_rows(result))]
    return "\n".join(lines).strip()


def _group_text(entry: Result, *, level: float) -> list[str]:
    name = ", ".join(f"{key}={value}" for key, value in entry["group"].items())
    head = f"{name}: " if name else ""
    if "error" in entry:
        return [f"{head}no fit: {entry['error']}"]
    lines = [f"{head}{entry['law']}, {entry['formula']}"]
    lines += _indented(_aligned(_param_rows(entry, level)))
    lines += _indented(_aligned(_diagnostic_rows(entry)))
    if entry["held_out"]:
        lines.append("  error of held-out larger scales (RMSE of logs, rolling origin):")
        lines += _indented(_indented(_aligned(_held_out_rows(entry))))
    lines += [f"  {sentence}" for sentence in sentences(entry)]
    for title, rows in _extra_tables(entry):
        lines += [f"  {title}", *_indented(_indented(_aligned(rows)))]
    return lines


def sentences(entry: Result) -> list[str]:
    """What else a fit says, in words."""
    said = []
    if entry["test"]:
        test = entry["test"]
        said.append(
            f"Held back, and seen by neither fit nor choice: {test['rows']:,} rows, RMSE of logs "
            f"{number(test['rmse_log'])}."
        )
    verdict = entry["extrapolation"]
    if verdict:
        word = "support" if verdict["supported"] else "do NOT support"
        said.append(
            f"The data {word} extrapolation to {verdict['to']}. {verdict['reason']}".strip()
        )
    return said + entry["notes"]


def _param_rows(entry: Result, level: float) -> list[list[str]]:
    rows = [["parameter", "estimate", f"{level * 100:.6g}% interval", "identified"]]
    for parameter, found in entry["params"].items():
        rows.append(
            [parameter, number(found["estimate"]), interval(found), found.get("identified", "")]
        )
    return rows


def _diagnostic_rows(entry: Result) -> list[list[str]]:
    found = entry["diagnostics"]
    keys = [key for key in found if not isinstance(found[key], list | dict)]
    return [keys, [number(found[key]) for key in keys]]


def _held_out_rows(entry: Result) -> list[list[str]]:
    rows = [["law", "RMSE", "origins", ""]]
    for law, found in entry["held_out"].items():
        mark = ["chosen"] if law == entry["law"] else []
        mark += ["its residuals bend"] if found["residuals_bend"] else []
        rows.append([law, number(found["rmse_log"]), number(found["origins"]), ", ".join(mark)])
    return rows


def _extra_tables(entry: Result) -> list[tuple[str, list[list[str]]]]:
    tables = []
    for title, records in entry["tables"].items():
        heads = list(dict.fromkeys(key for record in records for key in record))
        rows = [[_cell(record.get(key)) for key in heads] for record in records]
        tables.append((title, [heads, *rows]))
    return tables


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{number(value['estimate'])} {interval(value)}"
    return number(value)


def _crossings(result: Result) -> list[str]:
    """Who leads from where on, and by how much, in words."""
    said, width = [], f"{result['level'] * 100:.6g}% interval"
    for found in result["crossings"]:
        sentence = f"{found['group']} and {found['over']}: {found['reason']}"
        if "estimate" in found:
            sentence += f" The {width} of that size is {interval(found)}."
        if more := found["times_x"]:
            sentence += (
                f" For the error of {found['group']} at {result['columns']['x']} "
                f"{number(found['at'])}, {found['over']} takes {number(more['estimate'])} times as "
                f"many, {width} {interval(more)}."
            )
        said.append(sentence)
    return said


def _grown_rows(result: Result) -> list[list[str]]:
    heads = ["dimension", "exponent", "centre", "grown"]
    return [heads, *([number(row[head]) for head in heads] for row in result["grown"])]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


# ------------------------------------------------------------------------------------------ HTML


def page(result: Result, figures: Mapping[str, str], *, command: str) -> str:
    """One self-contained page: question, figures, parameters, diagnostics, held-out errors.

    Args:
      result: of `vit_jax.scaling.study.study`.
      figures: SVG text by title.
      command: that made it.
    """
    columns = ", ".join(f"{role} = {name}" for role, name in result["columns"].items())
    body = [
        f"<h1>{html.escape(result['title'])}</h1>",
        f"<p>{html.escape(columns)}. Table: <code>{html.escape(result['runs'])}</code>.</p>",
        *(f"<div class=grey>{html.escape(line)}</div>" for line in result["rows"]),
    ]
    for title, svg in figures.items():
        body.append(f"<figure aria-label='{html.escape(title)}'>{_inline(svg)}</figure>")
    for entry in result["groups"]:
        body += _group_html(entry, level=result["level"])
    if result["crossings"]:
        body.append(f"<h2>{_OVERTAKES}</h2>")
        body += [f"<p>{html.escape(sentence)}</p>" for sentence in _crossings(result)]
    if result["grown"]:
        body += [f"<h2>{_GROWN}</h2>", _table(_grown_rows(result))]
    body.append(f"<h2>How it was made</h2><p><code>{html.escape(command)}</code></p>")
    body.append(f"<p class=grey>vit_jax {html.escape(result['vit_jax'])}</p>")
    return (
        "<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8>"
        f"<title>{html.escape(result['title'])}</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _group_html(entry: Result, *, level: float) -> list[str]:
    name = ", ".join(f"{key} = {value}" for key, value in entry["group"].items())
    body = [f"<h2>{html.escape(name or 'The law')}</h2>"]
    if "error" in entry:
        return [*body, f"<p class=no>No fit: {html.escape(entry['error'])}</p>"]
    body.append(
        f"<p><b>{entry['law']}</b>: {html.escape(entry['formula'])} "
        f"<span class=grey>({html.escape(entry['source'])})</span></p>"
    )
    body += [_table(_param_rows(entry, level)), _table(_diagnostic_rows(entry))]
    if entry["held_out"]:
        body.append("<p>Error of held-out larger scales (RMSE of logs, rolling origin):</p>")
        body.append(_table(_held_out_rows(entry)))
    refused = entry["extrapolation"] and not entry["extrapolation"]["supported"]
    for sentence in sentences(entry):
        body.append(f"<p{' class=no' if refused else ''}>{html.escape(sentence)}</p>")
    for title, rows in _extra_tables(entry):
        body += [f"<h3>{html.escape(title)}</h3>", _table(rows)]
    return body


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += [
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rest
    ]
    return "<table>" + "\n".join(lines) + "</table>"


def _inline(svg: str) -> str:
    """An SVG file's text without what stands before its first element."""
    return svg[svg.index("<svg") :]
