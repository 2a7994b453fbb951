"""The figures that the answers to a question call for."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vit_jax.scaling import laws, optima, plots
from vit_jax.scaling.answer import Answer
from vit_jax.scaling.intervals import band
from vit_jax.scaling.question import ISOFLOP, Question
from vit_jax.scaling.selection import scale_of

_GRID = 120  # Places at which a law is drawn.
_BAND = 40  # Places at which its interval is, each end of which is a search.
_LONGEST = 50  # Characters of a group in a file's name: in any alphabet fewer than 255 bytes.


def draw(
    answers: Sequence[Answer], entries: Sequence[Mapping[str, Any]], question: Question
) -> dict[str, Figure]:
    """The figures by name: the law, the groups' curves, contours or valleys, and residuals.

    Args:
      answers: a group each.
      entries: what the report says of each: a law is drawn beyond the fitted rows only where it
        says that the data support that.
      question: what was asked.
    """
    fitted = [answer for answer in answers if answer.law is not None]
    if question.law == ISOFLOP:
        return {
            "isoflop" + _suffix(a, answers): _valley_figure(a, question) for a in fitted
        }  # fmt: skip
    figures = {}
    if question.roles == ("x",):
        every = [_curve(*pair, question) for pair in zip(answers, entries, strict=True)]
        drawn = [curve for curve in every if len(curve.x)]
        labels = {"x_label": question.column("x"), "y_label": question.y}
        figures["law"] = plots.law_figure(
            drawn, title=f"{question.y} over {labels['x_label']}", level=question.level, **labels
        )
        if len(drawn) > 1:
            figures["curves"] = plots.data_size_figure(
                drawn, title=f"{question.y} of each group", **labels
            )
    elif question.roles == ("x", "t"):
        for answer in fitted:
            figures["shape" + _suffix(answer, answers)] = _shape_figure(answer, question)
    else:
        for answer in fitted:
            figures["contours" + _suffix(answer, answers)] = _contour_figure(answer, question)
    figures["residuals"] = plots.residuals(
        np.concatenate([scale_of(answer.law.inputs) for answer in fitted]),
        np.concatenate([answer.law.log_residuals for answer in fitted]),
        [answer.name for answer in fitted for _ in range(answer.law.n)],
        x_label=question.scale,
    )
    return figures


def _suffix(answer: Answer, answers: Sequence[Answer]) -> str:
    """A file's name says which group it is of, where there are several; if need be by number."""
    if len(answers) < 2:
        return ""
    names = [re.sub(r"[^\w.=-]+", "-", other.name)[:_LONGEST] for other in answers]
    i = answers.index(answer)
    alike = [name.lower() for name in names].count(names[i].lower()) > 1
    return f"_{names[i]}-{i + 1}" if alike else f"_{names[i]}"


def _curve(answer: Answer, entry: Mapping[str, Any], question: Question) -> plots.Curve:
    """A group's points; its law over the fitted ones, and as far beyond as the data support it."""
    part, law = answer.part, answer.law
    x = part.inputs["x"]
    role = np.where(part.held, "held back", "fit").astype("U10")
    if law is None:  # Perhaps as there are values that have no place on log axes.
        there = (x > 0) & (part.y > 0)
        role[~part.held] = "not fitted"
        return plots.Curve(answer.name, x[there], part.y[there], role[there])
    role[~part.held & ~part.fitted] = "behind"
    verdict = entry["extrapolation"]
    beyond = part.held & bool(verdict and verdict["supported"])
    predicted = [row["x"] for row in entry["tables"].get("Predictions", []) if "refused" not in row]
    reach = np.append(x[~part.held | beyond], predicted)
    grid, places = (np.geomspace(reach.min(), reach.max(), count) for count in (_GRID, _BAND))
    interval = band(law, {"x": places}, level=question.level, clusters=part.clusters)
    line = law.predict({"x": grid})
    return plots.Curve(answer.name, x, part.y, role, grid, line, places, interval)


def _shape_figure(answer: Answer, question: Question) -> Figure:
    """The error over a shape dimension: the law at some computes, each run by the nearest one.

    In a star a larger model takes more compute for the same updates, so few runs have the same.
    """
    part, law = answer.part, answer.law
    t = part.inputs["t"]
    levels = np.unique(t) if len(np.unique(t)) <= 6 else np.geomspace(t.min(), t.max(), 4)
    nearest = np.abs(np.log(t[:, None] / levels)).argmin(1)
    grid = np.geomspace(part.inputs["x"].min(), part.inputs["x"].max(), _GRID)
    drawn = []
    for i, level in enumerate(levels):
        near = nearest == i
        drawn.append(
            plots.Curve(
                f"{question.column('t')} near {level:.3g}",
                part.inputs["x"][near],
                part.y[near],
                np.where(part.held[near], "held back", "fit"),
                grid,
                law.predict({"x": grid, "t": np.full(_GRID, level)}),
            )
        )
    label = part.group.get("x", question.column("x"))
    return plots.law_figure(
        drawn,
        x_label=label,
        y_label=question.y,
        title=f"{question.y} over {label}",
        level=question.level,
    )


def _contour_figure(answer: Answer, question: Question) -> Figure:
    """L(N, D); with repetitions, as if each example were new."""
    part, law = answer.part, answer.law
    n, d = part.inputs["n"], part.inputs["d"]

    def predict(n: np.ndarray, d: np.ndarray) -> np.ndarray:
        return law.predict({"n": n, "d": d} | ({"u": d} if "u" in part.inputs else {}))

    path = None
    if law.law is laws.CHINCHILLA and not law.at_bound:
        budgets = np.geomspace((n * d).min() / 4, (n * d).max() * 4, _GRID)
        best = [optima.optimal_point(law.params, c, flops_per=1.0) for c in budgets]
        path = tuple(np.array(best).T)
    return plots.contours(
        predict, n, d, part.y, held_back=part.held, path=path,
        labels=(question.column("n"), question.column("d"), question.y),
        title=f"{question.y} over {question.column('n')} and {question.column('d')}",
    )  # fmt: skip


def _valley_figure(answer: Answer, question: Question) -> Figure:
    found, drawn = answer.valleys, []
    for valley in found.valleys:
        line_x = np.geomspace(valley.x[0], valley.x[-1], _GRID)
        line_y = valley.lowest + valley.curvature / 2 * np.log(line_x / valley.best) ** 2
        best = valley.best if valley.interior else None
        drawn.append(plots.Valley(valley.budget, valley.x, valley.y, line_x, line_y, best))
    budgets = np.array([valley.budget for valley in found.valleys])
    return plots.valleys(
        drawn, (budgets, found.optima.predict({"x": budgets})),
        x_label=question.column("x"), y_label=question.y, title=f"{question.y} at each budget",
    )  # fmt: skip
