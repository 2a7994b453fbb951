"""Formats the result of a fit as text for the terminal and as a self-contained HTML page."""

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

_CROSSINGS = "Crossings of the groups"
_GROWN = "The centre's shape for ten times the compute (SoViT's joint update)"

Result = Mapping[str, Any]


def number(value: Any) -> str:
    """Formats a number with four digits; a dash for None, other values as text."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:,}" if isinstance(value, int) and abs(value) < 1e6 else f"{value:.4g}"


def interval(ends: Result) -> str:
    """Formats an interval as "[.31, .36]"; a missing end is infinite."""
    low, high = ends.get("low"), ends.get("high")
    return f"[{'-∞' if low is None else number(low)}, {'∞' if high is None else number(high)}]"


def text(result: Result) -> str:
    """Formats the result of `vit_jax.scaling.study.study` for a terminal."""
    lines = [*result["rows"]]
    for entry in result["groups"]:
        lines.append("")
        lines += _group_text(entry, level=result["level"])
    if result["crossings"]:
        lines += ["", _CROSSINGS, *_crossings(result)]
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
    """Returns the test error, the verdict on extrapolation and the notes of a fit, as sentences."""
    lines = []
    if entry["test"]:
        test = entry["test"]
        lines.append(
            f"Test set (rows held back from fit and choice): {test['rows']:,} rows, RMSE of logs "
            f"{number(test['rmse_log'])}."
        )
    verdict = entry["extrapolation"]
    if verdict:
        verb = "support" if verdict["supported"] else "do NOT support"
        lines.append(
            f"The data {verb} extrapolation to {verdict['to']}. {verdict['reason']}".strip()
        )
    return lines + entry["notes"]


def _param_rows(entry: Result, level: float) -> list[list[str]]:
    rows = [["parameter", "estimate", f"{level * 100:.6g}% interval", "identified"]]
    for name, values in entry["params"].items():
        rows.append(
            [name, number(values["estimate"]), interval(values), values.get("identified", "")]
        )
    return rows


def _diagnostic_rows(entry: Result) -> list[list[str]]:
    diagnostics = entry["diagnostics"]
    keys = [key for key, value in diagnostics.items() if not isinstance(value, list | dict)]
    return [keys, [number(diagnostics[key]) for key in keys]]


def _held_out_rows(entry: Result) -> list[list[str]]:
    rows = [["law", "RMSE", "origins", ""]]
    for law, values in entry["held_out"].items():
        marks = ["chosen"] if law == entry["law"] else []
        marks += ["residuals are curved (lack of fit)"] if values["residuals_curved"] else []
        rows.append([law, number(values["rmse_log"]), number(values["origins"]), ", ".join(marks)])
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
    """Returns where groups cross, and the ratio of their data sizes, as sentences."""
    sentences, width = [], f"{result['level'] * 100:.6g}% interval"
    for crossing in result["crossings"]:
        sentence = f"{crossing['group']} and {crossing['over']}: {crossing['reason']}"
        if "estimate" in crossing:
            sentence += f" The {width} of that size is {interval(crossing)}."
        if more := crossing["times_x"]:
            sentence += (
                f" For the error of {crossing['group']} at {result['columns']['x']} "
                f"{number(crossing['at'])}, {crossing['over']} needs {number(more['estimate'])} "
                f"times as many, {width} {interval(more)}."
            )
        sentences.append(sentence)
    return sentences


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
    """Returns a self-contained HTML page; `figures` is SVG text by title, `command` is shown."""
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
        body.append(f"<h2>{_CROSSINGS}</h2>")
        body += [f"<p>{html.escape(sentence)}</p>" for sentence in _crossings(result)]
    if result["grown"]:
        body += [f"<h2>{_GROWN}</h2>", _table(_grown_rows(result))]
    body.append(f"<h2>Command</h2><p><code>{html.escape(command)}</code></p>")
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
    is_refused = entry["extrapolation"] and not entry["extrapolation"]["supported"]
    for sentence in sentences(entry):
        body.append(f"<p{' class=no' if is_refused else ''}>{html.escape(sentence)}</p>")
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
    """Returns SVG text without the XML declaration and document type."""
    return svg[svg.index("<svg") :]
