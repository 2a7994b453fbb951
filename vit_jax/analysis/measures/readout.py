"""The tokens that a head reads: with which weights it sees the last block's tokens."""

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.analysis.measures.encoder import Variables
from vit_jax.config.model import VitConfig
from vit_jax.models import Vit


def has_probe(config: VitConfig) -> bool:
    """Returns whether the head is attention pooling, whose weights depend on the image."""
    return config.pool in ("map", "map_patches")


def read_tokens(config: VitConfig) -> Float[np.ndarray, " n"]:
    """Returns the share of each token in what the head reads; the shares sum to 1.

    Class token: 1 (with a distillation token, which has a head of its own, 1/2 each). Mean of the
    patches: equal shares. Class token beside the mean of the patches (token_gap): half for each.
    For attention pooling, which has weights of its own for each image, equal shares of the patches.
    """
    shares = np.zeros(config.num_tokens)
    patches = np.full(config.num_tokens - config.num_prefix, 1.0)
    patches /= len(patches)
    if config.pool == "token":
        shares[: 1 + config.distilled] = 1 / (1 + config.distilled)
    elif config.pool == "token_gap":
        shares[0], shares[config.num_prefix :] = 0.5, patches / 2
    else:
        shares[config.num_prefix :] = patches
    return shares


def read_tokens_text(config: VitConfig) -> str:
    """Returns the tokens of `read_tokens` in words, for captions."""
    if config.pool == "token":
        return "class and distillation tokens" if config.distilled else "class token"
    if config.pool == "token_gap":
        return "class token and mean of the patches"
    return "mean of the patches"


@partial(jax.jit, static_argnames=("model",))
def probe_weights(
    model: Vit, variables: Variables, images: Float[Array, "b height width channels"]
) -> Float[Array, "b heads 1 k"]:
    """Returns the attention weights of a MAP head's probe, on the tokens that it sees."""
    _, intermediates = model.apply(variables, images, capture=("pool_attention",))
    return cast(Array, intermediates["pool_attention"])


def over_all_tokens(
    weights: Float[Array, "b heads 1 k"], config: VitConfig
) -> Float[Array, "b heads n"]:
    """Returns a probe's weights for all tokens; a probe of the patches only sees no others."""
    missing = config.num_tokens - weights.shape[-1]
    return jnp.pad(weights[:, :, 0], ((0, 0), (0, 0), (missing, 0)))
