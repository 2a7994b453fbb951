"""A group of a table's rows as numbers, and what is fitted to it."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from vit_jax.errors import DataError
from vit_jax.scaling import isoflop as isoflops
from vit_jax.scaling import selection
from vit_jax.scaling.fitting import Fit, fit
from vit_jax.scaling.pareto import pareto
from vit_jax.scaling.profile import freedom
from vit_jax.scaling.query import Rows, Table
from vit_jax.scaling.question import AUTO, ISOFLOP, Question
from vit_jax.scaling.table import column


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A group's rows as numbers.

    Attributes:
      group: value of each grouping column.
      inputs: of the law, by role.
      y: errors or losses.
      held: rows that were held back.
      fitted: rows that are fitted: not held back and, if the question is of the frontier, on it.
      judged: rows that the fit is judged by: held back and, if so, on the frontier of all rows.
      runs: names of the rows' runs, where a run has several rows.
      flops_per: training FLOPs for one parameter and one example.
      arm: the dimension that varies, in a star; "" elsewhere.
      centre: its value in the centre.
    """

    group: dict[str, str]
    inputs: dict[str, Float[np.ndarray, "n"]]
    y: Float[np.ndarray, "n"]
    held: Bool[np.ndarray, "n"]
    fitted: Bool[np.ndarray, "n"]
    judged: Bool[np.ndarray, "n"]
    runs: Shaped[np.ndarray, "n"] | None
    flops_per: float
    arm: str = ""
    centre: float = 0.0

    def of(self, rows: Bool[np.ndarray, "n"]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Inputs and y of some rows."""
        return {role: x[rows] for role, x in self.inputs.items()}, self.y[rows]

    @property
    def clusters(self) -> Shaped[np.ndarray, "m"] | None:
        """What fitted rows err together; None: nothing, or all, being of one run."""
        runs = None if self.runs is None else self.runs[self.fitted]
        return None if runs is None or len(np.unique(runs)) < 2 else runs


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """A part and what was fitted to it: a law, or valleys; or why nothing was."""

    part: Part
    law: Fit | None = None
    choice: selection.Choice | None = None
    valleys: isoflops.IsoFlop | None = None
    held_out: Mapping[str, selection.HeldOut] = dataclasses.field(default_factory=dict)
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    error: str = ""

    @property
    def name(self) -> str:
        """Values of the grouping columns, for legends; an empty one is shown as two quotes."""
        return ", ".join(value or '""' for value in self.part.group.values())


def parts(table: Table, group: Rows, held: np.ndarray, question: Question) -> Iterator[Part]:
    """The group; of a star (several columns for x) an arm for each of them."""
    arms = question.columns_of("x") if "x" in question.roles else [""]
    centre = {name: _most_common(column(table, name)[group.rows]) for name in arms if arms[1:]}
    for arm in arms:
        rows = group.rows
        for other in centre.keys() - {arm}:
            rows = rows[column(table, other)[rows] == centre[other]]
        names = {role: arm if role == "x" else question.column(role) for role in question.roles}
        inputs = {role: table[name][rows].astype(float) for role, name in names.items()}
        # In others' tables a number of that name may be a repetition, and its rows of many runs.
        named = "run" in table and table["run"].dtype.kind == "U"
        runs = table["run"][rows] if named else None
        repeated = runs is not None and len(np.unique(runs)) < len(runs)
        y, back = table[question.y][rows].astype(float), held[rows]
        fitted, judged = ~back, back.copy()
        if question.on_frontier:  # What is fitted must not know what is held back.
            fitted &= pareto(inputs["x"], np.where(back, np.inf, y))
            judged &= pareto(inputs["x"], y)
        yield Part(
            group=group.group | ({"x": arm} if centre else {}),
            inputs=inputs,
            y=y,
            held=back,
            fitted=fitted,
            judged=judged,
            runs=runs if repeated else None,
            flops_per=_flops_per(table, rows, inputs),
            arm=arm if centre else "",
            centre=float(centre.get(arm, 0.0)),
        )


def _most_common(values: np.ndarray) -> Any:
    found, counts = np.unique(values, return_counts=True)
    return found[counts.argmax()]


def _flops_per(table: Table, rows: np.ndarray, inputs: Mapping[str, np.ndarray]) -> float:
    """The median of compute over parameters times examples; 6, a token's, where it is unknown."""
    flops = table.get("total_train_flops", np.array(""))
    if flops.dtype.kind not in "if" or not {"n", "d"} <= inputs.keys():
        return 6.0
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 parameters are refused by the fit.
        each = flops[rows] / (inputs["n"] * inputs["d"])
    known = each[np.isfinite(each) & (each > 0)]
    return float(np.median(known)) if len(known) else 6.0


def answer(part: Part, question: Question) -> Answer:
    inputs, y = part.of(part.fitted)
    try:
        if question.law == ISOFLOP:
            found = isoflops.isoflop(inputs["t"], inputs["x"], y)
            return Answer(part, law=found.optima, valleys=found)
        if question.law == AUTO:
            choice = selection.choose(inputs, y)
            freedom(choice.fit, part.clusters)
            return Answer(
                part, law=choice.fit, choice=choice, held_out=choice.held_out,
                skipped=choice.skipped,
            )  # fmt: skip
        found = fit(question.law, inputs, y)
        freedom(found, part.clusters)  # Fewer runs than parameters have no intervals.
    except DataError as error:
        return Answer(part, error=str(error))
    try:
        held_out, skipped = selection.rolling_origin((question.law,), inputs, y)
    except DataError as error:
        held_out, skipped = {}, {question.law: str(error)}
    return Answer(part, law=found, held_out=held_out, skipped=skipped)
