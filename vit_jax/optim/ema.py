"""An exponential moving average of the parameters, unbiased from the first update on.

After n updates it is sum_i d^(n-i) p_i / sum_i d^(n-i) over the parameters p_1 ... p_n that the
updates led to: the average that Adam's bias correction gives. It is kept corrected, by giving the
newest parameters the weight (1 - d) / (1 - d^n), so the state is one tree that can be evaluated as
it is at any time. The initial parameters have no weight: after one update the average equals the
parameters, and early in a run it is their plain mean.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree


def init(params: PyTree) -> PyTree:
    """The average before any update: a copy of the parameters."""
    return jax.tree.map(jnp.copy, params)


def update(average: PyTree, params: PyTree, *, decay: float, count: Int[Array, ""] | int) -> PyTree:
    """Returns the average that includes the newest parameters.

    Args:
      average: result of `init` or of the last `update`.
      params: after this update.
      decay: d, in (0, 1); the average extends over about the last 1 / (1 - d) updates.
      count: n, the number of updates made, including this one: 1 at the first call.
    """
    # expm1 keeps 1 - d^n exact to rounding where d is close to 1 and n small.
    weight = (1.0 - decay) / -jnp.expm1(count * math.log(decay))

    def mix(old, new):
        return old + weight.astype(old.dtype) * (new - old)

    return jax.tree.map(mix, average, params)
