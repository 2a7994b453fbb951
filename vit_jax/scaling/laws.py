"""The laws that a scaling study fits, with their papers' parameters.

All but M4 are a sum of positive terms, each a coefficient times a shape: y = sum_j c_j f_j(x; p). A
law is one table of terms, with shapes as logs. Predictions, initial values (`varpro`, which solves
for the coefficients) and floors are derived from it. M4 is implicit, and solved by Newton's method.

Inputs are logs of inputs divided by their geometric mean in the fitted data, so parameters are of
order one; `Law.rescale` converts them back to the papers' units.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float

from vit_jax.errors import ConfigError, did_you_mean

Parameters = dict[str, Any]  # Numbers, arrays or traced arrays, by parameter.
_BIG = 1e6


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A free parameter of a law, with its bounds and initial values.

    Attributes:
      name: name in the paper.
      log: whether a fit searches for its log, so that its interval is symmetric in factors.
      low: lower bound. For all but floors, bounds are for inputs with geometric mean 1.
      high: upper bound.
      starts: initial values; () for a coefficient, which `varpro` solves for.
      floor: whether it is the irreducible error, which is at most the largest y.
    """

    name: str
    log: bool = False
    low: float = 0.0
    high: float = _BIG
    starts: tuple[float, ...] = ()
    floor: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
    """A formula for y, an error or a loss, as a function of one or more inputs.

    The three functions take the array module as their last argument: NumPy needs no compilation.

    Attributes:
      name: value of `--law`.
      formula: the formula as text, with the paper's parameters.
      source: the paper.
      inputs: roles of the inputs, to which columns of a table are assigned.
      table: the parameters, in the formula's order.
      terms: (parameters, logs of inputs) -> {coefficient: log of its shape}; None for an implicit
        law.
      rescale: (parameters of scaled inputs, logs of the scales) -> the paper's parameters.
      log_predict: (parameters, logs of inputs) -> log of y.
      pareto: whether the law is of the best y for each x: a fit selects the Pareto frontier first.
    """

    name: str
    formula: str
    source: str
    inputs: tuple[str, ...]
    table: tuple[Parameter, ...]
    terms: Callable[[Parameters, Parameters, ModuleType], Parameters] | None
    rescale: Callable[[Parameters, Parameters, ModuleType], Parameters]
    log_predict: Callable[[Parameters, Parameters, ModuleType], Any]
    pareto: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        """Returns the names of the parameters, in order."""
        return tuple(parameter.name for parameter in self.table)

    def predict(
        self, params: Mapping[str, float], inputs: Mapping[str, Any]
    ) -> Float[np.ndarray, "*n"]:
        """Predicts errors in float64.

        Args:
          params: a value for every parameter.
          inputs: positive numbers or arrays of one shape, for every role.

        Raises:
          ConfigError: a parameter or an input is missing or unknown, or an input is not positive.
        """
        if set(params) != set(self.parameters):
            raise ConfigError(
                f"The law {self.name} has the parameters {', '.join(self.parameters)}, not "
                f"{', '.join(params)}."
            )
        logs = dict(zip(self.inputs, log_inputs(self, inputs), strict=True))
        parameters = {name: np.float64(params[name]) for name in self.parameters}
        with np.errstate(all="ignore"):  # Far outside the data terms are 0 or infinite.
            return np.asarray(np.exp(self.log_predict(parameters, logs, np)))


def log_inputs(law: Law, inputs: Mapping[str, Any]) -> tuple[Float[np.ndarray, "*n"], ...]:
    """Returns the logs of the inputs, in the order of the law's roles, broadcast to one shape.

    Raises:
      ConfigError: a role is missing or unknown, or a value is not a positive finite number.
    """
    if set(inputs) != set(law.inputs):
        raise ConfigError(
            f"The law {law.name}, {law.formula}, has the inputs {', '.join(law.inputs)}, not "
            f"{', '.join(inputs) or 'none'}: name a column for each."
        )
    values = [np.asarray(inputs[role], np.float64) for role in law.inputs]
    for role, value in zip(law.inputs, values, strict=True):
        bad = ~(np.isfinite(value) & (value > 0))
        if bad.any():
            raise ConfigError(
                f"The input {role} of the law {law.name} must be positive and finite, but "
                f"{bad.sum()} of {bad.size} values are not, such as {value[bad].flat[0]}."
            )
    return tuple(np.asarray(np.log(value)) for value in np.broadcast_arrays(*values))


def law(name: str) -> Law:
    """Returns a law by its name.

    Raises:
      ConfigError: the name is unknown.
    """
    if name not in LAWS:
        raise ConfigError(f"{name!r} is not a scaling law. {did_you_mean(name, LAWS)}")
    return LAWS[name]


def _sum_law(
    terms: Callable[[Parameters, Parameters, ModuleType], Parameters], **fields: Any
) -> Law:
    def log_predict(p: Parameters, s: Parameters, xp: ModuleType) -> Any:
        return xp.log(sum(p[name] * xp.exp(shape) for name, shape in terms(p, s, xp).items()))

    return Law(terms=terms, log_predict=log_predict, **fields)


# Initial values of exponents; those of published laws lie between .05 and 1.2.
_EXPONENTS = (0.05, 0.1, 0.17, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
_FEW = (0.1, 0.25, 0.5, 1.0)


def _coefficient(name: str) -> Parameter:
    return Parameter(name, log=True, low=1e-9)


def _floor(name: str) -> Parameter:
    return Parameter(name, floor=True)


_REVISITING = "Alabdulmohsin et al. 2022, Revisiting Neural Scaling Laws (2209.06640)"

POWER = _sum_law(
    lambda p, s, xp: {"b": p["c"] * s["x"]},
    name="power",
    formula="y = b x^c",
    source=f"{_REVISITING}, M1",
    inputs=("x",),
    table=(
        _coefficient("b"),
        Parameter("c", low=-20.0, high=20.0, starts=(*(-e for e in _EXPONENTS), *_EXPONENTS)),
    ),
    rescale=lambda p, s, xp: p | {"b": p["b"] * xp.exp(-p["c"] * s["x"])},
)

POWER_FLOOR = _sum_law(
    lambda p, s, xp: {"b": p["c"] * s["x"], "e": 0.0 * s["x"]},
    name="power_floor",
    formula="y = b x^c + e",
    source=f"{_REVISITING}, M2",
    inputs=("x",),
    table=(
        _coefficient("b"),
        Parameter("c", low=-20.0, high=0.0, starts=tuple(-e for e in _EXPONENTS)),
        _floor("e"),
    ),
    rescale=lambda p, s, xp: p | {"b": p["b"] * xp.exp(-p["c"] * s["x"])},
)

M3 = _sum_law(
    lambda p, s, xp: {"b": p["c"] * xp.log(xp.exp(-s["x"]) + p["g"])},
    name="m3",
    formula="y = b (1/x + g)^c",
    source=f"{_REVISITING}, M3",
    inputs=("x",),
    table=(
        _coefficient("b"),
        Parameter("g", high=1e4, starts=(0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)),
        Parameter("c", high=20.0, starts=_EXPONENTS),
    ),
    rescale=lambda p, s, xp: (
        p | {"b": p["b"] * xp.exp(p["c"] * s["x"]), "g": p["g"] * xp.exp(-s["x"])}
    ),
)

FRONTIER = _sum_law(
    lambda p, s, xp: {"a": -p["b"] * xp.log(xp.exp(s["x"]) + p["d"]), "c": 0.0 * s["x"]},
    name="frontier",
    formula="y = a (x + d)^-b + c",
    source="Zhai et al. 2021, Scaling Vision Transformers (2106.04560)",
    inputs=("x",),
    pareto=True,
    table=(
        _coefficient("a"),
        Parameter("b", high=20.0, starts=_EXPONENTS),
        _floor("c"),
        Parameter("d", high=1e4, starts=(0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)),
    ),
    rescale=lambda p, s, xp: (
        p | {"a": p["a"] * xp.exp(p["b"] * s["x"]), "d": p["d"] * xp.exp(s["x"])}
    ),
)

_CHINCHILLA = (
    _floor("E"),
    _coefficient("A"),
    _coefficient("B"),
    Parameter("alpha", low=1e-3, high=5.0, starts=_EXPONENTS),
    Parameter("beta", low=1e-3, high=5.0, starts=_EXPONENTS),
)


def _rescale_chinchilla(p: Parameters, s: Parameters, xp: ModuleType) -> Parameters:
    return p | {
        "A": p["A"] * xp.exp(p["alpha"] * s["n"]),
        "B": p["B"] * xp.exp(p["beta"] * s["d"]),
    }


CHINCHILLA = _sum_law(
    lambda p, s, xp: {"E": 0.0 * s["n"], "A": -p["alpha"] * s["n"], "B": -p["beta"] * s["d"]},
    name="chinchilla",
    formula="y = E + A / n^alpha + B / d^beta",
    source="Hoffmann et al. 2022, Training Compute-Optimal LLMs (2203.15556)",
    inputs=("n", "d"),
    table=_CHINCHILLA,
    rescale=_rescale_chinchilla,
)


def _saturating(log_unique: Any, log_total: Any, half: Any, xp: ModuleType) -> Any:
    # log of U + U R* (1 - exp(-R / R*)), where R = total / U - 1 counts the repetitions.
    repeats = xp.maximum(xp.exp(log_total - log_unique) - 1.0, 0.0)
    return log_unique + xp.log1p(-half * xp.expm1(-repeats / half))


def _repeat_terms(p: Parameters, s: Parameters, xp: ModuleType) -> Parameters:
    unique = xp.minimum(s["u"], s["d"])
    # Up to the compute-optimal size for the unique examples, parameters count fully; beyond it they
    # have diminishing returns.
    a, b = p["alpha"], p["beta"]
    log_g = (xp.log(a * p["A"]) - xp.log(b * p["B"])) / (a + b)
    base = xp.minimum(s["n"], log_g + b / a * (unique + log_g))
    return {
        "E": 0.0 * s["n"],
        "A": -a * _saturating(base, s["n"], p["R_N"], xp),
        "B": -b * _saturating(unique, s["d"], p["R_D"], xp),
    }


CHINCHILLA_REPEAT = _sum_law(
    _repeat_terms,
    name="chinchilla_repeat",
    formula=(
        "y = E + A / n'^alpha + B / d'^beta, d' = u + u R_D (1 - exp(-(d / u - 1) / R_D)), n' alike"
    ),
    source="Muennighoff et al. 2023, Scaling Data-Constrained Language Models (2305.16264)",
    inputs=("n", "d", "u"),
    table=(
        *_CHINCHILLA,
        Parameter("R_N", log=True, low=1e-3, high=1e5, starts=(1.0, 10.0, 1e3)),
        Parameter("R_D", log=True, low=1e-3, high=1e5, starts=(1.0, 10.0, 1e3)),
    ),
    rescale=_rescale_chinchilla,
)

SHAPE = _sum_law(
    lambda p, s, xp: {
        "alpha": -p["a"] * s["x"],
        "beta": p["b"] * s["x"] - p["c"] * s["t"],
        "xi": -p["c"] * s["t"],
        "eps": 0.0 * s["x"],
    },
    name="shape",
    formula="y = alpha x^-a + (beta x^b + xi) t^-c + eps",
    source="Alabdulmohsin et al. 2023, Getting ViT in Shape (2305.13035)",
    inputs=("x", "t"),
    table=(
        _coefficient("alpha"),
        Parameter("a", high=10.0, starts=_FEW),
        _coefficient("beta"),
        Parameter("b", high=10.0, starts=_FEW),
        Parameter("xi"),
        Parameter("c", high=10.0, starts=_FEW),
        _floor("eps"),
    ),
    rescale=lambda p, s, xp: (
        p
        | {
            "alpha": p["alpha"] * xp.exp(p["a"] * s["x"]),
            "beta": p["beta"] * xp.exp(p["c"] * s["t"] - p["b"] * s["x"]),
            "xi": p["xi"] * xp.exp(p["c"] * s["t"]),
        }
    ),
)

BNSL = _sum_law(
    lambda p, s, xp: {
        "a": 0.0 * s["x"],
        "b": -p["c0"] * s["x"]
        - p["c1"] * p["f1"] * xp.logaddexp(0.0, (s["x"] - xp.log(p["d1"])) / p["f1"]),
    },
    name="bnsl",
    formula="y = a + b x^-c0 (1 + (x / d1)^(1 / f1))^(-c1 f1)",
    source="Caballero et al. 2022, Broken Neural Scaling Laws (2210.14891), one break",
    inputs=("x",),
    table=(
        _floor("a"),
        _coefficient("b"),
        Parameter("c0", low=-5.0, high=5.0, starts=(0.0, *_FEW)),
        Parameter("c1", low=-5.0, high=5.0, starts=(-0.25, 0.1, 0.25, 0.5, 1.0)),
        Parameter("d1", log=True, low=1e-4, high=1e4, starts=(0.1, 0.3, 1.0, 3.0, 10.0)),
        Parameter("f1", log=True, low=0.02, high=10.0, starts=(0.1, 0.5, 1.5)),
    ),
    rescale=lambda p, s, xp: (
        p | {"b": p["b"] * xp.exp(p["c0"] * s["x"]), "d1": p["d1"] * xp.exp(s["x"])}
    ),
)


def _log_predict_m4(p: Parameters, s: Parameters, xp: ModuleType) -> Any:
    """Solves (y - e) / (e0 - y)^a = b x^c for log y.

    With y = e + (e0 - e) sigmoid(v) the equation is log_sigmoid(v) - a log_sigmoid(-v) = z. Its
    left side is increasing in v and either convex or concave, so Newton's method cannot cycle. The
    last step has a constant slope, which yields the derivatives of the implicit function.
    """
    a, span = p["a"], p["e0"] - p["e"]
    z = xp.log(p["b"]) + p["c"] * s["x"] - (1.0 - a) * xp.log(span)
    # Asymptotically the equation is v = z or v = z / a. The initial value is the one of these from
    # which the steps do not overshoot.
    v = xp.where(a > 1.0, xp.maximum(z, z / a), xp.minimum(z, z / a))

    def step(fixed_v: Any, fixed_a: Any, a: Any, z: Any) -> Any:
        small = xp.exp(
            -xp.abs(fixed_v)
        )  # All values below share this exponential and one logarithm.
        share = xp.where(fixed_v > 0.0, 1.0, small) / (1.0 + small)  # sigmoid(v)
        high = xp.minimum(fixed_v, 0.0) - xp.log1p(small)  # log_sigmoid(v)
        low = high - fixed_v  # log_sigmoid(-v)
        return fixed_v - (high - a * low - z) / (1.0 - share + fixed_a * share)

    if xp is not np:  # Imported here, so that the names of laws are known without JAX.
        import jax

        v, fixed_a, fixed_z = jax.lax.stop_gradient((v, a, z))
        v = jax.lax.fori_loop(0, 12, lambda _, v: step(v, fixed_a, fixed_a, fixed_z), v)
        v = step(jax.lax.stop_gradient(v), fixed_a, a, z)
    else:
        for _ in range(13):
            v = step(v, a, a, z)
    return xp.log(p["e"] + span * xp.exp(-xp.logaddexp(0.0, -v)))


M4 = Law(
    name="m4",
    formula="(y - e) / (e0 - y)^a = b x^c",
    source=f"{_REVISITING}, M4",
    inputs=("x",),
    table=(
        Parameter("a", log=True, low=1e-3, high=20.0, starts=(0.03, 0.3, 1.0, 2.0, 4.0)),
        _coefficient("b"),
        Parameter("c", low=-20.0, high=0.0),
        _floor("e"),
        Parameter("e0"),
    ),
    terms=None,
    rescale=lambda p, s, xp: p | {"b": p["b"] * xp.exp(-p["c"] * s["x"])},
    log_predict=_log_predict_m4,
)

# The frontier's formula for all rows, to compare laws on the same rows.
SHIFTED = dataclasses.replace(FRONTIER, pareto=False)

LAWS: dict[str, Law] = {
    of.name: of
    for of in (POWER, POWER_FLOOR, M3, M4, FRONTIER, CHINCHILLA, CHINCHILLA_REPEAT, SHAPE, BNSL)
}
