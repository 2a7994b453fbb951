"""From a table of runs to fitted laws: all that `python -m vit_jax.fit` says.

table -> rows (query) -> groups -> a law for each (answer: selection for "auto", else fitting)
      -> intervals, held-out error, may it be extrapolated? -> optima, crossings -> drawing
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
from vit_jax.scaling.answer import Answer, answer, parts
from vit_jax.scaling.drawing import draw
from vit_jax.scaling.expressions import with_computed
from vit_jax.scaling.fitting import Fit, fit
from vit_jax.scaling.intervals import Interval, band, parameter_intervals
from vit_jax.scaling.query import Table, groups, matches, select
from vit_jax.scaling.question import ISOFLOP, Question

_GRID = 120  # Places at which two laws are compared.
Json = dict[str, Any]


def study(table: Table, question: Question, *, runs: str) -> tuple[Json, dict[str, Figure]]:
    """Answers a question.

    Args:
      table: of `vit_jax.scaling.table.read_runs`.
      question: what is asked.
      runs: the table's name, for the report.

    Returns:
      What fit.json holds, and figures by name.

    Raises:
      ConfigError: the question does not fit the table.
      DataError: no row is left, or no group can be fitted.
    """
    needed = [name for role in question.roles for name in question.columns_of(role)]
    given, table = table, with_computed(table, [question.y, *needed])
    rows, said = select(
        table,
        needed=[*needed, question.y],
        where=question.where,
        chosen_by=question.chosen_by,
        y=question.y,
        alike=[*question.group, *needed, *(["seed"] if "seed" in table else [])],
    )
    held = np.full(len(table[question.y]), bool(question.hold_back))
    for condition in question.hold_back:
        held &= matches(table, condition)
    if question.hold_back:
        back = table[question.y][rows[held[rows]]]
        if (bad := back[back <= 0]).size:
            raise DataError(
                f"{question.y} must be positive, since its logs are compared, but {bad.size} of "
                f"the rows held back are not, such as {bad[0]}: add --where='{question.y}>0'."
            )
        said.append(f"{held[rows].sum():,} of them held back: {' and '.join(question.hold_back)}")
    answers = [
        answer(part, question)
        for group in groups(table, rows, question.group)
        for part in parts(table, group, held, question)
    ]
    warning = _growth_warning(answers, question, is_computed=question.y not in given)
    if all(answer.law is None for answer in answers):
        told = [f"{answer.name or 'All rows'}: {answer.error}" for answer in answers]
        raise DataError("\n".join(["No law could be fitted.", *told, *warning]))
    entries = [_entry(answer, question) for answer in answers]
    result = {
        "vit_jax": vit_jax.__version__,
        "title": f"{question.y} over {', '.join(needed)}",
        "runs": runs,
        "rows": [*said, *warning],
        "columns": {role: question.column(role) for role in question.roles} | {"y": question.y},
        "level": question.level,
        "groups": entries,
        "crossings": _crossings(answers, question),
        "grown": _grown(entries, answers),
    }
    if len(answers) == 1:  # What is asked for most is where it is looked for.
        (entry,) = entries
        result = {"law": entry["law"], "params": entry["params"], **result}
    return result, draw(answers, entries, question)


def _growth_warning(
    answers: Sequence[Answer], question: Question, *, is_computed: bool
) -> list[str]:
    """A line of warning where y grows with scale; none where it does not.

    Args:
      answers: a group each.
      question: what was asked.
      is_computed: whether its y is an expression, so that no simple one is to be proposed.
    """
    growing = 0
    for each in answers:
        inputs, y = each.part.of(~each.part.held)
        growing += selection.grows(selection.scale_of(inputs), y)
    if not growing:
        return []
    highest = max(float(each.part.y.max()) for each in answers)
    whole = 1 if highest <= 1 else 100
    if is_computed or highest > 100:
        advice = "Choose a column of errors or losses."
    else:
        advice = f"For its error ask for {shlex.quote(f'--y={whole}-{question.y}')}."
    where = f" in {growing} of {len(answers)} groups" if len(answers) > 1 else ""
    return [
        f"Warning: {question.y} grows with {question.scale}{where}: it is most likely an accuracy, "
        f"and a law of errors says nothing about it. {advice}"
    ]


# --------------------------------------------------------------------------------- what is said


def _entry(answer: Answer, question: Question) -> Json:
    part, law = answer.part, answer.law
    if law is None:
        return {"group": part.group, "error": answer.error}
    clusters = part.clusters if answer.valleys is None else None
    intervals = parameter_intervals(law, level=question.level, clusters=clusters)
    params = {
        parameter: _ends(found) | {"identified": law.identified[parameter]}
        for parameter, found in intervals.items()
    }
    entry = {
        "group": part.group,
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
                "residuals_bend": bool(answer.choice and name in answer.choice.bent),
            }
            for name, found in answer.held_out.items()
        },
        "test": None,
        "extrapolation": None,
        "notes": [f"{name} could not take part: {why}" for name, why in answer.skipped.items()],
        "tables": {},
    }
    if answer.valleys is not None:
        _add_valleys(entry, answer)
        return entry
    if answer.choice is not None and answer.choice.best == "average":
        entry["notes"].append(
            "No law has the form of these rows, and on held-out scales the average of those that "
            "level off was better than any one of them: it predicted the rows held back, if "
            f"any. Parameters, interval and curve are of the best law, {law.law.name}."
        )
    _add_test(entry, answer, question, clusters)
    _add_predictions(entry, answer, question, clusters)
    _add_optima(entry, answer, question, clusters)
    return entry


def _ends(found: Interval) -> Json:
    """An interval as JSON has it: an end that the data leave open is null."""
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
    """How well the rows that were held back are predicted, and whether that was to be expected."""
    part = answer.part
    if not part.held.any():
        return
    if not part.judged.any():
        entry["notes"].append("None of the rows held back is on the Pareto frontier of all rows.")
        return
    ahead, y = part.of(part.judged)
    predicted = _predict(answer, ahead)
    entry["test"] = {
        "rows": len(y),
        "rmse_log": selection.log_error(predicted, y),
        "mean_log_error": float(np.mean(np.log(predicted) - np.log(y))),
    }
    verdict = selection.extrapolation(answer.law, ahead, level=question.level, clusters=clusters)
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
        place = {"x": np.array([x])}
        verdict = selection.extrapolation(
            answer.law, place, level=question.level, clusters=clusters
        )
        record = {"x": x, "refused": verdict.reason}
        if verdict.supported:
            ends = [float(values[0]) for values in (verdict.band.low, verdict.band.high)]
            record = {"x": x, question.y: _ends(Interval(float(_predict(answer, place)[0]), *ends))}
        records.append(record)
    if records:
        entry["tables"]["Predictions"] = records


def _add_optima(entry: Json, answer: Answer, question: Question, clusters: Any) -> None:
    """Compute-optimal sizes of chinchilla's law; optimal shapes of SoViT's."""
    law, part, records = answer.law, answer.part, []
    try:
        if law.law is laws.CHINCHILLA:
            entry["diagnostics"]["flops_per_param_and_example"] = part.flops_per
            largest = part.flops_per * float(np.max(part.inputs["n"] * part.inputs["d"]))
            for budget in question.budgets or (largest, 10 * largest):
                best = optima.compute_optimal(
                    law, budget, flops_per=part.flops_per, level=question.level, clusters=clusters
                )
                values = {"n": best.n, "d": best.d, question.y: best.y}
                records.append(
                    {"budget": budget} | {key: _ends(found) for key, found in values.items()}
                )
        elif law.law is laws.SHAPE:
            for t in np.unique(part.inputs["t"])[-1] * np.array([1.0, 10.0]):
                best = optima.shape_optimal(law, float(t), level=question.level, clusters=clusters)
                values = {"x": best.x, "exponent": best.exponent}
                records.append({"t": best.t} | {key: _ends(v) for key, v in values.items()})
    except DataError as error:
        entry["notes"].append(str(error))
    if records:
        entry["tables"]["Best for a budget"] = records


def _add_valleys(entry: Json, answer: Answer) -> None:
    """The bottoms, the direct fit of both inputs beside them, and the parabola's bias."""
    found, part = answer.valleys, answer.part
    entry["tables"]["Valleys"] = [
        {
            "budget": valley.budget,
            "sizes": len(valley.x),
            "best x": valley.best,
            "least y": valley.lowest,
            "within the sizes": valley.interior,
        }
        for valley in found.valleys
    ]
    inputs, y = part.of(part.fitted)
    try:
        # Examples, up to the unit that the exponents do not see.
        direct = fit(laws.CHINCHILLA, {"n": inputs["x"], "d": inputs["t"] / inputs["x"]}, y)
    except DataError as error:
        entry["notes"].append(f"The direct fit beside it is not possible: {error}")
        return
    alpha, beta = direct.params["alpha"], direct.params["beta"]
    points = max(len(valley.x) for valley in found.valleys)
    wrong = isoflops.bias(found.spread, alpha=beta, beta=alpha, points=points)
    entry["notes"].append(
        f"The direct fit of both inputs (chinchilla) says best x ~ t^{beta / (alpha + beta):.3f}, "
        f"the valleys t^{found.exponent:.3f}. With its exponents, alpha {alpha:.3f} and beta "
        f"{beta:.3f}, a parabola through sizes up to {found.spread:.3g} times off the best "
        f"misplaces the best by {wrong:+.2%} even without noise."
    )


# ---------------------------------------------------------------------------------- comparisons


def _crossings(answers: Sequence[Answer], question: Question) -> list[Json]:
    """Where the law of one group falls below that of another, within what both were fitted to."""
    fitted = [a for a in answers if a.law is not None and a.law.law.inputs == ("x",)]
    fitted = [a for a in fitted if a.valleys is None]
    found = []
    for i, first in enumerate(fitted):
        for second in fitted[i + 1 :]:
            low = max(a.law.inputs["x"].min() for a in (first, second))
            high = min(a.law.inputs["x"].max() for a in (first, second))
            if not low < high:
                continue
            grid = np.geomspace(low, high, _GRID)
            bands = [
                band(a.law, {"x": grid}, level=question.level, clusters=a.part.clusters)
                for a in (first, second)
            ]
            leads, trails = first, second
            if bands[1].estimate[-1] < bands[0].estimate[-1]:
                leads, trails, bands = second, first, bands[::-1]
            crossing = curves.crossover(grid, *bands, names=(leads.name, trails.name))
            ends = {} if crossing.x is None else _ends(crossing.x)
            at = float(np.sqrt(low * high))
            more = curves.more_images(grid, *bands, at=at)
            found.append(
                {"group": leads.name, "over": trails.name, **ends, "reason": crossing.reason}
                | {"at": at, "times_x": None if more is None else _ends(more)}
            )
    return found


def _grown(entries: Sequence[Json], answers: Sequence[Answer]) -> list[Json]:
    """SoViT's joint update: the centre of a star of three arms for ten times the compute."""
    best = {
        answer.part.arm: entry.get("tables", {}).get("Best for a budget")
        for entry, answer in zip(entries, answers, strict=True)
    }
    if len(answers) != 3 or len(best) != 3 or not all(best) or not all(best.values()):
        return []
    exponents = {arm: records[0]["exponent"]["estimate"] for arm, records in best.items()}
    centre = {answer.part.arm: answer.part.centre for answer in answers}
    grown = optima.joint_update(centre, exponents, tau=10.0)
    return [
        {"dimension": arm, "exponent": exponents[arm], "centre": centre[arm], "grown": grown[arm]}
        for arm in centre
    ]
