"""Prepares the figures for the answers to a question."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from matplotlib.figure import Figure

from vit_jax.scaling import laws, optima, plots
from vit_jax.scaling.answer import Answer, GroupData
from vit_jax.scaling.intervals import band
from vit_jax.scaling.question import ISOFLOP, Question
from vit_jax.scaling.selection import scale_of

_CURVE_POINTS = 120  # Points at which a law is drawn.
_BAND_POINTS = 25  # Points at which its interval is computed: each end takes a search.
_LONGEST = 50  # Characters of a group in a file name: fewer than 255 bytes in any script.


def draw(
    answers: Sequence[Answer], entries: Sequence[Mapping[str, Any]], question: Question
) -> dict[str, Figure]:
    """Draws the figures by name: the law, the groups' curves, contours or valleys, and residuals.

    `entries` are the report's entries of the answers. A law is drawn between the fitted rows, and
    beyond them only if its entry says that the data support the extrapolation.
    """
    fitted = [answer for answer in answers if answer.law is not None]
    if question.law == ISOFLOP:
        return {
            "isoflop" + _suffix(a, answers): _valley_figure(a, question) for a in fitted
        }  # fmt: skip
    figures = {}
    if question.roles == ("x",):
        all_curves = [_curve(*pair, question) for pair in zip(answers, entries, strict=True)]
        curves = [curve for curve in all_curves if len(curve.x)]
        labels = {"x_label": question.column("x"), "y_label": question.y}
        figures["law"] = plots.law_figure(
            curves, title=f"{question.y} over {labels['x_label']}", level=question.level, **labels
        )
        if len(curves) > 1:
            figures["curves"] = plots.data_size_figure(
                curves, title=f"{question.y} of each group", **labels
            )
    elif question.roles == ("x", "t"):
        for answer, entry in zip(answers, entries, strict=True):
            if answer.law is not None:
                figure = _shape_figure(answer, entry, question)
                figures["shape" + _suffix(answer, answers)] = figure
    else:
        for answer, entry in zip(answers, entries, strict=True):
            if answer.law is not None:
                figure = _contour_figure(answer, entry, question)
                figures["contours" + _suffix(answer, answers)] = figure
    figures["residuals"] = plots.residuals(
        np.concatenate([scale_of(answer.fitted_law.inputs) for answer in fitted]),
        np.concatenate([answer.fitted_law.log_residuals for answer in fitted]),
        [answer.name for answer in fitted for _ in range(answer.fitted_law.n)],
        x_label=question.scale,
    )
    return figures


def _suffix(answer: Answer, answers: Sequence[Answer]) -> str:
    """Returns the group's name for a file name, numbered if ambiguous; "" if there is one group."""
    if len(answers) < 2:
        return ""
    names = [re.sub(r"[^\w.=-]+", "-", other.name)[:_LONGEST] for other in answers]
    i = answers.index(answer)
    is_ambiguous = [name.lower() for name in names].count(names[i].lower()) > 1
    return f"_{names[i]}-{i + 1}" if is_ambiguous else f"_{names[i]}"


def _curve(answer: Answer, entry: Mapping[str, Any], question: Question) -> plots.Curve:
    """Returns a group's points and its law, drawn as far as the data support it."""
    data, law = answer.data, answer.law
    x = data.inputs["x"]
    role = np.where(data.held_back, "held back", "fit").astype("U10")
    if law is None:  # Some values may be impossible on log axes.
        positive = (x > 0) & (data.y > 0)
        role[~data.held_back] = "not fitted"
        return plots.Curve(answer.name, x[positive], data.y[positive], role[positive])
    role[~data.held_back & ~data.fitted] = "behind"
    predicted = [row["x"] for row in entry["tables"].get("Predictions", []) if "refused" not in row]
    drawn_x = np.append(x[_drawn_rows(data, entry)], predicted)
    grid, band_x = (
        np.geomspace(drawn_x.min(), drawn_x.max(), count) for count in (_CURVE_POINTS, _BAND_POINTS)
    )
    interval = band(law, {"x": band_x}, level=question.level, clusters=data.clusters)
    line = law.predict({"x": grid})
    return plots.Curve(answer.name, x, data.y, role, grid, line, band_x, interval)


def _drawn_rows(data: GroupData, entry: Mapping[str, Any]) -> Bool[np.ndarray, "n"]:
    """Returns the rows between which a law is drawn: fitted ones, and supported ones held back.

    Rows behind the frontier do not count: they may lie beyond its last one.
    """
    verdict = entry["extrapolation"]
    return data.fitted | (data.tested & bool(verdict and verdict["supported"]))


def _shape_figure(answer: Answer, entry: Mapping[str, Any], question: Question) -> Figure:
    """Draws the error over a shape dimension, at up to six values of compute.

    Each run is drawn with the nearest value. In a star a larger model takes more compute for the
    same number of updates, so few runs have the same compute.
    """
    data, law = answer.data, answer.fitted_law
    drawn_rows = _drawn_rows(data, entry)
    t = data.inputs["t"][drawn_rows]
    levels = np.unique(t) if len(np.unique(t)) <= 6 else np.geomspace(t.min(), t.max(), 4)
    nearest = np.abs(np.log(data.inputs["t"][:, None] / levels)).argmin(1)
    x = data.inputs["x"][drawn_rows]
    grid = np.geomspace(x.min(), x.max(), _CURVE_POINTS)
    drawn = []
    for i, level in enumerate(levels):
        near = nearest == i
        drawn.append(
            plots.Curve(
                f"{question.column('t')} near {level:.3g}",
                data.inputs["x"][near],
                data.y[near],
                np.where(data.held_back[near], "held back", "fit"),
                grid,
                law.predict({"x": grid, "t": np.full(_CURVE_POINTS, level)}),
            )
        )
    label = data.group.get("x", question.column("x"))
    return plots.law_figure(
        drawn,
        x_label=label,
        y_label=question.y,
        title=f"{question.y} over {label}",
        level=question.level,
    )


def _contour_figure(answer: Answer, entry: Mapping[str, Any], question: Question) -> Figure:
    """Draws L(N, D); with repetitions, as if each example were new.

    The optima are drawn between the same rows as the law.
    """
    data, law = answer.data, answer.fitted_law
    n, d = data.inputs["n"], data.inputs["d"]
    drawn_rows = _drawn_rows(data, entry)

    def predict(n: np.ndarray, d: np.ndarray) -> np.ndarray:
        return law.predict({"n": n, "d": d} | ({"u": d} if "u" in data.inputs else {}))

    path = None
    if law.law is laws.CHINCHILLA and not law.at_bound:
        product = (n * d)[drawn_rows]
        budgets = np.geomspace(product.min(), product.max(), _CURVE_POINTS)
        best = np.array([optima.optimal_point(law.params, c, flops_per=1.0) for c in budgets])
        rows = np.stack([n, d], 1)[drawn_rows]
        within = ((best >= rows.min(0)) & (best <= rows.max(0))).all(1)
        path = tuple(best[within].T) if within.any() else None
    return plots.contours(
        predict, n, d, data.y, held_back=data.held_back, drawn=drawn_rows, path=path,
        labels=(question.column("n"), question.column("d"), question.y),
        title=f"{question.y} over {question.column('n')} and {question.column('d')}",
    )  # fmt: skip


def _valley_figure(answer: Answer, question: Question) -> Figure:
    isoflop, drawn = answer.valleys, []
    assert isoflop is not None  # The question is about valleys.
    for valley in isoflop.valleys:
        line_x = np.geomspace(valley.x[0], valley.x[-1], _CURVE_POINTS)
        line_y = valley.lowest + valley.curvature / 2 * np.log(line_x / valley.best) ** 2
        best = valley.best if valley.interior else None
        drawn.append(plots.Valley(valley.budget, valley.x, valley.y, line_x, line_y, best))
    budgets = isoflop.optima.inputs[
        "x"
    ]  # Of the interior minima, which the power law is fitted to.
    return plots.valleys(
        drawn, (budgets, isoflop.optima.predict({"x": budgets})),
        x_label=question.column("x"), y_label=question.y, title=f"{question.y} at each budget",
    )  # fmt: skip
