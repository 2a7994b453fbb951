"""The answer of a study in one sentence, and whether to trust it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.scaling.numbers import readable, significant_digits

Json = Mapping[str, Any]
_CLOSE = 0.1  # A law whose typical log error is below this describes runs, whatever their form.


def summary(result: Json) -> dict[str, Any]:
    """Returns the answer of a result, as text for the top of the report.

    Returns:
      answer: what the laws say, a sentence.
      trust: "yes", "partly" or "no".
      why: a sentence that says what the answer may be used for.
      groups: of several groups, the name, trust and why of each; else empty.
    """
    fitted = [entry for entry in result["groups"] if "error" not in entry]
    if len(result["groups"]) == 1:
        (entry,) = fitted
        trust, why = _trust(entry, result["significance"])
        return {
            "answer": _no_trend(entry, result["columns"]) + _law_sentence(entry, result["columns"]),
            "trust": trust,
            "why": why,
            "groups": [],
        }
    grades = [_trust(entry, result["significance"]) for entry in fitted]
    worst = min(grades, key=lambda grade: ("no", "partly", "yes").index(grade[0]))
    count = sum(grade == "yes" for grade, _ in grades)
    why = f"{count} of {len(result['groups'])} laws can be used without reservation."
    if count == len(result["groups"]):
        why = "All laws can be used within their runs and where a prediction is given."
    trust = "partly" if worst[0] == "no" and count else worst[0]
    groups = [_group_summary(entry, result["significance"]) for entry in result["groups"]]
    answer = _groups_sentence(result, fitted)
    return {"answer": answer, "trust": trust, "why": why, "groups": groups}


def _group_summary(entry: Json, significance: float) -> dict[str, str]:
    name = ", ".join(f"{key}={value}" for key, value in entry["group"].items())
    if "error" in entry:
        return {"name": name, "trust": "no", "why": f"No law could be fitted: {entry['error']}"}
    trust, why = _trust(entry, significance)
    return {"name": name, "trust": trust, "why": why}


def filled_formula(entry: Json) -> str:
    """Returns the law's formula with the fitted numbers in place of the parameters.

    A number has the digits that its interval supports (`numbers.significant_digits`).
    """
    values = {
        name: readable(ends["estimate"], significant_digits(ends))
        for name, ends in entry["params"].items()
    }
    names = "|".join(sorted(map(re.escape, values), key=len, reverse=True))
    text = re.sub(rf"\b({names})\b", lambda match: values[match[0]], entry["formula"])
    return re.sub(r"(\d) (?=\d)", r"\1 · ", text.replace("--", ""))


def _no_trend(entry: Json, columns: Mapping[str, str]) -> str:
    """Returns a sentence, to begin with, if a power law's exponent is not determined; else ""."""
    is_open = entry["params"].get("c", {}).get("identified") in ("no", "at its bound")
    if entry["law"] not in ("power", "power_floor") or not is_open or not entry["doubt"]:
        return ""
    return f"The runs do not show that {columns['y']} falls with {columns['x']}. The best fit: "


def _law_sentence(entry: Json, columns: Mapping[str, str]) -> str:
    inputs = ", ".join(f"{role} = {name}" for role, name in columns.items() if role != "y")
    if entry["law"] == "isoflop":
        c = entry["params"]["c"]["estimate"]
        return (
            f"The best {columns['x']} grows as {columns['t']} to the power {c:.3g}, by the minima "
            "of the budgets."
        )
    rmse = entry["diagnostics"]["rmse_log"]
    return (
        f"{filled_formula(entry)} (y = {columns['y']}, {inputs}) describes "
        f"{entry['diagnostics']['rows']} runs with a typical error of {rmse:.2g} in log y"
        f"{f', about {100 * rmse:.2g}%' if rmse < 0.2 else ''}."
    )


def _groups_sentence(result: Json, fitted: Sequence[Json]) -> str:
    if crossings := result["crossings"]:
        first = crossings[0]
        more = f" {len(crossings) - 1} more comparisons are below." if crossings[1:] else ""
        return f"{first['group']} and {first['over']}: {first['reason']}{more}"
    laws = sorted({entry["law"] for entry in fitted})
    return (
        f"{len(fitted)} of {len(result['groups'])} groups have a law ({', '.join(laws)}); their "
        "parameters are below."
    )


def _trust(entry: Json, significance: float) -> tuple[str, str]:
    diagnostics, verdict = entry["diagnostics"], entry["extrapolation"]
    records = [row for rows in entry["tables"].values() for row in rows]
    is_refused = any("refused" in row for row in records) or bool(
        verdict and not verdict["supported"]
    )
    loose = [
        name
        for name, values in entry["params"].items()
        if values["identified"] in ("no", "at its bound")
    ]
    if entry["growth"]:
        return "no", f"Do not use this law, since {entry['growth']}"
    if not diagnostics["converged"]:
        return "no", "The fit did not converge: use none of these numbers."
    if diagnostics["p_lack_of_fit"] < significance:
        is_close = diagnostics["rmse_log"] < _CLOSE
        return "partly" if is_close else "no", (
            "The runs do not quite have the form of this law (lack of fit, p = "
            f"{diagnostics['p_lack_of_fit']:.2g}): "
            + ("use it between the fitted runs only" if is_close else "use another law")
            + ", since its intervals are too narrow and nothing can be extrapolated."
        )
    if entry["doubt"]:
        return "no", (
            "Do not trust it beyond the fitted runs: "
            f"{entry['doubt']}" + (f" Do not use the value of {', '.join(loose)}." if loose else "")
        )
    if is_refused:
        return "partly", (
            "Use it between the fitted runs: a prediction beyond them was asked for and refused; "
            "the reason stands in its place."
        )
    if loose:
        return "partly", (
            f"Use its predictions with their intervals, but not the value of {', '.join(loose)}: "
            "the data leave that open."
        )
    return "yes", (
        "The residuals show no lack of fit and the data determine the parameters: use it between "
        "the fitted runs, and with its intervals beyond them by at most the factor that they span."
    )
