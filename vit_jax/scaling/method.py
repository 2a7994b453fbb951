"""How a law is fitted: the choices that published fits make differently.

The loss is Huber's of log residuals, with a delta: .001 is that of Hoffmann et al. 2022 (approach
3) and of its replication by Besiroglu et al. 2024; infinity is least squares (Alabdulmohsin et al.
2022). Bounds and initial values are in the paper's units. They are converted to the solver's, for
inputs with geometric mean 1, by the inverse of `Law.rescale`: the same with the opposite scales.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.scaling.laws import Law, Parameter

_MOST_STARTS = 20_000  # All are solved at once, with an array of starts x points.

Scales = Float[np.ndarray, "inputs"]


@dataclasses.dataclass(frozen=True)
class Method:
    """How a law is fitted.

    Attributes:
      delta: the log residual at which Huber's loss changes from squares to absolute values. None:
        1.345 robust standard deviations, at least .001; math.inf: least squares.
      bounds: (lowest, highest) value by parameter; equal ones fix it. Other parameters have the
        bounds of `laws`.
      starts: initial values by parameter; every combination is tried. Of the other parameters,
        exponents start from the values in `laws`, and coefficients are solved for (`varpro`).
    """

    delta: float | int | None = None
    bounds: Mapping[str, tuple[float | int, float | int]] = dataclasses.field(default_factory=dict)
    starts: Mapping[str, Sequence[float | int]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.delta is not None and not self.delta > 0:
            raise ConfigError(
                f"huber_delta={self.delta}: write a log residual above 0, such as 0.001, or inf "
                "for least squares."
            )
        for name, (low, high) in self.bounds.items():
            if not low <= high:
                raise ConfigError(f"bounds of {name}: {low:g} to {high:g} is empty.")
        for name, values in self.starts.items():
            if not len(values) or not np.isfinite(values).all():
                raise ConfigError(f"starts of {name}: write finite numbers, such as 0.5,1.")

    @property
    def fixed(self) -> frozenset[str]:
        """Returns the parameters that have one possible value."""
        return frozenset(name for name, (low, high) in self.bounds.items() if low == high)

    def check(self, law: Law) -> None:
        """Checks that the law has the parameters that are named, and allows their values.

        Raises:
          ConfigError: it does not.
        """
        parameters = {parameter.name: parameter for parameter in law.table}
        if unknown := [name for name in (*self.bounds, *self.starts) if name not in parameters]:
            raise ConfigError(
                f"The law {law.name}, {law.formula}, has no parameter {unknown[0]}. "
                f"{did_you_mean(unknown[0], parameters)}"
            )
        for name, values in (*self.bounds.items(), *self.starts.items()):
            parameter = parameters[name]
            if min(values) < 0 <= parameter.low or (parameter.log and min(values) <= 0):
                sign = "above 0" if parameter.log else "at least 0"
                raise ConfigError(
                    f"{name} of the law {law.name} must be {sign}, not {values[0]:g}."
                )
        if len(self.fixed) == len(law.table):
            raise ConfigError(f"All parameters of the law {law.name} are fixed: nothing is fitted.")
        for name in self.bounds:
            if _depends_on_others(law, name):
                raise ConfigError(
                    f"bounds of {name}: it is the coefficient of a power, so its size depends on "
                    "the exponent, and the solver needs bounds for scaled inputs. Bound the "
                    "exponent."
                )
        by_default = [p.name for p in law.table if p.starts] if law.terms is None else parameters
        if solved := [name for name in self.starts if name not in by_default]:
            raise ConfigError(
                f"starts of {solved[0]}: the law {law.name} has initial values for "
                f"{', '.join(by_default)} only; it solves for the others."
            )


DEFAULT = Method()
LEAST_SQUARES = Method(delta=math.inf)


def theta_bounds(
    law: Law, y: Float[np.ndarray, "n"], scales: Scales, method: Method
) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"]]:
    """Returns lower and upper bounds of the solver's parameters."""
    ends = []
    for parameter in law.table:
        if parameter.name in method.bounds:
            given = np.array(method.bounds[parameter.name], float)
            lower, upper = scaled_values(law, {parameter.name: given}, scales)[parameter.name]
        else:
            lower, upper = _default_bounds(parameter, y)
        with np.errstate(divide="ignore"):
            ends.append(np.log([lower, upper]) if parameter.log else np.array([lower, upper]))
    low, high = np.array(ends, float).T
    return low, high


def numerical_bounds(
    law: Law,
    y: Float[np.ndarray, "n"],
    bounds: tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"]],
) -> tuple[Bool[np.ndarray, "p"], Bool[np.ndarray, "p"]]:
    """Returns which bounds of theta are the solver's own: neither given nor part of the law.

    The law's own are those of floors and of M4's e0, and the sign of an exponent, whose bound is 0
    or nearly 0.
    """
    numerical = np.zeros((2, len(law.table)), bool)
    for i, parameter in enumerate(law.table):
        if parameter.floor or parameter.name == "e0":
            continue
        for side, default in enumerate(_default_bounds(parameter, y)):
            value = math.log(default) if parameter.log else default
            is_default = bool(np.isclose(bounds[side][i], value, rtol=1e-12))
            numerical[side, i] = is_default and (parameter.log or abs(default) >= 1)
    return numerical[0], numerical[1]


def _default_bounds(parameter: Parameter, y: Float[np.ndarray, "n"]) -> tuple[float, float]:
    if parameter.floor:
        return parameter.low, float(y.max())
    if parameter.name == "e0":  # M4's ceiling, the error without any data.
        return float(y.max()), 1.0 if y.max() <= 1 else 100 * float(y.max())
    if not parameter.starts and parameter.name != "c":  # A coefficient: scales with y.
        return parameter.low * float(y.min()), parameter.high * float(y.max())
    return parameter.low, parameter.high


def start_grid(law: Law, scales: Scales, method: Method) -> dict[str, Float[np.ndarray, "grid"]]:
    """Returns every combination of initial values, for scaled inputs, by parameter.

    Raises:
      ConfigError: there are too many.
    """
    given = {p.name: method.starts.get(p.name, p.starts) for p in law.table}
    given = {name: values for name, values in given.items() if len(values)}
    count = math.prod(map(len, given.values()))
    if count > _MOST_STARTS:
        raise ConfigError(
            f"starts: {count:,} combinations of initial values; at most {_MOST_STARTS:,} can be "
            "tried. Name fewer."
        )
    points = np.array(list(itertools.product(*given.values())), float).T
    grid = dict(zip(given, points, strict=True))
    scaled = scaled_values(law, grid, scales)
    return {name: scaled[name] if name in method.starts else grid[name] for name in grid}


def scaled_values(
    law: Law, values: Mapping[str, Float[np.ndarray, "m"]], scales: Scales
) -> dict[str, Float[np.ndarray, "m"]]:
    """Converts parameters from the paper's units to those for scaled inputs."""
    (size,) = {len(value) for value in values.values()}
    parameters = {name: np.ones(size) for name in law.parameters} | dict(values)
    opposite = dict(zip(law.inputs, -scales, strict=True))
    scaled = law.rescale(parameters, opposite, np)
    return {name: np.asarray(scaled[name]) for name in values}


def _depends_on_others(law: Law, name: str) -> bool:
    """Returns whether the unit of a parameter depends on others, as that of b x^c does on c."""
    scales = np.ones(len(law.inputs))
    units = []
    for other in (0.5, 2.0):
        values = {key: np.array([1.0 if key == name else other]) for key in law.parameters}
        units.append(scaled_values(law, values, scales)[name][0])
    return bool(units[0] != units[1])
