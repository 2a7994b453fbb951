"""Attention pooling: reduces the encoded tokens to one vector."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.config.model import VitConfig
from vit_jax.models.attention import MultiHeadAttention
from vit_jax.models.blocks import Mlp, make_norm


class MapHead(nn.Module):
    """Multi-head attention pooling: one learned query attends to all tokens; then a residual MLP.

    Zhai et al. 2021 (arXiv 2106.04560), as in big_vision.

    Attributes:
      capture: intermediates of the attention to return, see `vit_jax.models.attention`.
    """

    config: VitConfig
    capture: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n width"]
    ) -> tuple[Float[Array, "b width"], dict[str, Array]]:
        """Returns the pooled tokens, and the captured intermediates of the attention."""
        # The published head has no norms inside attention and MLP, and no gate, whatever the blocks
        # have: its activation is their SiLU or GELU (GELU for swiglu).
        config = dataclasses.replace(
            self.config,
            qk_norm=False,
            attn_norm=False,
            mlp="silu" if self.config.mlp == "silu" else "gelu",
            mlp_norm=False,
            key_bias=True,
        )
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, config.width))
        probe = jnp.tile(probe.astype(x.dtype), (x.shape[0], 1, 1))
        attention = MultiHeadAttention(config, False, self.capture, name="attn")
        x, bias, captured = attention(probe, x)
        x = x + bias
        y, bias, _ = Mlp(config, train=False, name="mlp")(make_norm(config, "norm")(x))
        return (x + (y + bias))[:, 0], captured
