"""Tests the form of a law for lack of fit. Intervals assume the form; if it is wrong, so are they.

A power law fitted to runs that level off has a narrow and wrong interval: its residuals are curved,
not noise. A test like Ramsey's (1969) RESET test detects this. It adds squares and cubes of the log
inputs to the regressors. If they explain more of the residuals than chance, by an F test, the data
do not have the form of the law. The cubes need rows: with fewer than three degrees of freedom left,
squares alone detect more.

The F distribution is exact for the law `power` with normal noise, and an approximation for the
others. `benchmarks/scaling_lack_of_fit.py` measures how often the test rejects correct and wrong
laws.
"""

import numpy as np
from jaxtyping import Float
from scipy import special

from vit_jax.scaling.fitting import Fit

# Nominal significance level. At most 1 in 100 tables whose runs follow their laws may be refused;
# since the F distribution is an approximation, the level is lower. The rates are measured.
LEVEL = 0.0075
_CUBES_NEED = 3  # Degrees of freedom that must be left for cubes to be added.


def significance(tests: int) -> float:
    """Returns the level of each of several tests, such as of the groups of a table.

    This is Bonferroni's correction: a table is refused no more often than one of a single group.
    """
    return LEVEL / max(tests, 1)


def form_p_value(fitted: Fit) -> float:
    """Returns the p-value of the lack-of-fit test; 1 if there are too few rows for it."""
    logs = np.log(np.stack(list(fitted.inputs.values())))
    scaled = (logs - logs.mean(1, keepdims=True)) / logs.std(1, keepdims=True)
    free = [grade not in ("at its bound", "fixed") for grade in fitted.identified.values()]
    weight = np.sqrt(fitted.weights)[:, None]
    parameters = (fitted.slopes * weight)[:, free]
    residuals = fitted.log_residuals * weight[:, 0]
    freedom = fitted.n - parameters.shape[1] - 2 * len(scaled)
    powers = scaled**2
    if freedom >= _CUBES_NEED:
        powers = np.concatenate([scaled**2, scaled**3])
    both = np.concatenate([parameters, powers.T * weight], axis=1)
    added = len(powers)
    freedom = fitted.n - both.shape[1]
    if freedom < 1:
        return 1.0
    restricted = _residual_sum_of_squares(parameters, residuals)
    full = _residual_sum_of_squares(both, residuals)
    if restricted <= 1e-20 * fitted.n:  # Exact data.
        return 1.0
    f_statistic = (restricted - full) / added / max(full / freedom, 1e-300)
    return float(special.fdtrc(added, freedom, max(f_statistic, 0.0)))


def _residual_sum_of_squares(
    columns: Float[np.ndarray, "n p"], values: Float[np.ndarray, "n"]
) -> float:
    """Returns the sum of squares of the values that the columns do not explain."""
    if not columns.size:  # All parameters are at their bounds.
        return float(values @ values)
    basis, spread, _ = np.linalg.svd(
        columns / (np.linalg.norm(columns, axis=0) + 1e-300), full_matrices=False
    )
    basis = basis[:, spread > 1e-10 * spread[0]]
    unexplained = values - basis @ (basis.T @ values)
    return float(unexplained @ unexplained)
