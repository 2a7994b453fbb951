"""Every law against its formula, written out a second time in plain NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from vit_jax.errors import ConfigError
from vit_jax.scaling.laws import LAWS, law

RNG = np.random.default_rng(0)
X = np.logspace(1, 9, 41)
N, D = 10 ** RNG.uniform(6, 10, 41), 10 ** RNG.uniform(7, 11, 41)
U = D / 10 ** RNG.uniform(0, 2, 41)
CHINCHILLA = {"E": 1.82, "A": 482.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366}


def repeat(p, n, d, u):
    """Muennighoff et al. 2023, equations 5 and 6, and the optimum of their appendix."""
    g = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    best_n = (u * g) ** (p["beta"] / p["alpha"]) * g
    unique_n = np.minimum(best_n, n)
    r_d, r_n = d / u - 1, n / unique_n - 1
    d_eff = u + u * p["R_D"] * (1 - np.exp(-r_d / p["R_D"]))
    n_eff = unique_n + unique_n * p["R_N"] * (1 - np.exp(-r_n / p["R_N"]))
    return p["E"] + p["A"] / n_eff ** p["alpha"] + p["B"] / d_eff ** p["beta"]


FORMULAS = {
    "power": ({"b": 33.0, "c": -0.21}, {"x": X}, lambda p, x: p["b"] * x ** p["c"]),
    "power_floor": (
        {"b": 33.0, "c": -0.21, "e": 0.1},
        {"x": X},
        lambda p, x: p["b"] * x ** p["c"] + p["e"],
    ),
    "m3": (
        {"b": 33.0, "g": 1e-6, "c": 0.21},
        {"x": X},
        lambda p, x: p["b"] * (1 / x + p["g"]) ** p["c"],
    ),
    "frontier": (
        {"a": 0.63, "b": 0.32, "c": 0.12, "d": 52.0},
        {"x": X},
        lambda p, x: p["a"] * (x + p["d"]) ** -p["b"] + p["c"],
    ),
    "chinchilla": (
        CHINCHILLA,
        {"n": N, "d": D},
        lambda p, n, d: p["E"] + p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"],
    ),
    "chinchilla_repeat": (
        CHINCHILLA | {"R_N": 5.3, "R_D": 15.4},
        {"n": N, "d": D, "u": U},
        repeat,
    ),
    "shape": (
        {"alpha": 50.0, "a": 0.9, "beta": 0.002, "b": 0.6, "xi": 0.5, "c": 0.4, "eps": 0.05},
        {"x": N, "t": D},
        lambda p, x, t: (
            p["alpha"] * x ** -p["a"]
            + (p["beta"] * x ** p["b"] + p["xi"]) * t ** -p["c"]
            + p["eps"]
        ),
    ),
    "bnsl": (
        {"a": 0.1, "b": 30.0, "c0": 0.2, "c1": 0.15, "d1": 2e4, "f1": 0.4},
        {"x": X},
        lambda p, x: (
            p["a"]
            + p["b"] * x ** -p["c0"] * (1 + (x / p["d1"]) ** (1 / p["f1"])) ** (-p["c1"] * p["f1"])
        ),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_prediction_is_the_formula(name):
    params, inputs, formula = FORMULAS[name]
    np.testing.assert_allclose(
        law(name).predict(params, inputs), formula(params, *inputs.values()), rtol=1e-12
    )


@pytest.mark.parametrize("a", [0.003, 0.3, 1.0, 3.0, 15.0])
@pytest.mark.parametrize("c", [-0.1, -0.5, -2.0])
def test_m4_solves_its_equation(a, c):
    p = {"a": a, "b": 7.0, "c": c, "e": 0.1, "e0": 0.95}
    x = np.logspace(-3, 6, 31)
    y = law("m4").predict(p, {"x": x})
    assert ((y > 0.1) & (y <= 0.95)).all() and (np.diff(y) <= 0).all()

    def root(x):
        # In v, where y = e + (e0 - e) sigmoid(v): both ends of y are approached without rounding.
        log_s, log_rest = lambda v: -np.logaddexp(0, -v), lambda v: -np.logaddexp(0, v)
        right = math.log(p["b"]) + c * math.log(x) - (1 - a) * math.log(0.85)
        v = brentq(lambda v: log_s(v) - a * log_rest(v) - right, -1e4, 1e4, xtol=1e-13)
        return 0.1 + 0.85 * math.exp(log_s(v))

    np.testing.assert_allclose(y, [root(v) for v in x], rtol=1e-11)


def test_m4_has_the_derivatives_of_the_implicit_function():
    p = {"a": 0.4, "b": 30.0, "c": -0.4, "e": 0.1, "e0": 0.95}
    x = np.array([50.0, 1e4])
    with jax.enable_x64(True):
        slopes = jax.jit(jax.jacfwd(lambda p: law("m4").log_predict(p, {"x": np.log(x)}, jnp)))(p)
        for name, value in p.items():
            up, down = (
                np.log(law("m4").predict(p | {name: value * (1 + h)}, {"x": x}))
                for h in (1e-6, -1e-6)
            )
            np.testing.assert_allclose(slopes[name], (up - down) / (2e-6 * value), rtol=1e-7)


@pytest.mark.parametrize("name", LAWS)
def test_scaled_inputs_with_rescaled_parameters_predict_the_same(name):
    """What a fit searches in is the paper's law: parameters of x / 1000 come back as those of x."""
    of = law(name)
    values = {parameter.name: 0.3 + 0.1 * i for i, parameter in enumerate(of.table)}
    values |= {k: -0.4 for k in ("c",) if name in ("power", "power_floor", "m4")}
    values |= {"e0": 2.0} if name == "m4" else {}
    scales = dict.fromkeys(of.inputs, math.log(1000.0))
    small = {role: np.array([0.2, 1.0, 5.0]) * (i + 1) for i, role in enumerate(of.inputs)}
    back = {k: float(v) for k, v in of.rescale(values, scales, np).items()}
    np.testing.assert_allclose(
        of.predict(back, {role: 1000 * x for role, x in small.items()}),
        of.predict(values, small),
        rtol=1e-12,
    )


def test_repeated_examples_are_worth_less_and_a_single_epoch_is_chinchilla():
    parameters = CHINCHILLA | {"R_N": 1e5, "R_D": 15.4}
    once = law("chinchilla_repeat").predict(parameters, {"n": N, "d": D, "u": D})
    fresh = law("chinchilla").predict(CHINCHILLA, {"n": N, "d": D})
    assert (once >= fresh * (1 - 1e-12)).all()
    np.testing.assert_allclose(once, fresh, rtol=0.01)
    losses = [
        law("chinchilla_repeat").predict(parameters, {"n": 1e8, "d": 1e11, "u": 1e11 / epochs})
        for epochs in (1, 4, 40, 400)
    ]
    assert (np.diff(losses) > 0).all()


def test_predictions_far_outside_the_data_are_finite():
    for name, (params, inputs, _) in FORMULAS.items():
        for factor in (1e-12, 1e12):
            far = {role: x * factor for role, x in inputs.items()}
            assert np.isfinite(law(name).predict(params, far)).all(), name


def test_names_inputs_and_parameters_are_checked():
    with pytest.raises(ConfigError, match='Did you mean "chinchilla"'):
        law("chinchila")
    with pytest.raises(ConfigError, match="has the inputs n, d, not x"):
        law("chinchilla").predict(CHINCHILLA, {"x": X})
    with pytest.raises(ConfigError, match="has the parameters b, c, not b"):
        law("power").predict({"b": 1.0}, {"x": X})
    with pytest.raises(ConfigError, match="1 of 2 values are not, such as"):
        law("power").predict({"b": 1.0, "c": 1.0}, {"x": [1.0, -1.0]})
