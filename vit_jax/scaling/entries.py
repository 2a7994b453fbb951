"""The part of a report about one group of rows: its law, intervals, verdicts and optima."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.errors import DataError
from vit_jax.scaling import error_rates, laws, optima, selection
from vit_jax.scaling import isoflop as isoflops
from vit_jax.scaling.answer import Answer
from vit_jax.scaling.extrapolation import extrapolation
from vit_jax.scaling.fitting import Fit, fit
from vit_jax.scaling.goodness_of_fit import form_p_value
from vit_jax.scaling.intervals import Interval, identified, parameter_intervals
from vit_jax.scaling.numbers import readable
from vit_jax.scaling.question import ISOFLOP, Question

Json = dict[str, Any]


def intervals_of(answer: Answer, question: Question) -> dict[str, Interval]:
    """Returns the intervals of the parameters of a group's law; {} without a law."""
    if answer.law is None:
        return {}
    clusters = answer.data.clusters if answer.valleys is None else None
    return parameter_intervals(answer.law, level=question.level, clusters=clusters)


def entry_of(
    answer: Answer,
    question: Question,
    intervals: Mapping[str, Interval],
    *,
    significance: float,
    growth: str,
) -> Json:
    """Returns the entry of a group in `fit.json`.

    Args:
      answer: the group's rows and its law.
      question: the question.
      intervals: its `intervals_of`.
      significance: level of the lack-of-fit test.
      growth: why y is most likely an accuracy, and what to do; "" if it is not.
    """
    data, law = answer.data, answer.law
    if law is None:
        return {"group": data.group, "error": answer.error, "rows": _rows(answer, [])}
    clusters = data.clusters if answer.valleys is None else None
    grades = identified(law, intervals)
    params = {
        parameter: ends(found) | {"identified": grades[parameter]}
        for parameter, found in intervals.items()
    }
    entry = {
        "group": data.group,
        "law": ISOFLOP if answer.valleys else law.law.name,
        "formula": "best x = b t^c" if answer.valleys else law.law.formula,
        "source": law.law.source,
        "params": params,
        "method": _method(answer, question),
        "diagnostics": _diagnostics(law),
        "held_out": _held_out(answer),
        "test": None,
        "extrapolation": None,
        "growth": growth,
        "doubt": _doubt(answer, grades),
        "notes": _notes(answer),
        "tables": {},
    }
    if answer.valleys is not None:
        _add_valleys(entry, answer, question)
        return entry | {"rows": _rows(answer, [])}
    how = {"level": question.level, "clusters": clusters}
    judge = how | {"significance": significance, "doubt": doubt_beyond(entry)}
    _add_test(entry, answer, judge)
    _add_predictions(entry, answer, question, judge)
    _add_optima(entry, answer, question, how, judge)
    _add_error_notes(entry, answer, question)
    verdict = entry["extrapolation"]
    predicted = ["fitted", "held back"] if verdict and verdict["supported"] else ["fitted"]
    return entry | {"rows": _rows(answer, predicted)}


def doubt_beyond(entry: Json) -> str:
    """Returns why the law of an entry is not extrapolated at all, and what to do; "" if it is."""
    if entry["growth"] or not entry["doubt"]:
        return entry["growth"]
    return f"{entry['doubt']} Add runs of more scales, mostly smaller ones."


def _doubt(answer: Answer, grades: Mapping[str, str]) -> str:
    """Returns why the law is not to be trusted beyond the fitted runs, "" if it may be."""
    if answer.valleys is None and not answer.held_out and not answer.data.tested.any():
        return (
            f"{answer.fitted_law.law.name} could not be tested on larger scales, since too few of "
            f"the {answer.fitted_law.n} fitted runs are smaller ones."
        )
    free = [grade for grade in grades.values() if grade != "fixed"]
    if free and all(grade in ("no", "at its bound") for grade in free):
        return f"The data determine no parameter of {answer.fitted_law.law.formula}."
    if answer.fitted_law.law.name in ("power", "power_floor") and grades["c"] == "no":
        return "No dependence on the scale is visible: the data do not determine the exponent c."
    return ""


def _notes(answer: Answer) -> list[str]:
    """Returns notes on the choice of the law: which laws were not tested, and on an average."""
    by_reason: dict[str, list[str]] = {}
    for name, why in answer.skipped.items():
        by_reason.setdefault(why, []).append(name)
    notes = []
    for why, names in by_reason.items():
        sizes = [f"{name} ({len(laws.law(name).table)} parameters)" for name in names]
        *others, last = sizes
        subject = f"{', '.join(others)} and {last} were" if others else f"{last} was"
        role = "tested on held-out larger scales"
        if answer.choice is not None:
            role = "candidates" if others else "a candidate"
        notes.append(f"{subject} not {role}, since {why}.")
    if answer.choice is not None and answer.choice.best == "average":
        notes.append(
            "All laws have curved residuals, and the average of those that level off had a smaller "
            "held-out error than the best law. The average predicts the rows held back, if any; "
            f"parameters, interval and curve are those of the best law, {answer.choice.law}."
        )
    return notes


def _held_out(answer: Answer) -> Json:
    """Returns the errors of each law on held-out larger scales."""
    return {
        name: {
            "rmse_log": found.mean,
            "origins": len(found.cuts),
            "cuts": list(found.cuts),
            "rmse_log_each": list(found.errors),
            "residuals_curved": bool(answer.choice and name in answer.choice.curved),
        }
        for name, found in answer.held_out.items()
    }


def _rows(answer: Answer, predicted: Sequence[str]) -> list[Json]:
    """Returns the group's rows: inputs, y, what they were used for, and the law's prediction.

    Rows of other uses than `predicted` have none: the data may not support it.
    """
    data = answer.data
    use = np.where(data.held_back, "held back", "not fitted").astype("U21")
    if answer.law is not None:
        use[~data.held_back & ~data.fitted] = "behind the frontier"
        (fitted,) = np.nonzero(data.fitted)
        use[fitted] = "weight 0"
        use[fitted[answer.law.rows] if answer.valleys is None else fitted] = "fitted"
    columns: dict[str, Any] = {role: x.tolist() for role, x in data.inputs.items()}
    prediction = np.full(len(use), None)
    if predicted and answer.law is not None:
        of = np.isin(use, predicted)
        prediction[of] = answer.law.predict({role: x[of] for role, x in data.inputs.items()})
    columns |= {"y": data.y.tolist(), "use": use.tolist(), "prediction": prediction.tolist()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _method(answer: Answer, question: Question) -> Json:
    """Returns how the law was fitted: what a reader needs to repeat it."""
    law, method = answer.fitted_law, question.method
    is_huber = math.isfinite(law.delta)
    return {
        "loss": "Huber" if is_huber else "least squares",
        "huber_delta": law.delta if is_huber else None,
        "delta_is_given": method.delta is not None,
        "weights": question.weights or None,
        "bounds": {name: list(pair) for name, pair in method.bounds.items()},
        "starts": {name: list(values) for name, values in method.starts.items()},
    }


def ends(found: Interval) -> Json:
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
        "p_lack_of_fit": form_p_value(law),
        "residuals": {
            **{role: values.tolist() for role, values in law.inputs.items()},
            "log_residual": law.log_residuals.tolist(),
        },
    }


def _add_test(entry: Json, answer: Answer, how: Mapping[str, Any]) -> None:
    """Adds the error on the rows held back, and whether the data support predicting them."""
    data = answer.data
    if not data.held_back.any():
        return
    if not data.tested.any():
        entry["notes"].append("None of the rows held back is on the Pareto frontier of all rows.")
        return
    inputs, y = data.select(data.tested)
    predicted = answer.predict(inputs)
    entry["test"] = {
        "rows": len(y),
        "rmse_log": selection.log_error(predicted, y),
        "mean_log_error": float(np.mean(np.log(predicted) - np.log(y))),
    }
    verdict = extrapolation(answer.fitted_law, inputs, **how)
    entry["extrapolation"] = {
        "to": "the rows held back",
        "supported": verdict.supported,
        "reason": verdict.reason,
    }


def _add_predictions(
    entry: Json, answer: Answer, question: Question, how: Mapping[str, Any]
) -> None:
    records = []
    for x in question.predict:
        inputs = {"x": np.array([x])}
        verdict = extrapolation(answer.fitted_law, inputs, **how)
        record: Json = {"x": x, "refused": verdict.reason}
        if verdict.supported:
            band = [float(values[0]) for values in (verdict.band.low, verdict.band.high)]
            estimate = float(answer.predict(inputs)[0])
            record = {"x": x, question.y: ends(Interval(estimate, *band))}
        records.append(record)
    if records:
        entry["tables"]["Predictions"] = records


def _add_error_notes(entry: Json, answer: Answer, question: Question) -> None:
    """Adds notes on error rates at chance level and on intervals above the largest error."""
    law = answer.fitted_law
    predicted = {
        f"the prediction at {readable(row['x'])}": row[question.y]
        for row in entry["tables"].get("Predictions", [])
        if question.y in row
    }
    notes = (
        error_rates.chance_note(question.y, selection.scale_of(law.inputs), law.y),
        error_rates.beyond_note(question.y, law.y, predicted),
    )
    entry["notes"] += [note for note in notes if note]


def _add_optima(
    entry: Json,
    answer: Answer,
    question: Question,
    how: Mapping[str, Any],
    judge: Mapping[str, Any],
) -> None:
    """Adds compute-optimal sizes for chinchilla's law, or optimal shapes for SoViT's.

    Beyond the fitted compute an optimum is an extrapolation: it is refused like a prediction.
    """
    law, data, records = answer.fitted_law, answer.data, []
    best_of = {laws.CHINCHILLA: _best_sizes, laws.SHAPE: _best_shape}.get(law.law)
    if best_of is None:
        return
    if law.law is laws.CHINCHILLA:
        entry["diagnostics"]["flops_per_param_and_example"] = data.flops_per
        largest = data.flops_per * float(selection.scale_of(law.inputs).max())
        key, budgets = "budget", question.budgets or (largest, 10 * largest)
    else:
        largest = float(law.inputs["t"].max())
        key, budgets = "t", (largest, 10 * largest)
    try:
        for budget in budgets:
            inputs, values = best_of(law, float(budget), data.flops_per, how)
            refused = ""
            if budget > largest * (1 + 1e-9):
                verdict = extrapolation(law, inputs, **judge)
                refused = "" if verdict.supported else verdict.reason
            found: Json = (
                {"refused": refused} if refused else {k: ends(v) for k, v in values.items()}
            )
            if "y" in found:
                found[question.y] = found.pop("y")
            records.append({key: float(budget), **found})
    except DataError as error:
        entry["notes"].append(str(error))
    if records:
        entry["tables"]["Best for a budget"] = records


def _best_sizes(
    law: Fit, budget: float, flops_per: float, how: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Interval]]:
    """Returns the point of the optimum, and what is reported of it."""
    best = optima.compute_optimal(law, budget, flops_per=flops_per, **how)
    inputs = {"n": np.array([best.n.estimate]), "d": np.array([best.d.estimate])}
    return inputs, {"n": best.n, "d": best.d, "y": best.y}


def _best_shape(
    law: Fit, t: float, flops_per: float, how: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Interval]]:
    """Returns the point of the optimum, and what is reported of it."""
    best = optima.shape_optimal(law, t, **how)
    inputs = {"x": np.array([best.x.estimate]), "t": np.array([t])}
    return inputs, {"x": best.x, "exponent": best.exponent}


def _add_valleys(entry: Json, answer: Answer, question: Question) -> None:
    """Adds the minima of the valleys, the direct fit of both inputs, and the parabola's bias."""
    isoflop, data = answer.valleys, answer.data
    assert isoflop is not None
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
        both = {"n": inputs["x"], "d": inputs["t"] / inputs["x"]}
        direct = fit(laws.CHINCHILLA, both, y, method=question.method)
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
