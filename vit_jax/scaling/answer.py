"""The numbers of a group of rows, and the law fitted to them."""

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
from vit_jax.scaling.profile import degrees_of_freedom
from vit_jax.scaling.query import Group, Table, label
from vit_jax.scaling.question import AUTO, ISOFLOP, Question
from vit_jax.scaling.rows import TooFewRows
from vit_jax.scaling.table import column


@dataclasses.dataclass(frozen=True, eq=False)
class GroupData:
    """The numbers of a group of rows.

    Attributes:
      group: value of each grouping column.
      inputs: inputs of the law, by role.
      y: errors or losses.
      weights: weight of each row; None: equal weights.
      held_back: rows that were held back as the test set.
      fitted: rows to fit: not held back and, if the question is about the frontier, on it.
      tested: rows to evaluate the fit on: held back and, in that case, on the frontier of all rows.
      runs: names of the rows' runs; None if every run has one row.
      flops_per: training FLOPs for one parameter and one example.
      arm: the dimension that varies, in a star; else "".
      centre: value of `arm` in the star's centre.
    """

    group: dict[str, str]
    inputs: dict[str, Float[np.ndarray, "n"]]
    y: Float[np.ndarray, "n"]
    weights: Float[np.ndarray, "n"] | None
    held_back: Bool[np.ndarray, "n"]
    fitted: Bool[np.ndarray, "n"]
    tested: Bool[np.ndarray, "n"]
    runs: Shaped[np.ndarray, "n"] | None
    flops_per: float
    arm: str = ""
    centre: float = 0.0

    def select(self, rows: Bool[np.ndarray, "n"]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Returns inputs and y of some rows."""
        return {role: x[rows] for role, x in self.inputs.items()}, self.y[rows]

    @property
    def clusters(self) -> Shaped[np.ndarray, "m"] | None:
        """Returns the run of each fitted row; None if all rows are of different runs, or of one."""
        runs = None if self.runs is None else self.runs[self.fitted]
        return None if runs is None or len(np.unique(runs)) < 2 else runs


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """The data of a group, and the law or valleys fitted to it, or the error if none could be."""

    data: GroupData
    law: Fit | None = None
    choice: selection.Choice | None = None
    valleys: isoflops.IsoFlop | None = None
    held_out: Mapping[str, selection.HeldOut] = dataclasses.field(default_factory=dict)
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    error: str = ""

    def predict(self, inputs: Mapping[str, Any]) -> Float[np.ndarray, "*m"]:
        """Predicts y from inputs by role: with the chosen predictor of "auto", else the law."""
        return (self.choice or self.fitted_law).predict(inputs)

    @property
    def fitted_law(self) -> Fit:
        """Returns `law` of an answer without an error."""
        assert self.law is not None, self.error
        return self.law

    @property
    def name(self) -> str:
        """Returns the name of the group in legends and comparisons."""
        return label(self.data.group)


def group_data(
    table: Table, group: Group, held_back: np.ndarray, question: Question
) -> Iterator[GroupData]:
    """Yields the data of a group; of a star (several columns for x), the data of each arm."""
    arms = question.columns_of("x") if "x" in question.roles else [""]
    centre = {name: _most_common(column(table, name)[group.rows]) for name in arms if arms[1:]}
    for arm in arms:
        rows = group.rows
        for other in centre.keys() - {arm}:
            rows = rows[column(table, other)[rows] == centre[other]]
        names = {role: arm if role == "x" else question.column(role) for role in question.roles}
        inputs = {role: table[name][rows].astype(float) for role, name in names.items()}
        # In other tables a numeric column "run" may count repetitions of different runs.
        has_names = "run" in table and table["run"].dtype.kind == "U"
        runs = table["run"][rows] if has_names else None
        repeated = runs is not None and len(np.unique(runs)) < len(runs)
        y, test = table[question.y][rows].astype(float), held_back[rows]
        fitted, tested = ~test, test.copy()
        if question.on_frontier:  # The fit must not depend on the rows held back.
            fitted &= pareto(inputs["x"], np.where(test, np.inf, y))
            tested &= pareto(inputs["x"], y)
        yield GroupData(
            group=group.group | ({"x": arm} if centre else {}),
            inputs=inputs,
            y=y,
            weights=table[question.weights][rows].astype(float) if question.weights else None,
            held_back=test,
            fitted=fitted,
            tested=tested,
            runs=runs if repeated else None,
            flops_per=_flops_per(table, rows, inputs),
            arm=arm if centre else "",
            centre=float(centre.get(arm, 0.0)),
        )


def _most_common(values: np.ndarray) -> Any:
    unique, counts = np.unique(values, return_counts=True)
    return unique[counts.argmax()]


def _flops_per(table: Table, rows: np.ndarray, inputs: Mapping[str, np.ndarray]) -> float:
    """Returns the median of compute / (parameters x examples); 6, as for a token, if unknown."""
    # Tables of vit_jax 0.1 and early 0.2 call the column train_flops.
    flops = table.get("total_train_flops", table.get("train_flops", np.array("")))
    if flops.dtype.kind not in "if" or not {"n", "d"} <= inputs.keys():
        return 6.0
    with np.errstate(divide="ignore", invalid="ignore"):  # The fit refuses 0 parameters.
        ratio = flops[rows] / (inputs["n"] * inputs["d"])
    valid = ratio[np.isfinite(ratio) & (ratio > 0)]
    return float(np.median(valid)) if len(valid) else 6.0


def answer(data: GroupData, question: Question, *, significance: float) -> Answer:
    """Fits the law of a question to the data of a group.

    `significance` is the level of the lack-of-fit test by which "auto" excludes laws.
    """
    inputs, y = data.select(data.fitted)
    weights = None if data.weights is None else data.weights[data.fitted]
    how = {"weights": weights, "method": question.method}
    try:
        if question.law == ISOFLOP:
            valleys = isoflops.isoflop(inputs["t"], inputs["x"], y, method=question.method)
            return Answer(data, law=valleys.optima, valleys=valleys)
        if question.law == AUTO:
            choice = selection.choose(inputs, y, significance=significance, **how)
            degrees_of_freedom(choice.fit, data.clusters)  # Raises where there are too few runs.
            return Answer(
                data, law=choice.fit, choice=choice, held_out=choice.held_out,
                skipped=choice.skipped,
            )  # fmt: skip
        law = fit(question.law, inputs, y, **how)
        degrees_of_freedom(law, data.clusters)
    except TooFewRows as error:
        advice = " Or fit the groups as one, without --group." if question.group else ""
        return Answer(data, error=f"{error}{advice}")
    except DataError as error:
        return Answer(data, error=str(error))
    held_out, skipped = selection.rolling_origin((question.law,), inputs, y, **how)
    return Answer(data, law=law, held_out=held_out, skipped=skipped)
