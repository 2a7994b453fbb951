"""`config.optim` as one optax transformation.

With t the number of earlier updates, u the direction of the optimizer `optim.name`, and p a
parameter, the update that is added to p is

    -schedule(t) * lr * layer_decay(p) * (lr_rule(p) * u + weight_decay * weight_decay_rule(p) * p).

Weight decay is multiplied by lr and schedule, as in AdamW (Loshchilov & Hutter, arXiv 1711.05101),
and by layer_decay, as in the parameter groups of BEiT and MAE, but not by lr_rules: a head that
learns faster does not decay faster. Only LAMB has weight decay in u, before its trust ratio. A
frozen parameter has no update, no state, and no part in the clipped norm.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.optim import layers, paths
from vit_jax.optim.adafactor import scale_by_adafactor
from vit_jax.optim.muon import scale_by_muon_and_adam

NAMES = ("adamw", "sgd", "adafactor", "lion", "lamb", "muon")
_MOMENTUM_DTYPES = ("float32", "bfloat16")


def make_optimizer(
    optim_config: ConfigDict, params: PyTree, *, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Returns the transformation from gradients to the update that is added to the parameters.

    Args:
      optim_config: `config.optim`.
      params: parameters, or their shapes (`jax.ShapeDtypeStruct`).
      schedule: from the number of earlier updates to a fraction of `optim_config.lr`.

    Raises:
      ConfigError: an unknown name, a value out of range, or a rule without effect.
    """
    c = optim_config
    _check(c)
    lr_rules = paths.multipliers(params, c.lr_rules, key="optim.lr_rules", default=1.0)
    if not all(jax.tree.leaves(lr_rules)):
        raise ConfigError(
            "optim.lr_rules has a multiplier of 0: freeze parameters by optim.freeze instead."
        )
    decay_rules = paths.multipliers(
        params, c.weight_decay_rules, key="optim.weight_decay_rules", default=0.0
    )
    layer_decay = layers.layer_decay_multipliers(params, decay=c.layer_decay)
    frozen = frozen_mask(c, params)

    def trained(tree):
        """Returns the tree with an `optax.MaskedNode` in place of each frozen leaf."""
        return jax.tree.map(lambda skip, x: optax.MaskedNode() if skip else x, frozen, tree)

    decay = _add_decay(trained(jax.tree.map(lambda rule: c.weight_decay * rule, decay_rules)))
    # An option that is off is an identity in the chain: turning it on keeps the state's structure.
    tx = optax.chain(
        optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity(),
        _direction(c, trained(params), decay),
        _scale(trained(lr_rules)),
        optax.identity() if c.name == "lamb" else decay,
        _scale(trained(layer_decay)),
        optax.scale_by_schedule(lambda step: -c.lr * schedule(step)),
    )
    if any(jax.tree.leaves(frozen)):
        labels = jax.tree.map(lambda skip: "frozen" if skip else "trained", frozen)
        tx = optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)
    return tx


def frozen_mask(optim_config: ConfigDict, params: PyTree) -> PyTree:
    """Returns a tree of bool: whether `optim_config.freeze` matches the parameter.

    Raises:
      ConfigError: a pattern matches no parameter, or all parameters are frozen.
    """
    mask = paths.matches(params, optim_config.freeze, key="optim.freeze")
    if all(jax.tree.leaves(mask)):
        raise ConfigError("optim.freeze matches every parameter: nothing is left to train.")
    return mask


def _direction(
    c: ConfigDict, params: PyTree, decay: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Returns u, the direction without learning rate and sign."""
    adam = optax.scale_by_adam(b1=c.b1, b2=c.b2, eps=c.eps, mu_dtype=c.momentum_dtype)
    match c.name:
        case "adamw":
            return adam
        case "sgd":
            return optax.trace(
                decay=c.momentum, nesterov=c.nesterov, accumulator_dtype=c.momentum_dtype
            )
        case "adafactor":
            return scale_by_adafactor(
                params,
                beta2_cap=c.b2,
                momentum=c.momentum,
                momentum_dtype=c.momentum_dtype,
                clip_rms=c.clip_rms,
            )
        case "lion":  # Chen et al. 2023, arXiv 2302.06675.
            return optax.scale_by_lion(b1=c.b1, b2=c.b2, mu_dtype=c.momentum_dtype)
        case "lamb":  # You et al. 2019, arXiv 1904.00962.
            # The trust ratio |p| / |u| would keep parameters that start at zero (head, biases,
            # class token) near zero for ever. As usual, only kernels have it.
            trust = layers.per_layer(
                optax.scale_by_trust_ratio(),
                params,
                where=lambda path: path.endswith("/kernel") and not path.startswith("head"),
            )
            return optax.chain(adam, decay, trust)
        case "muon":
            return scale_by_muon_and_adam(
                params,
                momentum=c.momentum,
                nesterov=c.nesterov,
                b1=c.b1,
                b2=c.b2,
                eps=c.eps,
                momentum_dtype=c.momentum_dtype,
            )
        case name:
            raise AssertionError(f"{name} is one of NAMES, but has no case here")


def _scale(multipliers: PyTree) -> optax.GradientTransformation:
    """Multiplies every update by a number, or by an array that broadcasts to it."""

    def scale(update, multiplier):
        return update * jnp.asarray(multiplier, update.dtype)

    return optax.stateless(lambda updates, _: jax.tree.map(scale, updates, multipliers))


def _add_decay(rates: PyTree) -> optax.GradientTransformation:
    """Adds rate * parameter to every update whose rate is not 0."""

    def add(update, param, rate):
        return update + rate * param if rate else update

    return optax.stateless(lambda updates, params: jax.tree.map(add, updates, params, rates))


def _check(c: ConfigDict) -> None:
    if c.name not in NAMES:
        raise ConfigError(
            f"optim.name={c.name!r}: no such optimizer. {did_you_mean(c.name, NAMES)}"
        )
    if c.momentum_dtype not in _MOMENTUM_DTYPES:
        hint = did_you_mean(c.momentum_dtype, _MOMENTUM_DTYPES)
        raise ConfigError(f"optim.momentum_dtype={c.momentum_dtype!r}: {hint}")
    for key in ("lr", "weight_decay", "clip_norm", "clip_rms", "sam_rho"):
        if (value := getattr(c, key)) < 0:
            raise ConfigError(f"optim.{key}={value} must not be negative.")
    if not c.eps > 0:
        raise ConfigError(f"optim.eps={c.eps} must be above 0.")
    for key in ("b1", "b2", "momentum"):
        if not 0 <= (value := getattr(c, key)) < 1:
            raise ConfigError(f"optim.{key}={value} must be in [0, 1).")
