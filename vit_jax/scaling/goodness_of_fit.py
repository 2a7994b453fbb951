"""Does the form of a law hold? An interval assumes that it does, and is too narrow where not.

A power law fitted to runs that level off has a tight interval and a wrong one. What it misses is
not noise: its residuals bend. So squares and cubes of the logs of the inputs are offered to the
residuals beside the parameters, as in Ramsey's (1969) test of a regression's form: if they explain
more than chance, by the F distribution, the law is not the runs'.
"""

import numpy as np
from jaxtyping import Float
from scipy import special

from vit_jax.scaling.fitting import Fit

# How rarely a law whose form holds is rejected.
LEVEL = 0.05


def form_p_value(of: Fit) -> float:
    """How likely noise alone bends the residuals so much; 1 where too few rows are left to say.

    Args:
      of: a fit of any law.
    """
    logs = np.log(np.stack(list(of.inputs.values())))
    scaled = (logs - logs.mean(1, keepdims=True)) / logs.std(1, keepdims=True)
    bends = np.concatenate([scaled**2, scaled**3]).T
    free = [name not in of.at_bound for name in of.law.parameters]
    weight = np.sqrt(of.weights)[:, None]
    parameters = (of.slopes * weight)[:, free]
    both = np.concatenate([parameters, bends * weight], axis=1)
    misses = of.log_residuals * weight[:, 0]
    freedom = of.n - both.shape[1]
    added = bends.shape[1]
    if freedom < 1:
        return 1.0
    without, with_them = _remainder(parameters, misses), _remainder(both, misses)
    if without <= 1e-20 * of.n:  # Exact data.
        return 1.0
    ratio = (without - with_them) / added / max(with_them / freedom, 1e-300)
    return float(special.fdtrc(added, freedom, max(ratio, 0.0)))


def _remainder(columns: Float[np.ndarray, "n p"], values: Float[np.ndarray, "n"]) -> float:
    """What is left of the values' squares when the columns have explained what they can."""
    if not columns.size:  # All parameters are at their bounds.
        return float(values @ values)
    basis, spread, _ = np.linalg.svd(
        columns / (np.linalg.norm(columns, axis=0) + 1e-300), full_matrices=False
    )
    basis = basis[:, spread > 1e-10 * spread[0]]
    left = values - basis @ (basis.T @ values)
    return float(left @ left)
