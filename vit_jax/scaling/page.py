"""Formats the result of a fit as an HTML page that needs no other file and no network."""

import base64
import csv
import html
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.analysis import pages
from vit_jax.scaling import report
from vit_jax.scaling.numbers import number
from vit_jax.scaling.query import label
from vit_jax.scaling.report import Result

_MOST_ROWS = 500  # Rows that are listed; the CSV has all.

# Beside the style of all pages.
_STYLE = """
:root { --yes: #00694a; --partly: #8a5a00; --no: #a83200; }
@media (prefers-color-scheme: dark) { :root { --yes: #4cc79c; --partly: #e3ab45; --no: #ff8f66; } }
.answer { background: var(--box); border-left: .4rem solid var(--grade); padding: .7rem 1rem;
  font-size: 1.05rem; } .answer p, .answer ul { margin: .3rem 0; }
.answer ul { padding-left: 1.2rem; font-size: 1rem; }
.yes { --grade: var(--yes); } .partly { --grade: var(--partly); } .no { --grade: var(--no); }
.grade { color: var(--grade); font-weight: 700; }
figure svg { width: 100%; max-width: 34rem; height: auto; display: block; }
@media (prefers-color-scheme: dark) { figure svg { filter: invert(.9) hue-rotate(180deg); } }
"""

_CAPTIONS = {
    "law": "Dots are the fitted runs, open diamonds those held back. The line is the law and the "
    "band its interval; both end where the data stop supporting it.",
    "curves": "The runs of each group, joined through the mean at each size. No law is drawn.",
    "contours": "Lines of equal y of the law, between the runs that support it; dots are the runs "
    "in the same colours.",
    "shape": "The law at several values of compute; each run is drawn with the nearest.",
    "isoflop": "A parabola for each budget, and the power law of the minima that lie within their "
    "sizes.",
    "residuals": "Log prediction minus log y of each fitted run: above 0 it predicts too much. "
    "A good law leaves no pattern: a curve means that the runs have another form.",
}

_TERMS = {
    "interval": "The values of a parameter or prediction that the runs do not contradict (profile "
    "likelihood). It assumes the form of the law. An end is infinite where the data do not bound "
    "it.",
    "identified": "How well the runs determine a parameter: well (relative standard error below "
    ".1, and an interval within a factor of 3), weakly (below .5), no (otherwise, and if the "
    "interval is unbounded or reaches 0), at its bound (the best value is an end of the allowed "
    "range), or fixed.",
    "RMSE of logs": "Root mean square of log prediction minus log y: .05 is a typical error of 5%.",
    "condition number": "That of the fit's Jacobian. Above 1,000 the parameters can replace "
    "each other.",
    "converged": "Whether the search ended at a minimum of the loss.",
    "agreeing starts": "Share of the searches, from different starts, that ended at this law.",
    "p-value (lack of fit)": "Probability of residuals as curved as these, or more, if the law "
    "has the right form. A law is refused beyond the runs below a threshold with which at most 1 "
    "in 100 tables of runs that follow their laws has one refused.",
    "held-out larger scales (rolling origin)": "The law is fitted to the smaller runs and predicts "
    "the next larger ones, several times: the error to expect of an extrapolation of one step.",
    "refused": "The interval spans more than a factor of 3, the residuals are curved, or the point "
    "lies beyond the runs by more than the factor that they span: a number would be a guess.",
}


def page(result: Result, figures: Mapping[str, str], *, command: str) -> str:
    """Returns a self-contained HTML page; `figures` is SVG text by name, `command` is shown."""
    summary = result["summary"]
    body = [
        f"<h1>{html.escape(result['title'])}</h1>",
        f'<div class="answer {summary["trust"]}"><p>{html.escape(summary["answer"])}</p>',
        f"<p><span class=grade>Trust: {summary['trust']}.</span> {html.escape(summary['why'])}</p>",
        *_group_reasons(report.reserved(summary)),
        "</div>",
        *(f'<p class="soft">{html.escape(line)}</p>' for line in result["rows"]),
    ]
    body += ['<div class="figures">', *itertools.starmap(_figure, figures.items()), "</div>"]
    for entry in result["groups"]:
        body += _group(entry, level=result["level"])
    if result["crossings"]:
        body.append(f"<h2>{report.CROSSINGS}</h2>")
        body += [f"<p>{html.escape(line)}</p>" for line in report.crossing_sentences(result)]
    if result["grown"]:
        body += [f"<h2>{report.GROWN}</h2>", pages.table(report.grown_rows(result))]
    body += [*_rows(result), *_terms(), *_origin(result, command)]
    return pages.document(result["title"], body, style=_STYLE)


def _group_reasons(groups: Sequence[Result]) -> list[str]:
    """Returns the trust of groups, and why, as a list."""
    items = [
        f'<li class="{group["trust"]}"><b>{html.escape(group["name"])}</b>: '
        f"<span class=grade>{group['trust']}.</span> {html.escape(group['why'])}</li>"
        for group in groups
    ]
    return ["<ul>", *items, "</ul>"] if items else []


def _figure(name: str, svg: str) -> str:
    caption = next((text for key, text in _CAPTIONS.items() if name.startswith(key)), "")
    link = _download(f"{name}.svg", "image/svg+xml", svg.encode(), "SVG")
    inline = svg[svg.index("<svg") :]  # Without the XML declaration and document type.
    return (
        f'<figure role="group" aria-label="{html.escape(name)}">{inline}\n'
        f"<figcaption>{html.escape(caption)} {link}</figcaption></figure>"
    )


def _group(entry: Result, *, level: float) -> list[str]:
    name = ", ".join(f"{key} = {value}" for key, value in entry["group"].items())
    body = [f"<h2>{html.escape(name or 'The law')}</h2>"]
    if "error" in entry:
        return [*body, f'<p class="no"><span class=grade>No fit.</span> '
                f"{html.escape(entry['error'])}</p>"]  # fmt: skip
    body.append(
        f"<p><b>{entry['law']}</b>: {html.escape(entry['formula'])} "
        f'<span class="soft">({html.escape(entry["source"])})</span></p>'
    )
    params = report.param_rows(entry, level)
    diagnostics = zip(*report.diagnostic_rows(entry), strict=True)  # Narrow: one in each row.
    body += [pages.table(params), pages.table([("diagnostic", "value"), *diagnostics])]
    body.append(f'<p class="soft">{html.escape(report.method_sentence(entry))}</p>')
    if entry["held_out"]:
        body.append("<p>Error of held-out larger scales (RMSE of logs, rolling origin):</p>")
        body.append(pages.table(report.held_out_rows(entry)))
    is_refused = entry["extrapolation"] and not entry["extrapolation"]["supported"]
    for sentence in report.sentences(entry):
        body.append(f'<p class="{"no" if is_refused else ""}">{html.escape(sentence)}</p>')
    for title, rows in report.extra_tables(entry):
        body += [f"<h3>{html.escape(title)}</h3>", pages.table(rows)]
    return body


def _rows(result: Result) -> list[str]:
    """Returns the listed rows, and links to the rows and the parameters as CSV."""
    y = result["columns"]["y"]
    names = {role: column for role, column in result["columns"].items() if role != "y"}
    columns = [*result["groups"][0]["group"], *names.values(), y, "use", "prediction"]
    roles = [*names, "y", "use", "prediction"]
    rows = [
        [*entry["group"].values(), *(row[role] for role in roles)]
        for entry in result["groups"]
        for row in entry["rows"]
    ]
    params = [["group", "law", "parameter", "estimate", "low", "high", "identified"]]
    for entry in result["groups"]:
        group = label(entry["group"])
        for name, value in entry.get("params", {}).items():
            ends = [value[key] for key in ("estimate", "low", "high")]
            params.append([group, entry["law"], name, *ends, value["identified"]])
    shown = [columns, *([number(cell) for cell in row] for row in rows[:_MOST_ROWS])]
    note = f" The first {_MOST_ROWS} are listed." if len(rows) > _MOST_ROWS else ""
    links = [
        _download("rows.csv", "text/csv", _csv([columns, *rows]), "rows as CSV"),
        _download("parameters.csv", "text/csv", _csv(params), "parameters as CSV"),
    ]
    return [
        "<h2>The runs</h2>",
        f"<p>{len(rows):,} rows.{note} Download: {', '.join(links)}.</p>",
        f"<details><summary>List the rows</summary>{pages.table(shown)}</details>",
    ]


def _terms() -> list[str]:
    terms = "".join(
        f"<dt>{html.escape(term)}</dt><dd>{html.escape(meaning)}</dd>"
        for term, meaning in _TERMS.items()
    )
    return [
        "<h2>Terms</h2>",
        f"<details open><summary>What the words mean</summary><dl>{terms}</dl></details>",
    ]


def _origin(result: Result, command: str) -> list[str]:
    columns = ", ".join(f"{role} = {name}" for role, name in result["columns"].items())
    return [
        "<h2>Command</h2>",
        f"<p><code>{html.escape(command)}</code></p>",
        f'<p class="soft">{html.escape(columns)}. Table: {html.escape(result["runs"])}. '
        f"vit_jax {html.escape(result['vit_jax'])}.</p>",
    ]


def _csv(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _download(name: str, kind: str, content: bytes, label: str) -> str:
    data = base64.b64encode(content).decode()
    return f'<a download="{html.escape(name)}" href="data:{kind};base64,{data}">{label}</a>'
