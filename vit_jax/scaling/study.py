"""Computes the result of `vit-jax fit`: from a table of runs to fitted laws and figures.

table -> rows (query) -> groups -> a law for each (answer: selection for "auto", else fitting)
      -> intervals, held-out error, verdict on extrapolation -> optima, crossings -> drawing
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

import vit_jax
from vit_jax.errors import DataError
from vit_jax.scaling import curves, laws, optima, selection
from vit_jax.scaling import isoflop as isoflops
from vit_jax.scaling.answer import Answer, answer, group_data
from vit_jax.scaling.drawing import draw
from vit_jax.scaling.expressions import with_computed
from vit_jax.scaling.fitting import Fit, fit
from vit_jax.scaling.intervals import Interval, band, parameter_intervals
from vit_jax.scaling.query import Table, groups, matches, select
from vit_jax.scaling.question import ISOFLOP, Question

_GRID = 120  # Number of points at which two laws are compared.
Json = dict[str, Any]


def study(table: Table, question: Question, *, runs: str) -> tuple[Json, dict[str, Figure]]:
    """Answers a question about a table.

    Args:
      table: the result of `vit_jax.scaling.table.read_runs`.
      question: the question.
      runs: name of the table, for the report.

    Returns:
      The content of fit.json, and figures by name.

    Raises:
      ConfigError: the question does not match the table.
      DataError: no row is left, or no group can be fitted.
    """
    needed = [name for role in question.roles for name in question.columns_of(role)]
    original_columns = table.keys()
    table = with_computed(table, [question.y, *needed])
    rows, notes = select(
        table,
        needed=[*needed, question.y],
        where=question.where,
        chosen_by=question.chosen_by,
        y=question.y,
        alike=[*question.group, *needed, *(["seed"] if "seed" in table else [])],
    )
    held_back = np.full(len(table[question.y]), bool(question.hold_back))
    for condition in question.hold_back:
        held_back &= matches(table, condition)
    if question.hold_back:
        test_y = table[question.y][rows[held_back[rows]]]
        if (bad := test_y[test_y <= 0]).size:
            raise DataError(
                f"{question.y} must be positive, since its logs are compared, but {bad.size} of "
                f"the rows held back are not, such as {bad[0]}: add --where='{question.y}>0'."
            )
        conditions = " and ".join(question.hold_back)
        notes.append(f"{held_back[rows].sum():,} of them held back: {conditions}")
    answers = [
        answer(data, question)
        for group in groups(table, rows, question.group)
        for data in group_data(table, group, held_back, question)
    ]
    warning = _growth_warning(answers, question, is_computed=question.y not in original_columns)
    if all(answer.law is None for answer in answers):
        errors = [f"{answer.name or 'All rows'}: {answer.error}" for answer in answers]
        raise DataError("\n".join(["No law could be fitted.", *errors, *warning]))
    entries = [_entry(answer, question) for answer in answers]
    result = {
        "vit_jax": vit_jax.__version__,
        "title": f"{question.y} over {', '.join(needed)}",
        "runs": runs,
        "rows": [*notes, *warning],
        "columns": {role: question.column(role) for role in question.roles} | {"y": question.y},
        "level": question.level,
        "groups": entries,
        "crossings": _crossings(answers, question),
        "grown": _grown(entries, answers),
    }
    if len(answers) == 1:  # The law and its parameters also come first, at the top level.
        (entry,) = entries
        result = {"law": entry["law"], "params": entry["params"], **result}
    return result, draw(answers, entries, question)


def _growth_warning(
    answers: Sequence[Answer], question: Question, *, is_computed: bool
) -> list[str]:
    """Returns a warning if y grows with scale, else an empty list.

    It proposes an expression for the error, unless y is computed already.
    """
    growing = 0
    for each in answers:
        inputs, y = each.data.select(~each.data.held_back)
        growing += selection.grows(selection.scale_of(inputs), y)
    if not growing:
        return []
    highest = max(float(answer.data.y.max()) for answer in answers)
    maximum = 1 if highest <= 1 else 100
    if is_computed or highest > 100:
        advice = "Choose a column of errors or losses."
    else:
        advice = f"For the error, use {shlex.quote(f'--y={maximum}-{question.y}')}."
    where = f" in {growing} of {len(answers)} groups" if len(answers) > 1 else ""
    return [
        f"Warning: {question.y} grows with {question.scale}{where}: it is most likely an accuracy, "
        f"and a law of errors says nothing about it. {advice}"
    ]


# -------------------------------------------------------------------------------------- entries


def _entry(answer: Answer, question: Question) -> Json:
    data, law = answer.data, answer.law
    if law is None:
        return {"group": data.group, "error": answer.error}
    clusters = data.clusters if answer.valleys is None else None
    intervals = parameter_intervals(law, level=question.level, clusters=clusters)
    params = {
        parameter: _ends(found) | {"identified": law.identified[parameter]}
        for parameter, found in intervals.items()
    }
    entry = {
        "group": data.group,
        "law": ISOFLOP if answer.valleys else law.law.name,
        "formula": "best x = b t^c" if answer.valleys else law.law.formula,
        "source": law.law.source,
        "params": params,
        "diagnostics": _diagnostics(law),
        "held_out": {
            name: {
                "rmse_log": found.mean,
                "origins": len(found.cuts),
                "cuts": list(found.cuts),
                "rmse_log_each": list(found.errors),
                "residuals_curved": bool(answer.choice and name in answer.choice.curved),
            }
            for name, found in answer.held_out.items()
        },
        "test": None,
        "extrapolation": None,
        "notes": [f"{name} was not fitted: {why}" for name, why in answer.skipped.items()],
        "tables": {},
    }
    if answer.valleys is not None:
        _add_valleys(entry, answer)
        return entry
    if answer.choice is not None and answer.choice.best == "average":
        entry["notes"].append(
            "All laws have curved residuals, and the average of those that level off had a smaller "
            "held-out error than the best law. The average predicts the rows held back, if any; "
            f"parameters, interval and curve are those of the best law, {law.law.name}."
        )
    _add_test(entry, answer, question, clusters)
    _add_predictions(entry, answer, question, clusters)
    _add_optima(entry, answer, question, clusters)
    return entry


def _ends(found: Interval) -> Json:
    """Converts an interval to JSON values; an infinite end is null."""
    low, high = (end if math.isfinite(end) else None for end in (found.low, found.high))
    return {"estimate": found.estimate, "low": low, "high": high}


def _diagnostics(law: Fit) -> Json:
    return {
        "rows": law.n,
        "rmse_log": law.rmse_log,
        "condition": law.condition if math.isfinite(law.condition) else None,
        "converged": law.converged,
        "starts_agreeing": law.agreeing,
        "residuals": {
            **{role: values.tolist() for role, values in law.inputs.items()},
            "log_residual": law.log_residuals.tolist(),
        },
    }


def _add_test(entry: Json, answer: Answer, question: Question, clusters: Any) -> None:
    """Adds the error on the rows held back, and whether the data support predicting them."""
    data = answer.data
    if not data.held_back.any():
        return
    if not data.tested.any():
        entry["notes"].append("None of the rows held back is on the Pareto frontier of all rows.")
        return
    inputs, y = data.select(data.tested)
    predicted = _predict(answer, inputs)
    entry["test"] = {
        "rows": len(y),
        "rmse_log": selection.log_error(predicted, y),
        "mean_log_error": float(np.mean(np.log(predicted) - np.log(y))),
    }
    verdict = selection.extrapolation(answer.law, inputs, level=question.level, clusters=clusters)
    entry["extrapolation"] = {
        "to": "the rows held back",
        "supported": verdict.supported,
        "reason": verdict.reason,
    }


def _predict(answer: Answer, inputs: Mapping[str, np.ndarray]) -> Float[np.ndarray, "m"]:
    return (answer.choice or answer.law).predict(inputs)


def _add_predictions(entry: Json, answer: Answer, question: Question, clusters: Any) -> None:
    records = []
    for x in question.predict:
        inputs = {"x": np.array([x])}
        verdict = selection.extrapolation(
            answer.law, inputs, level=question.level, clusters=clusters
        )
        record = {"x": x, "refused": verdict.reason}
        if verdict.supported:
            ends = [float(values[0]) for values in (verdict.band.low, verdict.band.high)]
            record = {
                "x": x,
                question.y: _ends(Interval(float(_predict(answer, inputs)[0]), *ends)),
            }
        records.append(record)
    if records:
        entry["tables"]["Predictions"] = records


def _add_optima(entry: Json, answer: Answer, question: Question, clusters: Any) -> None:
    """Adds compute-optimal sizes for chinchilla's law, or optimal shapes for SoViT's."""
    law, data, records = answer.law, answer.data, []
    try:
        if law.law is laws.CHINCHILLA:
            entry["diagnostics"]["flops_per_param_and_example"] = data.flops_per
            largest = data.flops_per * float(np.max(data.inputs["n"] * data.inputs["d"]))
            for budget in question.budgets or (largest, 10 * largest):
                best = optima.compute_optimal(
                    law, budget, flops_per=data.flops_per, level=question.level, clusters=clusters
                )
                values = {"n": best.n, "d": best.d, question.y: best.y}
                records.append(
                    {"budget": budget} | {key: _ends(found) for key, found in values.items()}
                )
        elif law.law is laws.SHAPE:
            for t in np.unique(data.inputs["t"])[-1] * np.array([1.0, 10.0]):
                best = optima.shape_optimal(law, float(t), level=question.level, clusters=clusters)
                values = {"x": best.x, "exponent": best.exponent}
                records.append({"t": best.t} | {key: _ends(v) for key, v in values.items()})
    except DataError as error:
        entry["notes"].append(str(error))
    if records:
        entry["tables"]["Best for a budget"] = records


def _add_valleys(entry: Json, answer: Answer) -> None:
    """Adds the minima of the valleys, the direct fit of both inputs, and the parabola's bias."""
    isoflop, data = answer.valleys, answer.data
    entry["tables"]["Valleys"] = [
        {
            "budget": valley.budget,
            "sizes": len(valley.x),
            "best x": valley.best,
            "least y": valley.lowest,
            "within the sizes": valley.interior,
        }
        for valley in isoflop.valleys
    ]
    inputs, y = data.select(data.fitted)
    try:
        # d is proportional to the examples; the exponents do not depend on its unit.
        direct = fit(laws.CHINCHILLA, {"n": inputs["x"], "d": inputs["t"] / inputs["x"]}, y)
    except DataError as error:
        entry["notes"].append(f"The direct fit of both inputs is not possible: {error}")
        return
    alpha, beta = direct.params["alpha"], direct.params["beta"]
    points = max(len(valley.x) for valley in isoflop.valleys)
    bias = isoflops.bias(isoflop.spread, alpha=beta, beta=alpha, points=points)
    entry["notes"].append(
        f"The direct fit of both inputs (chinchilla) gives best x ~ t^{beta / (alpha + beta):.3f}, "
        f"the valleys t^{isoflop.exponent:.3f}. With its exponents, alpha {alpha:.3f} and beta "
        f"{beta:.3f}, a parabola through sizes up to {isoflop.spread:.3g} times off the best "
        f"misplaces the best by {bias:+.2%} even without noise."
    )


# ---------------------------------------------------------------------------------- comparisons


def _crossings(answers: Sequence[Answer], question: Question) -> list[Json]:
    """Finds where the laws of two groups cross, within the range that both were fitted to."""
    fitted = [a for a in answers if a.law is not None and a.law.law.inputs == ("x",)]
    fitted = [a for a in fitted if a.valleys is None]
    crossings = []
    for i, first in enumerate(fitted):
        for second in fitted[i + 1 :]:
            low = max(a.law.inputs["x"].min() for a in (first, second))
            high = min(a.law.inputs["x"].max() for a in (first, second))
            if not low < high:
                continue
            grid = np.geomspace(low, high, _GRID)
            bands = [
                band(a.law, {"x": grid}, level=question.level, clusters=a.data.clusters)
                for a in (first, second)
            ]
            leader, other = first, second
            if bands[1].estimate[-1] < bands[0].estimate[-1]:
                leader, other, bands = second, first, bands[::-1]
            crossing = curves.crossover(grid, *bands, names=(leader.name, other.name))
            ends = {} if crossing.x is None else _ends(crossing.x)
            at = float(np.sqrt(low * high))
            ratio = curves.more_images(grid, *bands, at=at)
            crossings.append(
                {"group": leader.name, "over": other.name, **ends, "reason": crossing.reason}
                | {"at": at, "times_x": None if ratio is None else _ends(ratio)}
            )
    return crossings


def _grown(entries: Sequence[Json], answers: Sequence[Answer]) -> list[Json]:
    """Applies SoViT's joint update (ten times the compute) to the centre of a three-arm star."""
    best = {
        answer.data.arm: entry.get("tables", {}).get("Best for a budget")
        for entry, answer in zip(entries, answers, strict=True)
    }
    if len(answers) != 3 or len(best) != 3 or not all(best) or not all(best.values()):
        return []
    exponents = {arm: records[0]["exponent"]["estimate"] for arm, records in best.items()}
    centre = {answer.data.arm: answer.data.centre for answer in answers}
    grown = optima.joint_update(centre, exponents, tau=10.0)
    return [
        {"dimension": arm, "exponent": exponents[arm], "centre": centre[arm], "grown": grown[arm]}
        for arm in centre
    ]
