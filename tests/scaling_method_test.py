"""The choices of a fit: the loss, weights, bounds and initial values of publications."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from vit_jax.errors import ConfigError, DataError
from vit_jax.scaling.fitting import fit
from vit_jax.scaling.laws import law
from vit_jax.scaling.method import LEAST_SQUARES, Method, scaled_values
from vit_jax.scaling.question import Question, parse_bounds, parse_starts
from vit_jax.scaling.solver import parameters_of
from vit_jax.scaling.study import study

pytestmark = pytest.mark.medium

X = np.geomspace(10, 1e4, 12)
Y = (2 * X**-0.4 + 0.1) * np.exp(0.02 * np.random.default_rng(0).standard_normal(12))


def published_runs():
    """240 runs with a few outliers at the least data, as in those of Hoffmann et al."""
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(7, 10, 240), 10 ** rng.uniform(9, 11.5, 240)
    true = {"E": 1.82, "A": 482.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366}
    y = law("chinchilla").predict(true, {"n": n, "d": d})
    y *= np.exp(0.004 * rng.standard_t(2, 240))
    y[np.argsort(d)[:5]] *= 1.06
    return n, d, y


def test_the_published_procedure_gives_the_same_parameters():
    """Hoffmann et al., approach 3: Huber's loss with delta .001, through log-sum-exp, by L-BFGS."""
    n, d, y = published_runs()
    log_n, log_d, log_y = np.log(n), np.log(d), np.log(y)

    def objective(p):
        e, a, b, alpha, beta = p
        terms = np.stack([np.full(240, e), a - alpha * log_n, b - beta * log_d])
        total = np.logaddexp.reduce(terms, axis=0)
        shares = np.exp(terms - total)
        pull = np.clip(total - log_y, -1e-3, 1e-3)
        slopes = [*shares, -shares[1] * log_n, -shares[2] * log_d]
        near = np.abs(pull)
        return np.sum(near * (np.abs(total - log_y) - near / 2)), np.array(slopes) @ pull

    start = [0.5, 5.0, 5.0, 0.5, 0.5]  # One of their grid. Scaled, or the tolerance stops it early.
    out = minimize(
        lambda p: tuple(1e4 * v for v in objective(p)), start, jac=True, method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 20_000, "maxfun": 40_000},
    )  # fmt: skip
    ours = fit("chinchilla", {"n": n, "d": d}, y, method=Method(delta=1e-3))
    at = [
        *(math.log(ours.params[k]) for k in ("E", "A", "B")),
        *map(ours.params.get, ("alpha", "beta")),
    ]
    assert objective(at)[0] <= 1e-4 * out.fun * (1 + 1e-6)
    theirs = dict(zip(("E", "A", "B"), np.exp(out.x[:3]), strict=True))
    theirs |= dict(zip(("alpha", "beta"), out.x[3:], strict=True))
    for name, value in theirs.items():
        assert ours.params[name] == pytest.approx(value, rel=5e-3), name
    # Another loss is another answer: that is why the choice must be possible.
    squares = fit("chinchilla", {"n": n, "d": d}, y, method=LEAST_SQUARES)
    assert abs(squares.params["B"] / ours.params["B"] - 1) > 0.05


def test_a_law_without_its_floor_is_the_power_law():
    floorless = fit("power_floor", {"x": X}, Y, method=Method(math.inf, bounds={"e": (0, 0)}))
    plain = fit("power", {"x": X}, Y, method=LEAST_SQUARES)
    for name in "bc":
        assert floorless.params[name] == pytest.approx(plain.params[name], rel=1e-6)
        # The fixed parameter costs no degree of freedom.
        assert floorless.standard_errors[name] == pytest.approx(
            plain.standard_errors[name], rel=1e-5
        )
    assert floorless.identified["e"] == "fixed" and floorless.params["e"] == 0
    # It needs no more rows than parameters that are free.
    assert fit("power_floor", {"x": X[:3]}, Y[:3], method=Method(bounds={"e": (0, 0)})).n == 3
    with pytest.raises(DataError, match="needs at least 4 rows"):
        fit("power_floor", {"x": X[:3]}, Y[:3])


def test_bounds_are_kept_and_are_in_the_units_of_the_law():
    free = fit("frontier", {"x": X}, Y)
    assert free.params["c"] > 0.05
    bound = fit("frontier", {"x": X}, Y, method=Method(bounds={"c": (0, 0.05), "d": (20, 30)}))
    assert bound.params["c"] == pytest.approx(0.05) and "c" in bound.at_bound
    assert 20 - 1e-6 <= bound.params["d"] <= 30 + 1e-6


def test_initial_values_are_in_the_units_of_the_law():
    for name, params in (
        ("chinchilla", {"E": 1.8, "A": 482.0, "B": 2085.0, "alpha": 0.35, "beta": 0.37}),
        ("frontier", {"a": 0.6, "b": 0.3, "c": 0.1, "d": 5.0}),
    ):
        of = law(name)
        scales = np.log([1e8, 1e10][: len(of.inputs)])
        scaled = scaled_values(of, {k: np.array([v]) for k, v in params.items()}, scales)
        theta = [np.log(scaled[p.name]) if p.log else scaled[p.name] for p in of.table]
        back = parameters_of(of, np.array(theta), scales)
        assert {k: float(v[0]) for k, v in back.items()} == pytest.approx(params)
    n, d, y = published_runs()
    starts = {"alpha": (0.2, 0.5), "beta": (0.5,), "A": (100.0, 1e4), "E": (1.0,)}
    usual = fit("chinchilla", {"n": n, "d": d}, y, method=Method(delta=1e-3))
    asked = fit("chinchilla", {"n": n, "d": d}, y, method=Method(1e-3, starts=starts))
    assert asked.params == pytest.approx(usual.params, rel=1e-4)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"delta": 0.0}, "huber_delta=0.0: write a log residual above 0"),
        ({"bounds": {"e": (1, 0)}}, "bounds of e: 1 to 0 is empty"),
        ({"bounds": {"alpa": (0, 1)}}, "has no parameter alpa"),
        ({"bounds": {"b": (0.1, 1)}}, "Bound the exponent"),
        ({"bounds": {"e": (-1, 1)}}, "e of the law power_floor must be at least 0, not -1"),
        ({"starts": {"b": (0.0, 1.0)}}, "b of the law power_floor must be above 0"),
        ({"starts": {"c": ()}}, "starts of c: write finite numbers"),
        ({"starts": {"c": [-0.1] * 300, "e": [0.1] * 300}}, "90,000 combinations"),
    ],
)
def test_methods_that_do_not_fit_the_law(method, message):
    with pytest.raises(ConfigError, match=message):
        fit("power_floor", {"x": X}, Y, method=Method(**method))


def test_questions_name_their_method():
    table = {"x": X, "y": Y, "seen": np.arange(12) % 3 + 1}
    method = Method(1e-3, bounds=parse_bounds(["e=0:1"]), starts=parse_starts(["c=-0.5,-0.3"]))
    question = {"law": "power_floor", "y": "y", "columns": {"x": "x"}}
    answered = study(table, Question(**question, weights="seen", method=method), runs="a")
    (entry,) = answered.result["groups"]
    repeated = fit(
        "power_floor", {"x": X.repeat(table["seen"])}, Y.repeat(table["seen"]), method=method
    )
    for name, value in repeated.params.items():
        assert entry["params"][name]["estimate"] == pytest.approx(value, rel=1e-5)
    assert (
        "Fitted by Huber's loss of log residuals, delta 0.001 (given); weights seen; e from 0 to "
        "1; c started from -0.5, -0.3." in str(answered)
    )
    assert "equal weights; default bounds and starts" in str(
        study(table, Question(**question), runs="a")
    )
    for text, wrong in (("bounds", "e"), ("bounds", "e=1:2:3"), ("starts", "c=a")):
        with pytest.raises(ConfigError, match=f"--{text}={wrong}: write"):
            {"bounds": parse_bounds, "starts": parse_starts}[text]([wrong])
    with pytest.raises(ConfigError, match="choose a law, not auto"):
        Question(y="y", columns={"x": "x"}, method=method)
