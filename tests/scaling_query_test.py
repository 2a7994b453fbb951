"""Which rows a law is fitted to."""

import numpy as np
import pytest

from vit_jax.errors import ConfigError, DataError
from vit_jax.scaling.query import groups, matches, select


@pytest.fixture
def table():
    """Two models, two durations; a row for each evaluation and step, as a sweep's table has."""
    rows = []
    for model in ("a", "b"):
        for steps in (10, 20):
            run = f"{model}-{steps}"
            for step in (10, 20):
                if step > steps:
                    continue
                for evaluation in ("val", "test"):
                    better = (model == "a") == (steps == 10)  # On val a's short run is the best.
                    error = {"val": 0.2 if better else 0.3, "test": 0.4 + steps / 100}[evaluation]
                    rows.append((run, model, evaluation, step, step == steps, steps, error))
    names = ("run", "model", "evaluation", "step", "final", "steps", "error")
    columns = zip(*rows, strict=True)
    return {name: np.array(values) for name, values in zip(names, columns, strict=True)}


def test_conditions(table):
    assert matches(table, "model=a").sum() == 6
    assert matches(table, "model != a").sum() == 6
    assert matches(table, "step<20").sum() == 8 and matches(table, "step>=1_5").sum() == 4
    assert matches(table, "steps<=50%").sum() == 4
    assert matches(table, "run~?-2*").sum() == 8 and not matches(table, "run~x*").any()
    assert matches(table, "final=true").sum() == 8 == matches(table, "final!=False").sum()
    assert matches(table, " step < 20 ").sum() == 8


def test_the_cell_that_is_no_number_is_shown():
    table = {"y": np.ones(4), "x": np.array(["1", "", "1,000", "?"]), "text": np.array(["1"] * 4)}
    with pytest.raises(ConfigError, match=r"it has '1,000' in row 3\. .* Write decimal points"):
        select(table, needed=("x",), where=(), y="y")
    with pytest.raises(ConfigError, match=r"it has '1' in row 1.* not as text"):
        select(table, needed=("text",), where=(), y="y")
    with pytest.raises(DataError, match="columns but no rows"):
        select({"y": np.array([])}, needed=("y",), where=(), y="y")


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("model", "is not a condition: write COLUMN"),
        ("model=c", "no row has that value"),
        ("model<a", "model has no numbers: use =, != or ~"),
        ("step~1*", "step has numbers: use one of"),
        ("step<ten", "compares a column of numbers with 'ten'"),
    ],
)
def test_invalid_conditions_are_refused(table, condition, message):
    with pytest.raises(ConfigError, match=message):
        matches(table, condition)


def test_default_rows_of_a_sweep_are_the_last_step_and_the_test_split(table):
    rows, notes = select(table, needed=("error",), where=(), y="error")
    assert table["run"][rows].tolist() == ["a-10", "a-20", "b-10", "b-20"]
    assert {*table["evaluation"][rows].tolist()} == {"test"} and table["final"][rows].all()
    assert notes == [
        "Of 12 rows: 8 with final=true, 4 of these with evaluation=test",
        "4 of 12 rows are left",
    ]
    rows, _ = select(table, needed=(), where=("evaluation=val", "final=false"), y="error")
    assert table["run"][rows].tolist() == ["a-20", "b-20"]


def test_one_evaluation_has_to_be_chosen(table):
    table["evaluation"] = np.where(table["evaluation"] == "test", "other", "val")
    with pytest.raises(ConfigError, match="evaluations other, val: choose one with --where"):
        select(table, needed=(), where=(), y="error")


def test_the_best_is_chosen_by_another_evaluation(table):
    rows, notes = select(
        table, needed=("error",), where=(), y="error", chosen_by="val", alike=("model",)
    )
    # By its own error b's short run would be the best.
    assert table["run"][rows].tolist() == ["a-10", "b-20"]
    assert "the best by val" in notes[-1]


def test_rows_without_a_number_are_counted(table):
    table["loss"] = np.where(table["model"] == "a", np.nan, 1.0)
    rows, notes = select(table, needed=("error", "loss"), where=(), y="error")
    assert len(rows) == 2 and "2 rows left out: they have no loss" in notes
    with pytest.raises(ConfigError, match=r'"run" is not numeric: it has .a-10. in row 1'):
        select(table, needed=("run",), where=(), y="error")
    with pytest.raises(DataError, match="No row of the table is left"):
        select(table, needed=("loss",), where=("model=a",), y="error")


def test_groups_are_in_the_order_of_the_table(table):
    rows, _ = select(table, needed=(), where=(), y="error")
    all_groups = list(groups(table, rows, ("model", "steps")))
    values = [tuple(group.group.values()) for group in all_groups]
    assert values == [("a", "10"), ("a", "20"), ("b", "10"), ("b", "20")]
    (whole,) = groups(table, rows, ())
    assert whole.group == {} and whole.rows.tolist() == rows.tolist()
    with pytest.raises(ConfigError, match='no column "modle"'):
        list(groups(table, rows, ("modle",)))
