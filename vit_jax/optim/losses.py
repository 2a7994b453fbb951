"""Losses per example, in float32. The loss of a batch is their mean."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax.errors import ConfigError, did_you_mean

Labels = Int[Array, "b"] | Float[Array, "b classes"]


def softmax_xent(
    logits: Float[Array, "b classes"], labels: Labels, *, label_smoothing: float = 0.0
) -> Float[Array, "b"]:
    """Cross-entropy of the softmax with the target distribution.

    Args:
      logits: of any float dtype; computed in float32.
      labels: class ids, or the target distribution (one-hot, mixed, or distilled).
      label_smoothing: see `smooth_labels`.
    """
    targets = smooth_labels(_dense(labels, logits), label_smoothing)
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def sigmoid_xent(
    logits: Float[Array, "b classes"], labels: Labels, *, label_smoothing: float = 0.0
) -> Float[Array, "b"]:
    """Binary cross-entropy of each class, summed over the classes.

    Any number of classes may be correct. Beyer et al. 2020 (arXiv 2006.07159) use it for ImageNet,
    Zhai et al. 2021 (2106.04560) to pre-train ViTs.

    Args:
      logits: of any float dtype; computed in float32.
      labels: class ids, or a target in [0, 1] for each class.
      label_smoothing: see `smooth_labels`.
    """
    targets = smooth_labels(_dense(labels, logits), label_smoothing)
    logits = logits.astype(jnp.float32)
    present, absent = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -jnp.sum(targets * present + (1.0 - targets) * absent, axis=-1)


def smooth_labels(
    targets: Float[Array, "b classes"], smoothing: float
) -> Float[Array, "b classes"]:
    """Spreads a fraction of the target evenly over all V classes, including the correct one.

    As in Inception (Szegedy et al. 2015, arXiv 1512.00567) and DeiT: with smoothing s, a one-hot
    target becomes 1 - s + s/V for the correct class and s/V for each other one. (big_vision's
    weighted_softmax_xent spreads s over the V - 1 others: its s is ours times (V - 1) / V.) The
    sum of the targets does not change.
    """
    if not smoothing:
        return targets
    mean = jnp.mean(targets, axis=-1, keepdims=True)
    return (1.0 - smoothing) * targets + smoothing * mean


LOSSES = {"softmax_xent": softmax_xent, "sigmoid_xent": sigmoid_xent}


def loss_by_name(name: str) -> Callable[..., Array]:
    """Returns the loss of `config.loss.name`, called as loss(logits, labels, label_smoothing=s).

    Raises:
      ConfigError: there is no loss of that name.
    """
    if name not in LOSSES:
        raise ConfigError(f"loss.name={name!r}: no such loss. {did_you_mean(name, LOSSES)}")
    return LOSSES[name]


def probabilities(logits: Float[Array, "*B C"], *, loss_name: str) -> Float[Array, "*B C"]:
    """Returns class probabilities for the loss of the training; only softmax's add up to 1."""
    return jax.nn.softmax(logits) if loss_name == "softmax_xent" else jax.nn.sigmoid(logits)


def _dense(labels: Labels, logits: Float[Array, "b classes"]) -> Float[Array, "b classes"]:
    if labels.ndim == 1:
        return jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    return labels.astype(jnp.float32)


def train_loss_difference(config: ConfigDict | FrozenConfigDict) -> str:
    """Returns what makes the training loss another quantity than an evaluation's; "": nothing.

    Such as "with label smoothing 0.1 and Mixup". Augmentation and dropout change the inputs and the
    model, but not what is computed from the logits.

    Args:
      config: the config of a run.
    """
    parts = []
    if config.loss.label_smoothing:
        parts.append(f"label smoothing {config.loss.label_smoothing:g}")
    parts += ["Mixup"] if config.mix.mixup_alpha else []
    parts += ["CutMix"] if config.mix.cutmix_alpha else []
    return f"with {' and '.join(parts)}" if parts else ""
