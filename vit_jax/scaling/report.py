"""Formats the result of a fit as text for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.scaling.numbers import interval, number

CROSSINGS = "Crossings of the groups"
GROWN = "The centre's shape for ten times the compute (SoViT's joint update)"

# The diagnostics of `fit.json` in words.
DIAGNOSTICS = {
    "rows": "fitted rows",
    "rmse_log": "RMSE of logs",
    "condition": "condition number",
    "converged": "converged",
    "starts_agreeing": "agreeing starts",
    "p_lack_of_fit": "p-value (lack of fit)",
    "flops_per_param_and_example": "FLOPs per parameter and example",
}

Result = Mapping[str, Any]


def text(result: Result) -> str:
    """Formats the result of `vit_jax.scaling.study.study` for a terminal."""
    summary = result["summary"]
    lines = [*result["rows"], "", summary["answer"], f"Trust: {summary['trust']}. {summary['why']}"]
    lines += [f"  {group['name']}: {group['trust']}. {group['why']}" for group in reserved(summary)]
    for entry in result["groups"]:
        lines.append("")
        lines += _group_text(entry, level=result["level"])
    if result["crossings"]:
        lines += ["", CROSSINGS, *crossing_sentences(result)]
    if result["grown"]:
        lines += ["", GROWN, *_aligned(grown_rows(result))]
    return "\n".join(lines).strip()


def reserved(summary: Result) -> list[Result]:
    """Returns the summaries of the groups whose laws cannot be used without reservation.

    Groups of the same trust for the same reason are one summary, with all names.
    """
    names: dict[tuple[str, str], list[str]] = {}
    for group in summary["groups"]:
        if group["trust"] != "yes":
            names.setdefault((group["trust"], group["why"]), []).append(group["name"])
    return [
        {"name": ", ".join(alike), "trust": trust, "why": why}
        for (trust, why), alike in names.items()
    ]


def _group_text(entry: Result, *, level: float) -> list[str]:
    name = ", ".join(f"{key}={value}" for key, value in entry["group"].items())
    head = f"{name}: " if name else ""
    if "error" in entry:
        return [f"{head}no fit: {entry['error']}"]
    lines = [f"{head}{entry['law']}, {entry['formula']}"]
    lines += _indented(_aligned(param_rows(entry, level)))
    lines += _indented(_aligned(diagnostic_rows(entry)))
    if entry["held_out"]:
        lines.append("  error of held-out larger scales (RMSE of logs, rolling origin):")
        lines += _indented(_indented(_aligned(held_out_rows(entry))))
    lines += [f"  {sentence}" for sentence in [method_sentence(entry), *sentences(entry)]]
    for title, rows in extra_tables(entry):
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


def method_sentence(entry: Result) -> str:
    """Returns how the law was fitted, as a sentence: what a reader needs to repeat it."""
    method = entry["method"]
    loss = "least squares of log residuals"
    if method["loss"] == "Huber":
        origin = "given" if method["delta_is_given"] else "1.345 robust standard deviations"
        loss = f"Huber's loss of log residuals, delta {method['huber_delta']:.3g} ({origin})"
    weights = f"weights {method['weights']}" if method["weights"] else "equal weights"
    chosen = [
        f"{name} {'fixed at' if low == high else 'from'} {low:g}"
        + ("" if low == high else f" to {high:g}")
        for name, (low, high) in method["bounds"].items()
    ]
    chosen += [
        f"{name} started from {', '.join(f'{value:g}' for value in values)}"
        for name, values in method["starts"].items()
    ]
    return f"Fitted by {loss}; {weights}; {'; '.join(chosen) or 'default bounds and starts'}."


def param_rows(entry: Result, level: float) -> list[list[str]]:
    """Returns the parameters with their intervals, as rows of a table under its heads."""
    rows = [["parameter", "estimate", f"{level * 100:.6g}% interval", "identified"]]
    for name, values in entry["params"].items():
        rows.append(
            [name, number(values["estimate"]), interval(values), values.get("identified", "")]
        )
    return rows


def diagnostic_rows(entry: Result) -> list[list[str]]:
    """Returns how well the law fits, as a row under its heads."""
    diagnostics = entry["diagnostics"]
    values = {name: diagnostics[key] for key, name in DIAGNOSTICS.items() if key in diagnostics}
    values["agreeing starts"] = f"{values['agreeing starts']:.0%}"
    return [
        [*values],
        [value if isinstance(value, str) else number(value) for value in values.values()],
    ]


def held_out_rows(entry: Result) -> list[list[str]]:
    """Returns the errors on held-out larger scales, as rows under their heads."""
    rows = [["law", "RMSE", "origins", ""]]
    for law, values in entry["held_out"].items():
        marks = ["chosen"] if law == entry["law"] else []
        marks += ["residuals are curved (lack of fit)"] if values["residuals_curved"] else []
        rows.append([law, number(values["rmse_log"]), number(values["origins"]), ", ".join(marks)])
    return rows


def extra_tables(entry: Result) -> list[tuple[str, list[list[str]]]]:
    """Returns predictions and optima, as tables by title."""
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


def crossing_sentences(result: Result) -> list[str]:
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


def grown_rows(result: Result) -> list[list[str]]:
    """Returns the shape for ten times the compute, as rows under their heads."""
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
