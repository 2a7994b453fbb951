"""Losses, gradients, learning rate schedules and optimizers, on top of optax.

* `losses`: softmax and sigmoid cross-entropy per example; soft and multiple labels, smoothing.
* `gradients`: the gradient of one update, with accumulation and sharpness awareness.
* `schedules`: the length of a run, and learning rate schedules.
* `optimizers`: `config.optim` as one `optax.GradientTransformation`. Its parts are `adafactor`,
  `muon`, `layers` (scanned blocks, layer-wise decay) and `paths` (rules by parameter path).
* `ema`: the exponential moving average of the parameters.
"""

from vit_jax.optim import ema
from vit_jax.optim.gradients import stop_frozen_gradients, value_and_grad
from vit_jax.optim.losses import (
    loss_by_name,
    sigmoid_xent,
    smooth_labels,
    softmax_xent,
    train_loss_difference,
)
from vit_jax.optim.optimizers import frozen_mask, make_optimizer
from vit_jax.optim.schedules import make_schedule, resolve_duration, total_steps

__all__ = [
    "ema",
    "frozen_mask",
    "loss_by_name",
    "make_optimizer",
    "make_schedule",
    "resolve_duration",
    "sigmoid_xent",
    "smooth_labels",
    "softmax_xent",
    "stop_frozen_gradients",
    "total_steps",
    "train_loss_difference",
    "value_and_grad",
]
