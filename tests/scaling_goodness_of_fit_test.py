"""A law of the wrong form is detected, one of the right form seldom rejected."""

import numpy as np
import pytest
from scipy import stats

from tests.scaling_tables import few_shot_runs
from vit_jax.scaling.extrapolation import extrapolation
from vit_jax.scaling.fitting import fit
from vit_jax.scaling.goodness_of_fit import LEVEL, form_p_value, significance
from vit_jax.scaling.method import LEAST_SQUARES
from vit_jax.scaling.pareto import pareto
from vit_jax.scaling.question import Question
from vit_jax.scaling.study import study

pytestmark = pytest.mark.medium


def levelling(rng, points=14):
    x = np.geomspace(1, 1e4, points)
    return {"x": x}, (0.6 * x**-0.35 + 0.12) * np.exp(rng.normal(0, 0.02, points))


def test_a_power_law_of_runs_that_level_off_is_not_extrapolated():
    inputs, y = levelling(np.random.default_rng(0))
    far = {"x": np.array([1e6])}
    wrong, right = fit("power", inputs, y), fit("power_floor", inputs, y)
    assert form_p_value(wrong) < 1e-4 < 0.1 < form_p_value(right)
    verdict = extrapolation(wrong, far)
    assert not verdict.supported and "residuals are curved" in verdict.reason
    # Its interval alone would have said nothing: it is narrow, and far from the truth.
    assert verdict.band.high[0] / verdict.band.low[0] < 2 and verdict.band.high[0] < 0.1
    assert extrapolation(right, far).supported


def test_the_p_value_is_that_of_a_regression():
    # Of a power law, a line in logs, Ramsey's test is an ordinary comparison of two regressions.
    rng = np.random.default_rng(3)
    x = np.geomspace(1, 1e3, 20)
    y = 2 * x**-0.3 * np.exp(rng.normal(0, 0.05, 20))
    p_value = form_p_value(fit("power", {"x": x}, y, method=LEAST_SQUARES))
    log_x, left = np.log(x), []
    for power in (1, 3):
        line = np.polynomial.Polynomial.fit(log_x, np.log(y), power)
        left.append(float(np.sum((line(log_x) - np.log(y)) ** 2)))
    ratio = (left[0] - left[1]) / 2 / (left[1] / (20 - 4))
    assert p_value == pytest.approx(stats.f.sf(ratio, 2, 16), rel=1e-6)


def test_exact_data_and_too_few_rows_have_a_p_value_of_one():
    x = np.geomspace(1, 100, 9)
    assert form_p_value(fit("power", {"x": x}, 0.9 * x**-0.2)) == 1.0
    assert form_p_value(fit("power", {"x": x[:3]}, 0.9 * x[:3] ** -0.2 * [1, 1.1, 1])) == 1.0


def test_the_published_frontier_has_the_form_of_its_law():
    x, y = few_shot_runs()
    best = pareto(x, y)
    x, y = x[best], y[best]
    for cut in (100, 300, 1000):
        below = {"x": x[x < cut]}
        assert form_p_value(fit("frontier", below, y[x < cut])) > 0.5
        assert form_p_value(fit("power", below, y[x < cut])) < (LEVEL if cut > 100 else 0.02)


# Errors in percent that follow a power law with a floor and 2% noise, by the number of images.
IMAGES = np.array([1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6])
S = np.array([49.55, 35.68, 24.91, np.nan, 14.07, 11.10, 8.84])
B = np.array([37.52, 27.04, 19.45, 14.77, np.nan, 9.22, 7.83])


def test_a_table_that_follows_its_law_is_not_refused():
    """Its second group has p = .04: one in 25 such groups does."""
    table = {"model": np.repeat(["S", "B"], 7), "x": np.tile(IMAGES, 2), "y": np.append(S, B)}
    question = {"law": "power_floor", "y": "y", "columns": {"x": "x"}, "predict": (1e7,)}
    answered = study(table, Question(**question, group=("model",)), runs="a table")
    first, second = answered.result["groups"]
    assert 0.03 < second["diagnostics"]["p_lack_of_fit"] < 0.05
    assert all("refused" not in entry["tables"]["Predictions"][0] for entry in (first, second))
    assert answered.result["summary"]["trust"] == "yes"


@pytest.mark.slow
def test_at_most_one_in_a_hundred_tables_that_follow_their_law_is_refused():
    """Of 600 tables of two groups of six runs, no more than a binomial of .01 allows: 14.

    With a level of .05 for each group it would be some 60.
    """
    rng, tables, refused = np.random.default_rng(1), 600, 0
    x = IMAGES[np.isfinite(S)]
    for _ in range(tables):
        p_values = []
        for b, c, e in ((465, -0.338, 4.5), (376, -0.354, 5.0)):
            y = (b * x**c + e) * np.exp(rng.normal(0, 0.02, len(x)))
            p_values.append(form_p_value(fit("power_floor", {"x": x}, y)))
        refused += min(p_values) < significance(2)
    assert refused <= stats.binom.ppf(0.999, tables, 0.01)


def test_curved_residuals_are_still_detected():
    """Of a power law, if 12 runs with 2% noise level off: in practically all tables."""
    rng = np.random.default_rng(2)
    found = [form_p_value(fit("power", *levelling(rng, 12))) < LEVEL for _ in range(60)]
    assert np.mean(found) > 0.95
