"""From a loss to the next parameters: everything that learning is made of, on top of optax.

* `losses`: softmax and sigmoid cross-entropy per example; soft and several labels, smoothing.
* `gradients`: the gradient of one step, by microbatches and with sharpness awareness if asked.
* `schedules`: how long a run is, and the learning rate's course along it.
* `optimizers`: `config.optim` as one `optax.GradientTransformation`. Its parts are `adafactor`,
  `muon`, `layers` (what depends on the depth at which a parameter sits) and `paths` (rules by
  parameter path).
* `ema`: the average of the parameters that is evaluated.
"""

from vit_jax.optim import ema
from vit_jax.optim.gradients import hold, value_and_grad
from vit_jax.optim.losses import loss_by_name, sigmoid_xent, smooth_labels, softmax_xent
from vit_jax.optim.optimizers import frozen_mask, make_optimizer
from vit_jax.optim.schedules import make_schedule, resolve_duration, total_steps

__all__ = [
    "ema",
    "frozen_mask",
    "hold",
    "loss_by_name",
    "make_optimizer",
    "make_schedule",
    "resolve_duration",
    "sigmoid_xent",
    "smooth_labels",
    "softmax_xent",
    "total_steps",
    "value_and_grad",
]
