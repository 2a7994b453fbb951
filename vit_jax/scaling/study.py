"""Answers a question about a table of runs: fitted laws, predictions, comparisons and figures.

table -> rows (query) -> groups -> a law for each (answer: selection for "auto", else fitting)
      -> entries (intervals, held-out error, verdicts, optima) -> crossings -> drawing
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

import vit_jax
from vit_jax.errors import ConfigError, DataError
from vit_jax.scaling import curves, optima, report
from vit_jax.scaling.answer import Answer, answer, group_data
from vit_jax.scaling.entries import Json, doubt_beyond, ends, entry_of, intervals_of
from vit_jax.scaling.expressions import with_computed
from vit_jax.scaling.extrapolation import extrapolation
from vit_jax.scaling.goodness_of_fit import significance
from vit_jax.scaling.growth import growth
from vit_jax.scaling.intervals import Interval, band
from vit_jax.scaling.query import Table, groups, matches, select
from vit_jax.scaling.question import Question
from vit_jax.scaling.summary import summary

if TYPE_CHECKING:
    import matplotlib.figure

_GRID = 120  # Number of points at which two laws are compared.


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predictions of a law, with intervals and whether the data support them.

    Attributes:
      estimate: predicted y at each point.
      low: lower ends of the intervals.
      high: upper ends; may be infinite.
      supported: False: the predictions should not be used.
      reason: the reason in words.
    """

    estimate: Float[np.ndarray, "m"]
    low: Float[np.ndarray, "m"]
    high: Float[np.ndarray, "m"]
    supported: bool
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """The laws fitted to a table, by group. As text (`str`), it is the summary of the command.

    Attributes:
      question: what was asked.
      answers: the law of each group.
      result: all numbers, the content of `fit.json`.
    """

    question: Question
    answers: tuple[Answer, ...]
    result: Json

    def __str__(self) -> str:
        return report.text(self.result)

    def figures(self) -> dict[str, "matplotlib.figure.Figure"]:
        """Draws the figures, by name."""
        from vit_jax.scaling.drawing import draw

        return draw(self.answers, self.result["groups"], self.question)

    def params(self, **group: str) -> dict[str, Interval]:
        """Returns the parameters of a group's law, in the paper's units, with their intervals.

        Args:
          **group: value of each grouping column, such as model="B/16"; none if there is one group.

        Raises:
          ConfigError: there is no such group, or several.
          DataError: no law could be fitted to the group.
        """
        entry = self.result["groups"][self._index(group)]
        infinite = {"low": -np.inf, "high": np.inf}
        return {
            name: Interval(
                *(infinite[k] if v[k] is None else v[k] for k in ("estimate", "low", "high"))
            )
            for name, v in entry["params"].items()
        }

    def predict(
        self, inputs: Mapping[str, Any] | float | int | Sequence[float], **group: str
    ) -> Prediction:
        """Predicts y at m points.

        Args:
          inputs: positive numbers for each role of the law, such as {"n": 1e9, "d": 1e12}; of a law
            of x alone also plain numbers.
          **group: see `params`.

        Raises:
          ConfigError: there is no such group, or several; or an input is missing or not positive.
          DataError: no law could be fitted to the group.
        """
        index = self._index(group)
        chosen = self.answers[index]
        by_role = inputs if isinstance(inputs, Mapping) else {"x": inputs}
        by_role = {role: np.atleast_1d(np.asarray(x, float)) for role, x in by_role.items()}
        verdict = extrapolation(
            chosen.fitted_law,
            by_role,
            level=self.question.level,
            clusters=None if chosen.valleys else chosen.data.clusters,
            significance=significance(len(self.answers)),
            doubt=doubt_beyond(self.result["groups"][index]),
        )
        estimate = chosen.fitted_law if chosen.valleys else chosen
        return Prediction(
            np.atleast_1d(estimate.predict(by_role)), verdict.band.low, verdict.band.high,
            verdict.supported, verdict.reason,
        )  # fmt: skip

    def _index(self, group: Mapping[str, Any]) -> int:
        wanted = {key: str(value) for key, value in group.items()}
        places = [
            i for i, other in enumerate(self.answers) if wanted.items() <= other.data.group.items()
        ]
        if len(places) != 1:
            names = "; ".join(
                ", ".join(f"{key}={value}" for key, value in each.data.group.items()) or "all rows"
                for each in self.answers
            )
            raise ConfigError(f"{len(places)} groups match {wanted}: name one of {names}.")
        if self.answers[places[0]].law is None:
            raise DataError(self.answers[places[0]].error)
        return places[0]


def study(table: Table, question: Question, *, runs: str) -> Study:
    """Answers a question about a table.

    Args:
      table: the result of `vit_jax.scaling.table.read_runs`.
      question: the question.
      runs: name of the table, for the report.

    Raises:
      ConfigError: the question does not match the table.
      DataError: no row is left, or no group can be fitted.
    """
    original_columns = table.keys()
    table = with_computed(table, question.needed)
    rows, notes = _select(table, question)
    held_back = _held_back(table, rows, question, notes)
    parts = [
        data
        for group in groups(table, rows, question.group)
        for data in group_data(table, group, held_back, question)
    ]
    level_of_fit = significance(len(parts))
    answers = tuple(answer(data, question, significance=level_of_fit) for data in parts)
    intervals = [intervals_of(answer, question) for answer in answers]
    growing = growth(answers, question, is_computed=question.y not in original_columns)
    warning = [growing.warning] if growing else []
    if all(answer.law is None for answer in answers):
        errors: dict[str, list[str]] = {}
        for each in answers:
            errors.setdefault(each.error, []).append(each.name)
        lines = [f"{', '.join(names) or 'All rows'}: {error}" for error, names in errors.items()]
        raise DataError("\n".join(["No law could be fitted.", *lines, *warning]))
    entries = [
        entry_of(
            each, question, intervals[i], significance=level_of_fit,
            growth=growing.doubt(i) if growing else "",
        )
        for i, each in enumerate(answers)
    ]  # fmt: skip
    inputs = [name for role in question.roles for name in question.columns_of(role)]
    result = {
        "vit_jax": vit_jax.__version__,
        "title": f"{question.y} over {', '.join(inputs)}",
        "runs": runs,
        "question": question.as_json(),
        "rows": [*notes, *warning],
        "columns": {role: question.column(role) for role in question.roles} | {"y": question.y},
        "level": question.level,
        "significance": level_of_fit,
        "groups": entries,
        "crossings": _crossings(answers, question),
        "grown": _grown(entries, answers),
    }
    result["summary"] = summary(result)
    if len(answers) == 1:  # The law and its parameters also come first, at the top level.
        (entry,) = entries
        result = {"law": entry["law"], "params": entry["params"], **result}
    return Study(question, answers, result)


def _select(table: Table, question: Question) -> tuple[np.ndarray, list[str]]:
    inputs = [name for role in question.roles for name in question.columns_of(role)]
    return select(
        table,
        needed=question.needed,
        where=question.where,
        chosen_by=question.chosen_by,
        y=question.y,
        alike=[*question.group, *inputs, *(["seed"] if "seed" in table else [])],
    )


def _held_back(table: Table, rows: np.ndarray, question: Question, notes: list[str]) -> np.ndarray:
    """Returns which rows of the table are held back; adds a note of how many."""
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
    return held_back


# ---------------------------------------------------------------------------------- comparisons


def _crossings(answers: Sequence[Answer], question: Question) -> list[Json]:
    """Finds where the laws of two groups cross, within the range that both were fitted to."""
    fitted = [a for a in answers if a.law is not None and a.law.law.inputs == ("x",)]
    fitted = [a for a in fitted if a.valleys is None]
    crossings = []
    for i, first in enumerate(fitted):
        for second in fitted[i + 1 :]:
            low = max(a.fitted_law.inputs["x"].min() for a in (first, second))
            high = min(a.fitted_law.inputs["x"].max() for a in (first, second))
            if not low < high:
                continue
            grid = np.geomspace(low, high, _GRID)
            bands = [
                band(a.fitted_law, {"x": grid}, level=question.level, clusters=a.data.clusters)
                for a in (first, second)
            ]
            leader, other = first, second
            if bands[1].estimate[-1] < bands[0].estimate[-1]:
                leader, other, bands = second, first, bands[::-1]
            crossing = curves.crossover(grid, *bands, names=(leader.name, other.name))
            found = {} if crossing.x is None else ends(crossing.x)
            at = float(np.sqrt(low * high))
            ratio = curves.more_images(grid, *bands, at=at)
            crossings.append(
                {"group": leader.name, "over": other.name, **found, "reason": crossing.reason}
                | {"at": at, "times_x": None if ratio is None else ends(ratio)}
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
