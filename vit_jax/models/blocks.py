"""The pre-norm Transformer encoder (Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1)."""

from collections.abc import Collection

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models.attention import MultiHeadAttention
from vit_jax.models.config import VitConfig
from vit_jax.parallel.constraints import BATCH, constrain

# `config.model.remat`: which results of the forward pass the backward pass finds in memory.
REMAT = {
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def make_norm(cfg: VitConfig, name: str) -> nn.Module:
    """The model's normalisation layer; statistics in float32 whatever the dtype."""
    if cfg.norm == "rmsnorm":
        return nn.RMSNorm(epsilon=cfg.ln_eps, dtype=cfg.dtype, use_fast_variance=False, name=name)
    return nn.LayerNorm(epsilon=cfg.ln_eps, dtype=cfg.dtype, use_fast_variance=False, name=name)


class Mlp(nn.Module):
    """Two dense layers with a GELU between them."""

    cfg: VitConfig
    train: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        cfg = self.cfg

        def dense(features, name):
            return nn.Dense(
                features,
                kernel_init=nn.initializers.xavier_uniform(),
                bias_init=nn.initializers.normal(stddev=1e-6),
                dtype=cfg.dtype,
                name=name,
            )

        x = dense(cfg.mlp_dim, "fc1")(x)
        x = constrain(x, BATCH, None, "tensor")
        x = nn.gelu(x, approximate=cfg.gelu == "tanh")
        x = nn.Dropout(cfg.dropout, deterministic=not self.train)(x)
        return dense(cfg.width, "fc2")(x)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); or both at once in a parallel block.

    Attributes:
      cfg: of the model.
      train: dropout and stochastic depth on.
      capture: "blocks", "attention", both or neither: what to return beside the output.
    """

    cfg: VitConfig
    train: bool
    capture: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n width"], drop_rate: Float[Array, ""]
    ) -> tuple[Float[Array, "b n width"], dict[str, Array]]:
        cfg = self.cfg
        attention = MultiHeadAttention(cfg, self.train, "attention" in self.capture, name="attn")
        mlp = Mlp(cfg, self.train, name="mlp")
        x = constrain(x, BATCH, None, None)

        y = make_norm(cfg, "norm1")(x)
        y_attn, weights = attention(y, y)
        y_attn = nn.Dropout(cfg.dropout, deterministic=not self.train)(y_attn)
        if cfg.parallel:
            y_mlp = nn.Dropout(cfg.dropout, deterministic=not self.train)(mlp(y))
            x = x + self._drop_path(y_attn + y_mlp, drop_rate)
        else:
            x = x + self._drop_path(y_attn, drop_rate)
            y_mlp = mlp(make_norm(cfg, "norm2")(x))
            y_mlp = nn.Dropout(cfg.dropout, deterministic=not self.train)(y_mlp)
            x = x + self._drop_path(y_mlp, drop_rate)

        captured = {"blocks": x, "attention": weights}
        return x, {key: captured[key] for key in self.capture}

    def _drop_path(self, y, drop_rate):
        """Stochastic depth: drops the branch for whole examples (Huang 2016, 1603.09382)."""
        if not self.train or self.cfg.stochastic_depth == 0:
            return y
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - drop_rate, (y.shape[0], 1, 1))
        return jnp.where(keep, y / (1 - drop_rate).astype(y.dtype), jnp.zeros_like(y))


class Encoder(nn.Module):
    """All blocks, then the final norm."""

    cfg: VitConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n width"], *, train: bool, capture: Collection[str]
    ) -> tuple[Float[Array, "b n width"], dict[str, Array]]:
        """Encodes a sequence.

        Args:
          x: embedded tokens.
          train: dropout and stochastic depth on.
          capture: some of "blocks", "attention".

        Returns:
          The normalised tokens, and for each captured name an array with a leading axis of depth.
        """
        cfg = self.cfg
        drop_rates = jnp.linspace(0.0, cfg.stochastic_depth, cfg.depth, dtype=jnp.float32)
        block = Block
        if cfg.remat != "none":
            # Inside a scan nothing can be merged with the forward pass anyway, and the barrier
            # that prevents it costs speed.
            block = nn.remat(Block, prevent_cse=not cfg.scan, policy=REMAT[cfg.remat])
        settings = (cfg, train, tuple(capture))
        if cfg.scan:
            blocks = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=cfg.depth,
            )(*settings, name="blocks")
            x, captured = blocks(x, drop_rates)
        else:
            each = []
            for i in range(cfg.depth):
                x, captured = block(*settings, name=f"block_{i}")(x, drop_rates[i])
                each.append(captured)
            captured = jax.tree.map(lambda *layers: jnp.stack(layers), *each)
        return make_norm(cfg, "norm")(x), captured
