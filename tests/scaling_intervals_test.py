"""Intervals: against exact ones where there are such, and by how often they cover."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize

from benchmarks.scaling_fits import SETTINGS, coverage, speed
from tests.conftest import slow
from tests.scaling_fitting_test import frontier
from tests.scaling_laws_test import CHINCHILLA, D, N
from vit_jax.errors import DataError
from vit_jax.scaling import intervals
from vit_jax.scaling.bootstrap import bootstrap, percentile_band
from vit_jax.scaling.fitting import fit
from vit_jax.scaling.laws import law
from vit_jax.scaling.method import LEAST_SQUARES, Method

pytestmark = pytest.mark.medium


def power_law(points=12, noise=0.05, seed=0):
    x = np.logspace(0, 3, points)
    z = np.random.default_rng(seed).standard_normal(points)
    return x, 0.6 * x**-0.35 * np.exp(noise * z)


@pytest.mark.parametrize("level", [slow(0.5), 0.9, slow(0.99)])
def test_a_power_law_has_the_intervals_of_linear_regression(level):
    """Of a line through logs the profile is exact: Student's t, in closed form."""
    x, y = power_law()
    fitted = fit("power", {"x": x}, y, method=LEAST_SQUARES)
    line = stats.linregress(np.log(x), np.log(y))
    t = stats.t.ppf((1 + level) / 2, len(x) - 2)
    parameters = intervals.parameter_intervals(fitted, level=level)
    assert parameters["c"].low == pytest.approx(line.slope - t * line.stderr, abs=1e-5)
    assert parameters["c"].high == pytest.approx(line.slope + t * line.stderr, abs=1e-5)
    half = t * line.intercept_stderr
    assert math.log(parameters["b"].low) == pytest.approx(line.intercept - half, abs=1e-4)
    assert math.log(parameters["b"].high) == pytest.approx(line.intercept + half, abs=1e-4)

    at = np.array([1.0, 50.0, 1e5])
    middle = line.intercept + line.slope * np.log(at)
    noise = math.sqrt(np.sum(fitted.log_residuals**2) / (len(x) - 2))
    reach = (np.log(at) - np.log(x).mean()) ** 2 / np.sum((np.log(x) - np.log(x).mean()) ** 2)
    for new_run in (False, True):
        half = t * noise * np.sqrt(1 / len(x) + reach + new_run)
        band = intervals.band(fitted, {"x": at}, level=level, new_run=new_run)
        np.testing.assert_allclose(np.log(band.low), middle - half, atol=2e-4)
        np.testing.assert_allclose(np.log(band.high), middle + half, atol=2e-4)
        assert band.kind == ("new run" if new_run else "curve")


def test_ends_are_where_the_profile_passes_its_limit():
    """By a second search: SciPy minimises the loss, the prediction held at the interval's end."""
    x, y = power_law(noise=0.03)
    y = y + 0.1
    fitted = fit("power_floor", {"x": x}, y, method=LEAST_SQUARES)
    target = 1e4
    band = intervals.band(fitted, {"x": [target]}, level=0.9)
    base = np.sum(fitted.log_residuals**2)
    limit = stats.t.ppf(0.95, len(x) - 3) ** 2 * base / (len(x) - 3)

    for end in (band.low[0], band.high[0]):

        def loss(p, end=end):
            c, e = -math.exp(p[0]), min(end, y.max()) / (1 + math.exp(-p[1]))
            b = (end - e) / target**c
            return np.sum((np.log(b * x**c + e) - np.log(y)) ** 2)

        best = min(
            minimize(
                loss,
                (math.log(-fitted.params["c"]), start),
                method="Nelder-Mead",
                options={"xatol": 1e-9, "fatol": 1e-15, "maxiter": 4000},
            ).fun
            for start in (-2.0, 0.0, 2.0)
        )
        assert best - base == pytest.approx(limit, rel=0.02)


def test_an_undetermined_parameter_has_a_wide_interval():
    x, y = power_law(noise=0.1)
    parameters = intervals.parameter_intervals(fit("power_floor", {"x": x}, y))
    assert parameters["e"].low == 0 and parameters["e"].high > 0.01
    assert parameters["c"].low < -0.35 < parameters["c"].high


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([60, 240, 480, 960], [0.8, 0.704, 0.732, 0.772]),
        ([60, 240, 480, 720, 960, 1440], [0.8, 0.70, 0.73, 0.75, 0.77, 0.74]),
    ],
)
def test_intervals_of_a_flat_y_contain_the_fits_that_the_data_allow(x, y):
    """Of an estimate at a plateau of the loss, far from other fits that are nearly as good."""
    x = np.array(x, float)
    fitted = fit("power_floor", {"x": x}, y, method=LEAST_SQUARES)
    found = intervals.parameter_intervals(fitted)
    assert found["c"].low == -math.inf and found["b"].high == math.inf
    freedom = len(x) - 3
    limit = fitted.rmse_log**2 * (1 + stats.t.ppf(0.95, freedom) ** 2 / freedom)
    allowed = 0
    for bounds in ({"e": (0, 0)}, {"e": (0.5, 0.5)}, {"c": (-1, -1)}, {"c": (-0.05, -0.05)}):
        method = Method(delta=math.inf, bounds=bounds)
        other = fit("power_floor", {"x": x}, y, method=method)
        if other.rmse_log**2 <= limit:
            allowed += 1
            for name, value in other.params.items():
                assert found[name].low <= value <= found[name].high, (bounds, name)
    assert allowed > 2


def test_intervals_shrink_with_the_root_of_the_number_of_runs():
    spans = []
    for points in (15, 60):  # Of one program.
        x, y = frontier(points=points)
        band = intervals.band(fit("power_floor", {"x": x[x > 3]}, y[x > 3]), {"x": [1e5]})
        spans.append(math.log(band.high[0] / band.low[0]))
    assert 1.5 < spans[0] / spans[1] < 3.2  # The root of four, and Student's t.


@pytest.mark.parametrize("unit", [slow(1e-9), 1e15])
def test_intervals_do_not_depend_on_units(unit):
    x, y = frontier()
    one, other = (
        intervals.parameter_intervals(fit("frontier", {"x": scale * x}, y)) for scale in (1.0, unit)
    )
    for name, factor in (("b", 1.0), ("c", 1.0), ("d", unit)):
        assert other[name].low == pytest.approx(factor * one[name].low, rel=2e-3)
        assert other[name].high == pytest.approx(factor * one[name].high, rel=2e-3)


def test_dependent_errors_widen_an_interval():
    """Each run evaluated five times, with one error: five times the rows say no more."""
    x, y = power_law(points=12)
    once = intervals.band(fit("power", {"x": x}, y, method=LEAST_SQUARES), {"x": [1e4]})
    many = fit("power", {"x": np.tile(x, 5)}, np.tile(y, 5), method=LEAST_SQUARES)
    naive = intervals.band(many, {"x": [1e4]})
    honest = intervals.band(many, {"x": [1e4]}, clusters=np.tile(np.arange(12), 5))
    span = lambda b: math.log(b.high[0] / b.low[0])  # noqa: E731
    assert span(naive) < 0.45 * span(once)
    assert 0.7 * span(once) < span(honest) < 1.4 * span(once)


def test_clusters_whose_errors_cancel_do_not_narrow_an_interval():
    x = np.repeat(np.logspace(0, 3, 12), 2)
    fitted = fit(
        "power", {"x": x}, x**-0.35 * np.exp(np.tile([-0.05, 0.05], 12)), method=LEAST_SQUARES
    )
    bands = [
        intervals.band(fitted, {"x": [1e4]}, clusters=clusters)
        for clusters in (None, np.repeat(np.arange(12), 2))
    ]
    naive, honest = (math.log(band.high[0] / band.low[0]) for band in bands)
    # Of the same noise, with Student's t of 10 degrees of freedom for that of 22.
    want = stats.t.ppf(0.95, 10) / stats.t.ppf(0.95, 22)
    assert honest / naive == pytest.approx(want, rel=1e-3)


def test_bootstrap_draws_clusters_whole_and_repeats():
    x, y = power_law(points=30)
    fitted = fit("power", {"x": np.repeat(x, 2)}, np.repeat(y, 2), method=LEAST_SQUARES)
    drawn = [bootstrap(fitted, draws=300, seed=s) for s in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0].params["c"], drawn[1].params["c"])
    assert (drawn[0].params["c"] != drawn[2].params["c"]).any()
    together = bootstrap(fitted, draws=300, clusters=np.repeat(np.arange(30), 2))
    ratio = np.std(together.params["c"]) / np.std(drawn[0].params["c"])
    assert 1.2 < ratio < 1.65  # The root of two, from half as many independent rows.
    band = percentile_band(fitted, together, {"x": [1e4, 1e5]})
    assert (band.low < band.estimate).all() and (band.estimate < band.high).all()


def test_bootstrap_of_a_line_has_its_standard_error():
    x, y = power_law(points=60)
    fitted = fit("power", {"x": x}, y, method=LEAST_SQUARES)
    drawn = bootstrap(fitted, draws=500)
    assert np.std(drawn.params["c"]) == pytest.approx(
        stats.linregress(np.log(x), np.log(y)).stderr, rel=0.2
    )


def test_too_few_clusters_and_odd_levels_are_refused():
    x, y = power_law()
    fitted = fit("power_floor", {"x": x}, y)
    with pytest.raises(DataError, match="3 clusters are too few"):
        intervals.parameter_intervals(fitted, clusters=np.arange(12) % 3)
    with pytest.raises(DataError, match="1 clusters are too few"):
        intervals.parameter_intervals(fitted, clusters=np.zeros(12))
    with pytest.raises(DataError, match="2 cluster names for 12 fitted rows"):
        intervals.band(fitted, {"x": [1.0]}, clusters=np.arange(2))
    with pytest.raises(DataError, match="must be a share"):
        intervals.band(fitted, {"x": [1.0]}, level=90.0)


def test_a_quantity_is_profiled_like_a_prediction():
    y = law("chinchilla").predict(CHINCHILLA, {"n": N, "d": D})
    y *= np.exp(0.02 * np.random.default_rng(3).standard_normal(len(y)))
    fitted = fit("chinchilla", {"n": N, "d": D}, y)
    parameters = intervals.parameter_intervals(fitted)
    for name, value in CHINCHILLA.items():
        wide = parameters[name]
        assert wide.low < fitted.params[name] < wide.high
        assert wide.low < value < wide.high or name != "E"


def test_ninety_percent_intervals_cover_about_ninety():
    """A short sample, whose share has a standard error of .042; the campaign has all 200."""
    share, _ = coverage(SETTINGS[0], ("profile",), draws=50, seed=1)["profile"]
    assert 0.80 <= share <= 1.0


@pytest.mark.campaign
def test_ninety_percent_intervals_cover_ninety():
    """Acceptance: 200 frontiers of FACTS; the standard error of the share is .021."""
    share, _ = coverage(SETTINGS[0], ("profile",), draws=200, seed=1)["profile"]
    assert 0.87 <= share <= 0.95


@pytest.mark.campaign
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_coverage_in_other_settings(setting):
    share, _ = coverage(setting, ("profile",), draws=400, seed=2)["profile"]
    assert 0.86 <= share <= 0.97  # Binomial: .90 +- 2.6 standard errors; bounds make it wider.


@pytest.mark.slow
def test_four_thousand_refits_take_seconds():
    seconds = speed(count=4_000, against=20)
    assert seconds["ours, first call, with compilation"] < 20
    assert seconds["ours, share converged"] > 0.99
    assert seconds["SciPy, exact gradients, over our later calls"] > 20
    assert seconds["SciPy, exact gradients, its loss over ours, least"] > 1 - 1e-6
