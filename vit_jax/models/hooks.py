"""Hooks of the models for analyses: variables beside the parameters that change a forward pass.

Without these variables, as in training, the hooks are no operations.

    perturbations      Added to a value, so that the gradient with respect to the variable is the
                       gradient with respect to the value. Unlike `nn.Module.perturb`, a hook
                       creates no variable when the model is initialised.
    register_neurons   Masks of hidden units whose activations move to the last register token.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

PERTURBATIONS = "perturbations"
REGISTER_NEURONS = "register_neurons"


def perturb(module: nn.Module, name: str, value: Array) -> Array:
    """Adds the module's variable `name` of the collection "perturbations", if there is one."""
    if not module.has_variable(PERTURBATIONS, name):
        return value
    return value + module.get_variable(PERTURBATIONS, name)


def move_to_register(
    module: nn.Module, hidden: Float[Array, "b n hidden"], *, register: int
) -> Float[Array, "b n hidden"]:
    """Moves the activations of register neurons to a register token.

    Jiang et al. 2025, "Vision Transformers Don't Need Trained Registers" (arXiv 2506.08010): the
    token gets the activation of largest magnitude of each such neuron (gated units may be
    negative), and all others get zero.

    Args:
      module: of the MLP; its variable "mask" in the collection "register_neurons", bool [hidden],
        marks the neurons. Without it, nothing is changed.
      hidden: activations.
      register: index of the token.
    """
    if not module.has_variable(REGISTER_NEURONS, "mask"):
        return hidden
    mask: Bool[Array, " hidden"] = module.get_variable(REGISTER_NEURONS, "mask")
    strongest = jnp.abs(hidden).argmax(axis=1, keepdims=True)
    largest = jnp.take_along_axis(hidden, strongest, axis=1)[:, 0]
    largest = jnp.where(mask, largest, hidden[:, register])
    return jnp.where(mask, 0.0, hidden).at[:, register].set(largest)
