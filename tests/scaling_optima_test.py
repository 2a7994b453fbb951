"""Decisions from laws: optima, crossings, IsoFLOP valleys, the Pareto frontier."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from tests import scaling_tables
from tests.scaling_fitting_test import SHAPE_T, SHAPE_X
from tests.scaling_laws_test import CHINCHILLA, FORMULAS, D, N
from vit_jax.errors import DataError
from vit_jax.scaling import curves, optima
from vit_jax.scaling.fitting import fit
from vit_jax.scaling.intervals import Band, band
from vit_jax.scaling.isoflop import bias, isoflop, valley
from vit_jax.scaling.laws import law
from vit_jax.scaling.pareto import pareto

pytestmark = pytest.mark.medium

SHAPE = FORMULAS["shape"][0]


def test_compute_optimal_point_of_the_published_replication():
    """FACTS: at 5.88e23 FLOPs N* = 7.3e10 and D* = 1.34e12."""
    n, d = optima.optimal_point(CHINCHILLA, 5.88e23)
    assert n == pytest.approx(7.3e10, rel=0.005)
    assert d == pytest.approx(1.34e12, rel=0.005)
    assert 6 * n * d == pytest.approx(5.88e23, rel=1e-12)


@pytest.mark.parametrize("flops_per", [6.0, 1182.0])
def test_no_other_size_of_the_budget_is_better(flops_per):
    n, _ = optima.optimal_point(CHINCHILLA, 1e22, flops_per=flops_per)

    def loss(log_n):
        size = {"n": math.exp(log_n), "d": 1e22 / flops_per / math.exp(log_n)}
        return float(law("chinchilla").predict(CHINCHILLA, size))

    lowest = minimize_scalar(loss, bracket=(math.log(n) - 2, math.log(n) + 2.5), tol=1e-12)
    assert math.exp(lowest.x) == pytest.approx(n, rel=1e-4)


def test_compute_optimal_has_intervals_and_meets_the_budget():
    y = law("chinchilla").predict(CHINCHILLA, {"n": N, "d": D})
    y *= np.exp(0.01 * np.random.default_rng(1).standard_normal(len(y)))
    fitted = optima.compute_optimal(fit("chinchilla", {"n": N, "d": D}, y), 5.88e23)
    assert 6 * fitted.n.estimate * fitted.d.estimate == pytest.approx(5.88e23, rel=1e-9)
    # C fixes the product, so the ends mirror each other.
    assert 6 * fitted.n.low * fitted.d.high == pytest.approx(5.88e23, rel=0.01)
    assert fitted.n.low < 7.3e10 < fitted.n.high
    assert fitted.y.low < fitted.y.estimate < fitted.y.high


def test_no_optimum_where_one_input_does_not_matter():
    y = 1.8 + 2085 / D**0.366 * np.exp(0.001 * np.random.default_rng(1).standard_normal(len(D)))
    fitted = fit("chinchilla", {"n": N, "d": D}, y)
    if not fitted.at_bound:  # Then A is small, and nothing is known of where the optimum is.
        wide = optima.compute_optimal(fitted, 1e22).n
        assert wide.high / wide.low > 10
    else:
        with pytest.raises(DataError, match="lie at their bounds"):
            optima.compute_optimal(fitted, 1e22)
    with pytest.raises(DataError, match="need a fit of chinchilla"):
        optima.compute_optimal(fit("power", {"x": D}, y), 1e22)


def shape_fit(noise=0.0):
    y = law("shape").predict(SHAPE, {"x": SHAPE_X, "t": SHAPE_T})
    z = np.random.default_rng(0).standard_normal(len(y))
    return fit("shape", {"x": SHAPE_X, "t": SHAPE_T}, y * np.exp(noise * z))


def test_best_shape_minimises_the_law_inside_the_sweep():
    params = dict(
        zip(
            ("alpha", "a", "beta", "b", "xi", "c", "eps"),
            (3000.0, 1.2, 0.0167, 0.9, 0.5, 0.4, 0.05),
            strict=True,
        )
    )
    y = law("shape").predict(params, {"x": SHAPE_X, "t": SHAPE_T})
    of = fit("shape", {"x": SHAPE_X, "t": SHAPE_T}, y)
    optimum = optima.shape_optimal(of, 200.0)
    lowest = minimize_scalar(
        lambda x: float(law("shape").predict(params, {"x": x, "t": 200.0})),
        bounds=(300, 4000),
        method="bounded",
        options={"xatol": 1e-6},
    )
    assert optimum.x.estimate == pytest.approx(lowest.x, rel=1e-4)
    assert optimum.exponent.estimate == pytest.approx(0.4 / 2.1, rel=1e-6)
    later = optima.shape_optimal(of, 400.0)
    assert later.x.estimate / optimum.x.estimate == pytest.approx(2 ** (0.4 / 2.1), rel=1e-6)


def test_an_optimum_at_the_edge_of_the_sweep_is_refused():
    with pytest.raises(DataError, match="Sweep further"):
        optima.shape_optimal(shape_fit(), 200.0)


def test_joint_update_multiplies_the_shape_by_the_exponents():
    """Getting ViT in Shape: x_k tau^(s_k / 3), s = .22, .45, .60 of width, depth and MLP."""
    grown = optima.joint_update(
        {"width": 608.0, "depth": 10.0, "mlp": 928.0},
        {"width": 0.22, "depth": 0.45, "mlp": 0.6},
        8.0,
    )
    assert grown == pytest.approx(
        {"width": 608 * 2**0.22, "depth": 10 * 2**0.45, "mlp": 928 * 2**0.6}
    )
    with pytest.raises(DataError, match="needs exponents of those"):
        optima.joint_update({"width": 1.0}, {"depth": 1.0}, 2.0)


@pytest.mark.parametrize(
    ("spread", "percent"), [(2.0, -0.33), (4.0, -1.30), (8.0, -2.90), (16.0, -5.10)]
)
def test_isoflop_bias_has_the_published_figures(spread, percent):
    """FACTS: by how much a parabola misplaces D*, for Hoffmann et al.'s exponents, 15 points."""
    assert 100 * bias(spread, alpha=0.34, beta=0.28, points=15) == pytest.approx(percent, abs=0.02)


def isoflop_sweep(spread=4.0, points=9):
    budgets = np.repeat(np.logspace(18, 22, 5), points)
    best = np.array([optima.optimal_point(CHINCHILLA, c) for c in budgets])
    n = best[:, 0] * np.tile(spread ** np.linspace(-1, 1, points), 5)
    d = budgets / 6 / n
    return budgets, n, d, law("chinchilla").predict(CHINCHILLA, {"n": n, "d": d})


def test_valleys_have_the_predicted_bias_and_the_right_exponent():
    budgets, n, d, y = isoflop_sweep()
    by_d, by_n = isoflop(budgets, d, y), isoflop(budgets, n, y)
    expected = 1 + bias(4.0, alpha=0.348, beta=0.366, points=9)
    for one in by_d.valleys:
        _, best = optima.optimal_point(CHINCHILLA, one.budget)
        assert one.best / best == pytest.approx(expected, rel=1e-6)
    # Of the same points, the direct fit is exact.
    direct = fit("chinchilla", {"n": n, "d": d}, y)
    assert direct.params["alpha"] == pytest.approx(0.348, rel=1e-6)
    assert by_n.exponent == pytest.approx(0.366 / 0.714, rel=1e-6)
    assert by_d.exponent == pytest.approx(0.348 / 0.714, rel=1e-6)
    assert len(by_d.valleys) == 5 and by_d.spread == pytest.approx(4.0, rel=0.05)


def test_valleys_without_a_minimum_are_refused():
    x = np.array([1.0, 2.0, 4.0, 8.0])
    with pytest.raises(DataError, match="opens downwards"):
        valley(1e18, x, 1 - 0.1 * (np.log(x) - 1) ** 2)
    with pytest.raises(DataError, match=r"are all 0\.5: they have no valley"):
        valley(1e18, x, np.full(4, 0.5))
    with pytest.raises(DataError, match="a parabola needs 3"):
        valley(1e18, x[:2], x[:2])
    assert not valley(1e18, x, 1 / x + 0.1).interior
    with pytest.raises(DataError, match="0 of 2 budgets have their optimum"):
        isoflop(np.repeat([1.0, 10.0], 4), np.tile(x, 2), np.tile(1 / x + 0.1, 2))


@pytest.mark.parametrize(
    ("vit", "cnn", "millions"), [("ViT-L/16", "ResNet152x2", 80), ("ViT-B/32", "ResNet50x1", 24)]
)
def test_published_crossings_of_vit_and_cnn(vit, cnn, millions):
    """FACTS: L/16 passes R152x2 near 80M images of JFT, B/32 passes R50x1 near 24M."""
    table = scaling_tables.read("vit2020_fig4_fewshot_vs_samples.csv")
    x = table["jft_samples"][:4]
    error = {k: 100 - table["linear5shot_top1"][table["model"] == k] for k in (vit, cnn)}
    grid = np.logspace(np.log10(9e6), np.log10(3e8), 2000)
    crossing = curves.crossover(
        grid, curves.interpolated(grid, x, error[vit]), curves.interpolated(grid, x, error[cnn])
    )
    assert crossing.x.estimate == pytest.approx(millions * 1e6, rel=0.02)
    assert crossing.x.low == pytest.approx(crossing.x.estimate, rel=1e-3)
    # With a point of error either way the crossing is an interval, or open.
    wide = [curves.interpolated(grid, x, error[k], half_width=np.ones(4)) for k in (vit, cnn)]
    unsure = curves.crossover(grid, *wide).x
    assert unsure.low < crossing.x.estimate < unsure.high


def exact(y):
    return Band(y, y, y, 0.9, "curve")


def test_curves_that_do_not_cross_have_no_crossing():
    grid = np.logspace(3, 6, 50)
    crossing = curves.crossover(grid, exact(grid**-0.3), exact(2 * grid**-0.3))
    assert crossing.x is None and crossing.reason.endswith("the first curve leads throughout.")
    y = 2 * grid**-0.3
    unsure = Band(y, y / 3, y * 3, 0.9, "curve")
    assert "not by more than the intervals" in curves.crossover(grid, exact(y / 2), unsure).reason


def test_ratio_of_images_for_the_same_error():
    grid = np.logspace(2, 8, 4001)
    first, second = grid**-0.3, 3 * grid**-0.3
    factor = curves.more_images(grid, exact(first), exact(second), at=1e4)
    assert factor.estimate == pytest.approx(3 ** (1 / 0.3), rel=1e-4)
    assert factor.low == pytest.approx(factor.estimate, rel=1e-3)
    tenth = exact(np.full(len(grid), 0.1))
    need = curves.more_images(grid, tenth, exact(second), at=1e4)
    assert need.estimate * 1e4 == pytest.approx(30 ** (1 / 0.3), rel=1e-4)
    unreached = exact(np.full(len(grid), 1e-6))
    assert curves.more_images(grid, unreached, exact(second), at=1e4) is None
    # A tenth of error either way of a slope of .3 is a factor of 1.1^(1 / .3) of images.
    wide = Band(second, second / 1.1, second * 1.1, 0.9, "curve")
    need = curves.more_images(grid, tenth, wide, at=1e4)
    assert need.high / need.estimate == pytest.approx(1.1 ** (1 / 0.3), rel=1e-3)
    assert need.estimate / need.low == pytest.approx(1.1 ** (1 / 0.3), rel=1e-3)


def test_fitted_curves_cross_where_they_should():
    x = np.logspace(3, 6, 10)
    rng = np.random.default_rng(0)
    grid = np.logspace(3, 6, 60)
    bands = []
    for params in ({"b": 20.0, "c": -0.5}, {"b": 1.2, "c": -0.2}):
        y = law("power").predict(params, {"x": x}) * np.exp(0.05 * rng.standard_normal(10))
        bands.append(band(fit("power", {"x": x}, y), {"x": grid}))
    crossing = curves.crossover(grid, *bands)
    truth = (20 / 1.2) ** (1 / 0.3)
    assert crossing.x.low < truth < crossing.x.high and crossing.x.high < 3 * crossing.x.low
    assert "the first curve leads" in crossing.reason


points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30)


@given(points)
def test_pareto_frontier_is_the_non_dominated_runs(rows):
    x, y = (np.array(v) for v in zip(*rows, strict=True))
    on = pareto(x, y)
    for i in range(len(x)):
        beaten = ((x <= x[i]) & (y <= y[i]) & ((x < x[i]) | (y < y[i]))).any()
        first = not ((x[:i] == x[i]) & (y[:i] == y[i])).any()
        assert on[i] == (not beaten and first)


def test_runs_without_a_result_are_on_no_frontier():
    on = pareto(np.array([1.0, 2.0, 3.0]), np.array([np.nan, np.inf, 0.5]))
    np.testing.assert_array_equal(on, [False, False, True])
