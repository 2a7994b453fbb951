"""`python -m vit_jax.fit` on unusual columns and groups: messages and figures."""

import dataclasses
import html

import numpy as np
import pytest
from scipy import stats

from vit_jax.errors import DataError
from vit_jax.scaling import report
from vit_jax.scaling.error_rates import chance_note
from vit_jax.scaling.fitting import fit
from vit_jax.scaling.goodness_of_fit import form_p_value
from vit_jax.scaling.numbers import readable, significant_digits
from vit_jax.scaling.page import page
from vit_jax.scaling.question import Question
from vit_jax.scaling.selection import choose, grows
from vit_jax.scaling.study import study

pytestmark = pytest.mark.medium

X = np.geomspace(10, 1e4, 8)
Y = 2 * X**-0.3 * np.exp(0.01 * np.random.default_rng(0).standard_normal(len(X)))


def groups(**y):
    """A table of two columns x and y, and a group's name for each set of y."""
    return {
        "model": np.repeat([*y], [len(values) for values in y.values()]),
        "x": np.concatenate([X[: len(values)] for values in y.values()]),
        "y": np.concatenate([np.asarray(values, float) for values in y.values()]),
    }


def asked(table, **question):
    question = {"law": "power", "y": "y", "columns": {"x": "x"}} | question
    answered = study(table, Question(**question), runs="runs.csv")
    return answered.result, answered.figures()


# ------------------------------------------------------------------------- groups of equal values


@pytest.mark.parametrize("chance", [0.9, 2.302585])
def test_a_group_at_chance_is_named_and_the_others_are_fitted(chance):
    result, figures = asked(groups(a=Y, b=np.full(6, chance), c=2 * Y), group=("model",))
    a, b, c = result["groups"]
    assert b["error"].startswith(f"y is {chance:g} in all rows, so its dependence")
    for entry in (a, c):
        assert entry["params"]["c"]["low"] < -0.3 < entry["params"]["c"]["high"]
    assert [fitted["over"] for fitted in result["crossings"]] == ["c"]
    labels = [text.get_text() for text in figures["law"].legends[0].get_texts()]
    assert "b, 6 not fitted" in labels


def test_only_equal_values_are_an_error():
    for law in ("auto", "power_floor"):
        with pytest.raises(DataError, match=r"(?s)No law could be fitted.*y is 0\.5 in"):
            asked(groups(a=np.full(8, 0.5)), law=law)
    with pytest.raises(DataError, match=r"y is 0\.5 in all rows"):
        choose({"x": X}, np.full(8, 0.5), laws=("power",))


def test_a_law_with_all_parameters_at_their_bounds_has_a_p_value():
    """No parameter is left that could move the curve: the residuals are all that there is."""
    fitted = fit("power", {"x": X}, Y)
    stuck = dataclasses.replace(fitted, identified=dict.fromkeys("bc", "at its bound"))
    scaled = (np.log(X) - np.log(X).mean()) / np.log(X).std()
    left = fitted.log_residuals
    (rest,) = np.linalg.lstsq(np.stack([scaled**2, scaled**3], 1), left, rcond=None)[1]
    ratio = (left @ left - rest) / 2 / (rest / (len(X) - 2))
    assert form_p_value(stuck) == pytest.approx(stats.f.sf(ratio, 2, len(X) - 2))


# ---------------------------------------------------------------------------- few and flat runs

FLAT = {
    "x": np.array([200.0, 400, 800, 1440]),
    "y": np.array([0.9, 0.89, 0.892, 0.884]),
}


def test_runs_of_nearly_constant_error_are_not_trusted_beyond_themselves():
    result, figures = asked(FLAT, law="power_floor", predict=(1000.0, 5000.0))
    (entry,) = result["groups"]
    assert entry["params"]["b"]["high"] is None  # Unbounded, whatever its standard error.
    assert {v["identified"] for v in entry["params"].values()} <= {"no", "at its bound"}
    summary = result["summary"]
    assert summary["trust"] == "no"
    assert summary["why"].startswith("Do not trust it beyond the fitted runs: power_floor could")
    assert summary["why"].endswith("Do not use the value of b, c, e.")
    within, beyond = entry["tables"]["Predictions"]
    assert "y" in within and beyond["refused"].startswith("power_floor could not be tested")
    assert farthest(figures) == pytest.approx(1440)
    low, high = figures["law"].axes[0].get_ylim()
    assert high < 1.5 * low  # On so narrow a range, powers of ten would be no tick.
    ticks = figures["law"].axes[0].yaxis.get_majorticklocs()
    assert sum(low <= tick <= high for tick in ticks) >= 3
    # What was skipped is the test, not the fit.
    (note,) = entry["notes"]
    assert note == (
        "power_floor (3 parameters) was not tested on held-out larger scales, since there are only "
        "2 rows up to 1/2 of the largest scale, too few for a fit."
    )
    assert "was not fitted" not in report.text(result)


def test_a_tested_law_whose_parameters_are_all_open_is_not_trusted_beyond_its_runs():
    noise = 0.01 * np.random.default_rng(6).standard_normal(len(X))
    table = groups(a=0.9 * np.exp(noise - 0.003 * np.arange(len(X))))
    answered = study(table, Question(law="power_floor", y="y", columns={"x": "x"}), runs="runs.csv")
    (entry,) = answered.result["groups"]
    assert entry["held_out"] and answered.result["summary"]["trust"] == "no"
    assert "The data determine no parameter of y = b x^c + e." in answered.result["summary"]["why"]
    assert not answered.predict(1e5).supported and answered.predict(1e3).supported


@pytest.mark.parametrize(("name", "whole"), [("error", 1), ("1 - top1", 1), ("100-top1", 100)])
def test_error_rates_at_chance_level_show_no_learning(name, whole):
    error = whole * FLAT["y"]
    table = {"x": FLAT["x"], "error": error, "top1": whole - error}
    result, _ = asked(table, law="power_floor", y=name)
    *_, note = result["groups"][0]["notes"]
    assert note.startswith(f"No learning is visible: {name} is from {884 * whole / 1000:g} to ")
    assert note.endswith(f"among about 10 equally frequent classes has {whole * 9 / 10:g}.")


@pytest.mark.parametrize(
    ("name", "y"),
    [
        ("loss", FLAT["y"]),  # A loss of .9 may be a good one.
        ("error", 0.5 * FLAT["y"]),  # Learned, though it falls no further.
        ("error", np.array([0.9, 0.88, 0.86, 0.84, 0.82])),  # It falls.
    ],
)
def test_other_values_are_not_said_to_show_no_learning(name, y):
    assert not chance_note(name, X[: len(y)], y)


def test_an_interval_above_the_largest_possible_error_is_noted():
    result, _ = asked({"x": X, "error": Y / 2}, y="error", predict=(0.5, 1e4))
    (note,) = result["groups"][0]["notes"]
    assert note.startswith("The interval of the prediction at 0.5 exceeds 1, the largest possible")
    result, _ = asked({"x": X, "loss": Y / 2}, y="loss", predict=(0.5,))
    assert not result["groups"][0]["notes"]


def test_every_group_says_why_it_is_trusted_or_not():
    noise = 0.01 * np.random.default_rng(6).standard_normal(len(X))
    flat = 0.9 * np.exp(noise - 0.003 * np.arange(len(X)))
    table = groups(falls=Y + 0.3, flat=flat, equal=np.full(8, 0.5))
    result, _ = asked(table, law="power_floor", group=("model",))
    reasons = {group["name"]: group for group in result["summary"]["groups"]}
    assert reasons["model=flat"]["trust"] == "no" and "no parameter" in reasons["model=flat"]["why"]
    assert reasons["model=equal"]["why"].startswith("No law could be fitted: y is 0.5 in all rows")
    text = report.text(result)
    shown = page(result, {}, command="vit-jax fit")
    assert reasons["model=falls"]["trust"] == "yes" and "model=falls: yes" not in text
    for group in (reasons["model=flat"], reasons["model=equal"]):
        assert f"  {group['name']}: {group['trust']}. {group['why']}" in text
        assert html.escape(group["why"]) in shown


@pytest.mark.parametrize(
    ("ends", "shown"),
    [
        ((60_123.0, 41_000.0, 80_000.0), "60,100"),
        ((1.0372, 1.0365, 1.0379), "1.0372"),
        ((-0.39982, -0.42, -0.38), "-0.3998"),
        ((3.21e9, 1e9, None), "3.21e9"),
        ((2.0, 2.0, 2.0), "2"),
        ((0.0, 0.0, 0.1), "0"),
    ],
)
def test_a_formula_has_the_digits_that_the_interval_supports(ends, shown):
    interval = dict(zip(("estimate", "low", "high"), ends, strict=True))
    assert readable(interval["estimate"], significant_digits(interval)) == shown


# ---------------------------------------------------------------------------------- accuracies


def accuracies(scale=1.0):
    table = groups(a=Y, b=np.minimum(2 * Y, 1.9))
    return table | {"test/top1": scale * (1 - table["y"] / 2)}


@pytest.mark.parametrize(("scale", "whole"), [(1.0, 1), (100.0, 100)])
def test_an_accuracy_raises_a_warning_and_its_error_is_fitted(scale, whole):
    table = accuracies(scale)
    result, _ = asked(table, y="test/top1", group=("model",), predict=(2e4,))
    warning = result["rows"][-1]
    assert warning.startswith("Warning: test/top1 grows with x in 2 of 2 groups: it is most likely")
    assert warning.endswith(f"For the error, use --y={whole}-test/top1.")
    assert result["summary"]["trust"] == "no"
    (record,) = result["groups"][0]["tables"]["Predictions"]
    assert f"--y={whole}-test/top1" in record["refused"]
    proposed = f"{whole}-test/top1"
    result, figures = asked(table, y=proposed, where=("model=a",))
    assert not any("Warning" in line for line in result["rows"])
    assert result["params"]["c"]["low"] < -0.3 < result["params"]["c"]["high"]
    assert result["title"] == f"{proposed} over x" and result["columns"]["y"] == proposed
    assert figures["law"].axes[0].get_ylabel() == proposed


def warned(x, y, name="score", **question):
    result, _ = asked({"x": np.asarray(x, float), name: np.asarray(y)}, y=name, **question)
    trust = result["summary"]["trust"]
    return [line for line in result["rows"] if line.startswith("Warning")], trust


def test_an_accuracy_is_known_by_its_name_or_by_the_exponent_of_its_law():
    few = X[:3], 1 - Y[:3] / 2  # Too few for the test of ranks.
    assert warned(*few, name="Top-1 accuracy (%)")[1] == "no"
    (warning,), trust = warned(*few, name="val_acc")
    assert trust == "no" and warning.startswith("Warning: val_acc is named like an accuracy, and")
    (warning,), trust = warned(X, Y / 2, name="test/top1")  # It falls, but the name is one.
    assert trust == "no" and warning.endswith("If it is an error, rename the column.")
    assert warned(X, Y / 2, name="error_top1") == ([], "yes")
    # Ranks 1 3 2 4 do not show at the 1% level that the score grows; the exponent's interval does.
    x, y = np.array([10.0, 1e3, 1.02e3, 1e5]), np.array([0.1, 0.301, 0.3, 0.9])
    assert not grows(x, y)
    (warning,), trust = warned(x, y)
    assert trust == "no" and warning.startswith("Warning: score grows with x")
    # A group in which the score falls is doubted, too, if it grows in most.
    table = groups(a=1 / Y, b=2 / Y, c=Y)
    result, _ = asked(table, group=("model",))
    assert [group["trust"] for group in result["summary"]["groups"]] == ["no"] * 3
    result, _ = asked(groups(a=1 / Y, b=2 * Y, c=Y), group=("model",))
    assert [group["trust"] for group in result["summary"]["groups"]] == ["no", "yes", "yes"]


def test_inputs_may_be_expressions_too():
    table = groups(a=Y) | {"tokens per step": X / 4}
    result, _ = asked(table, columns={"x": "4 * tokens per step"}, predict=(2e4,))
    plain, _ = asked(table, predict=(2e4,))
    assert result["params"] == plain["params"]
    assert result["columns"]["x"] == "4 * tokens per step"


def test_grows():
    rng = np.random.default_rng(0)
    assert grows(X, 1 / Y) and grows(X[:4], 1 / Y[:4]) and not grows(X[:3], 1 / Y[:3])
    assert not grows(X, Y) and not grows(X, np.ones(8)) and not grows(np.ones(8), Y)
    assert grows(np.repeat(X, 3), np.repeat(-Y, 3) + rng.normal(0, 0.1, 24))
    flat = [grows(X, rng.normal(size=8)) for _ in range(300)]
    assert np.mean(flat) < 0.03  # .01 and some three standard errors.


# ------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("names", [("_base", "large"), ("", "_a")])
def test_legends_have_every_group(names):
    _, figures = asked(groups(**dict(zip(names, (Y, 2 * Y), strict=True))), group=("model",))
    for figure, ending in (("law", ", 8 fitted"), ("curves", "")):
        labels = [text.get_text().strip() for text in figures[figure].legends[0].get_texts()]
        for name in names:
            assert f"{name or chr(34) * 2}{ending}" in labels


def test_residuals_have_the_ticks_of_the_law():
    x = np.array([60.0, 80.0, 100.0, 130.0, 170.0, 240.0])  # Less than a decade.
    _, figures = asked({"x": x, "y": 2 * x**-0.3})
    law, residuals = (
        [t for t in axis.get_majorticklocs() if 60 < t < 240]
        for axis in (figures[name].axes[0].xaxis for name in ("law", "residuals"))
    )
    assert len(law) > 2 and law == residuals


def test_a_law_is_drawn_no_further_than_the_data_support_it():
    """Refused of these: 1e8, since the runs level off and a power law does not."""
    y = (3 * X**-0.5 + 0.5) * np.exp(0.02 * np.random.default_rng(0).standard_normal(len(X)))
    table = groups(a=y)
    result, figures = asked(table, predict=(2e4, 1e8))
    refused = [row["x"] for row in result["groups"][0]["tables"]["Predictions"] if "refused" in row]
    assert refused == [2e4, 1e8] and farthest(figures) == pytest.approx(1e4)
    # Of a law with a floor the nearer one is supported, and drawn.
    straight = groups(a=Y)
    result, figures = asked(straight, predict=(2e4,))
    assert "refused" not in result["groups"][0]["tables"]["Predictions"][0]
    assert farthest(figures) == pytest.approx(2e4)


def test_rows_held_back_are_drawn_and_a_law_that_is_refused_there_is_not():
    y = (3 * X**-0.5 + 0.5) * np.exp(0.02 * np.random.default_rng(0).standard_normal(len(X)))
    for values, supported in ((y, False), (Y, True)):
        result, figures = asked(groups(a=values), hold_back=("x>2000",))
        assert result["groups"][0]["extrapolation"]["supported"] == supported
        assert farthest(figures) == pytest.approx(1e4 if supported else X[5])
        labels = [text.get_text() for text in figures["law"].legends[0].get_texts()]
        assert "2 held back" in labels


def farthest(figures):
    """The largest x at which the law or its interval is drawn."""
    (axes,) = figures["law"].axes
    lines = [line for line in axes.get_lines() if line.get_linestyle() != "None"]
    (interval,) = axes.collections
    ends = {max(line.get_xdata().max() for line in lines if len(line.get_xdata()))}
    ends.add(interval.get_paths()[0].vertices[:, 0].max())
    assert max(ends) == pytest.approx(min(ends))
    return max(ends)


def test_no_law_is_drawn_beyond_the_fitted_rows_of_a_frontier():
    """A row behind the frontier may have the largest x."""
    x, y = np.append(X, 1e6), np.append(Y, 1.1 * Y[-1])
    result, figures = asked({"x": x, "y": y}, frontier=True)
    assert result["groups"][0]["diagnostics"]["rows"] == len(X)
    assert farthest(figures) == pytest.approx(1e4)


def valleys_of(budgets, best):
    x = np.concatenate([b * np.geomspace(0.2, 5, 7) for b in (1e4, 3e4, 1e5, 3e5)])
    t = np.repeat(budgets, 7)
    y = 0.1 + 1e3 / t**0.3 * (1 + 0.1 * np.log(x / np.repeat(best, 7)) ** 2)
    return {"x": x, "t": t, "y": y}


def test_the_power_law_of_minima_ends_at_the_last_one_within_its_sizes():
    table = valleys_of([1e12, 1e13, 1e14, 1e15], [1e4, 3e4, 1e5, 3e6])
    _, figures = asked(table, law="isoflop", columns={"x": "x", "t": "t"})
    (line,) = [
        line for line in figures["isoflop"].axes[1].get_lines() if line.get_linestyle() == "--"
    ]
    assert line.get_xdata().max() == pytest.approx(1e14)


def test_equal_errors_of_a_budget_are_named():
    table = valleys_of([1e12, 1e13, 1e14, 1e15], [1e4, 3e4, 1e5, 3e5])
    table["y"][7:14] = 1 - np.array([0.9, 0.9 + 1e-16, *[0.9] * 5])
    with pytest.raises(DataError, match=r"of budget 1e\+13 are all 0\.1: they have no valley"):
        asked(table, law="isoflop", columns={"x": "x", "t": "t"})


@pytest.mark.slow  # It compiles a law of its own.
@pytest.mark.parametrize("supported", [True, False])
def test_contours_and_optima_end_where_the_data_do(supported):
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e4, 1e7, 6), np.geomspace(1e5, 1e8, 6)))
    y = 0.2 + 40 / n**0.5 + 90 / d**0.5
    if not supported:  # Curved: the law does not break.
        y *= 1 + 0.05 * np.log(n / 3e5) ** 2
    y *= np.exp(0.003 * np.random.default_rng(0).standard_normal(len(y)))
    question = {"law": "chinchilla", "columns": {"n": "n", "d": "d"}, "hold_back": ("n>5e6",)}
    result, figures = asked({"n": n, "d": d, "y": y}, **question)
    (entry,) = result["groups"]
    assert entry["extrapolation"]["supported"] == supported
    within, beyond = entry["tables"]["Best for a budget"]
    assert "n" in within and ("n" in beyond) == supported
    contours, *_ = figures["contours"].axes[0].collections
    ends = max(path.vertices[:, 0].max() for path in contours.get_paths() if len(path.vertices))
    assert ends == pytest.approx(1e7 if supported else np.unique(n)[-2], rel=0.02)
