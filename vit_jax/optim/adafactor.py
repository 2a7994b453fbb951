"""Adafactor as in "Scaling Vision Transformers"."""

import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from vit_jax.optim import layers


def scale_by_adafactor(
    params: PyTree,
    *,
    beta2_cap: float,
    momentum: float,
    momentum_dtype: str,
    clip_rms: float,
) -> optax.GradientTransformation:
    """Returns Adafactor's direction: gradient over a factored root mean square, then momentum.

    The second moments of a matrix are stored as one row and one column. As in Zhai et al. 2021
    (arXiv 2106.04560, section 3.4) and unlike in Shazeer & Stern 2018 (1804.04235), there is
    momentum, its dtype may be bfloat16, the second moment's decay 1 - t^-0.8 is capped, so the
    estimate keeps adapting in long runs, and the learning rate is not scaled by the norm of the
    parameter. Each block of a scanned encoder has separate statistics.

    Args:
      params: parameters, or their shapes.
      beta2_cap: largest decay of the second moment; .999 in the paper.
      momentum: decay of the first moment, an average of the scaled gradients; .9 in the paper.
      momentum_dtype: float32 or bfloat16.
      clip_rms: largest root mean square of a parameter's scaled gradient, clipped before momentum;
        1 in the original, 0 (none) in Zhai et al.
    """

    def decay(step, exponent):
        return jnp.minimum(beta2_cap, 1.0 - (jnp.float32(step) + 1.0) ** -exponent)

    scale = optax.scale_by_factored_rms(
        decay_rate=0.8, min_dim_size_to_factor=32, epsilon=1e-30, decay_rate_fn=decay
    )
    if clip_rms:
        scale = optax.chain(scale, optax.clip_by_block_rms(clip_rms))
    average = optax.ema(momentum, debias=False, accumulator_dtype=momentum_dtype)
    return optax.chain(layers.per_layer(scale, params, where=lambda path: True), average)
