"""A law of the wrong form is detected, one of the right form seldom rejected."""

import numpy as np
import pytest
from scipy import stats

from tests.scaling_tables import few_shot_runs
from vit_jax.scaling.fitting import fit
from vit_jax.scaling.goodness_of_fit import LEVEL, form_p_value
from vit_jax.scaling.method import LEAST_SQUARES
from vit_jax.scaling.pareto import pareto
from vit_jax.scaling.selection import extrapolation

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


@pytest.mark.slow
@pytest.mark.parametrize("law", ["power_floor", "frontier"])
def test_a_correct_law_is_rejected_at_the_significance_level(law):
    rng = np.random.default_rng(1)
    blamed = [form_p_value(fit(law, *levelling(rng))) < LEVEL for _ in range(200)]
    assert np.mean(blamed) <= 0.08  # .05 and two standard errors.
