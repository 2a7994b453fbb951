"""The pre-norm Transformer encoder (Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1)."""

from collections.abc import Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from vit_jax.config.model import VitConfig
from vit_jax.models import attention as attention_module
from vit_jax.models.attention import MultiHeadAttention
from vit_jax.models.hooks import PERTURBATIONS, REGISTER_NEURONS, move_to_register, perturb
from vit_jax.models.operations import KEPT, Dense, LayerNorm, gelu
from vit_jax.parallel.constraints import (
    BATCH,
    constrain,
    gather_tokens,
    scatter_tokens,
    split_tokens,
)

# `config.model.remat` -> policy: which results of the forward pass are saved for the backward pass.
# Without a policy, with "none" and an "auto" that no run has resolved, nothing is recomputed.
REMAT = {
    "named": jax.checkpoint_policies.save_only_these_names(*KEPT),
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

# Models up to S/16 are not scanned on CPUs.
_UNROLLED_DEPTH, _UNROLLED_PARAMETERS = 12, 2**25

# Intermediates of a block: its output, the outputs of its two branches as they are added to the
# residual stream [b, n, width], the hidden units of its MLP [b, n, mlp_dim], and attention's.
CAPTURED = ("blocks", "attention_branch", "mlp_branch", "hidden", *attention_module.CAPTURED)


def make_norm(config: VitConfig, name: str) -> nn.Module:
    """Returns the model's normalisation layer; its statistics are float32 in every dtype."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(
            epsilon=config.ln_eps, dtype=config.dtype, use_fast_variance=False, name=name
        )
    return LayerNorm(config.ln_eps, config.dtype, name=name)


def drop_path(
    y: Float[Array, "b n width"], drop_rate: Float[Array, ""], rng: jax.Array
) -> Float[Array, "b n width"]:
    """Stochastic depth: zeroes a residual branch for random examples (Huang 2016, 1603.09382).

    The other examples of the branch's output y are multiplied by 1 / (1 - drop_rate).
    """
    keep = jax.random.bernoulli(rng, 1 - drop_rate, (y.shape[0], 1, 1))
    return jnp.where(keep, y / (1 - drop_rate).astype(y.dtype), jnp.zeros_like(y))


class Mlp(nn.Module):
    """Two dense layers with a GELU, a SiLU, or a gate (Shazeer 2020, 2002.05202) between them."""

    config: VitConfig
    train: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n width"]
    ) -> tuple[Float[Array, "b n width"], Float[Array, " width"], Float[Array, "b n hidden"]]:
        """Returns the output without its bias, the bias, and the hidden units' activations."""
        config = self.config

        def dense(features, name):
            return Dense(
                config,
                (features,),
                kernel_init=nn.initializers.xavier_uniform(),
                bias_init=nn.initializers.normal(stddev=1e-6),
                name=name,
            )

        def activation(x):
            if config.mlp in ("silu", "swiglu"):
                return nn.silu(x)
            return gelu(x, approximate=config.gelu == "tanh")

        hidden = constrain(dense(config.mlp_dim, "fc1")(x), BATCH, None, "tensor")
        hidden = checkpoint_name(hidden, "mlp_hidden")
        if config.gated:
            gate = constrain(dense(config.mlp_dim, "gate")(x), BATCH, None, "tensor")
            gate = checkpoint_name(gate, "mlp_hidden")
            x = activation(gate) * hidden
        else:
            x = activation(hidden)
        x = activations = move_to_register(self, x, register=config.num_prefix - 1)
        if config.mlp_norm:
            x = make_norm(config, "norm")(x)
        x = nn.Dropout(config.dropout, deterministic=not self.train)(x)
        y, bias = dense(config.width, "fc2").product_and_bias(x)
        assert bias is not None
        return y, bias, activations


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); or both at once in a parallel block.

    Attributes:
      train: whether dropout and stochastic depth are on.
      capture: intermediates to return: some of `CAPTURED`.
    """

    config: VitConfig
    train: bool
    capture: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n width"], drop_rate: Float[Array, ""]
    ) -> tuple[Float[Array, "b n width"], dict[str, Array]]:
        config = self.config
        attention = MultiHeadAttention(config, self.train, self.capture, rotate=True, name="attn")
        mlp = Mlp(config, self.train, name="mlp")
        x = split_tokens(x)

        y = gather_tokens(make_norm(config, "norm1")(x))
        attn, attn_bias, captured = attention(y, y)
        y_attn = self._branch(attn, attn_bias)
        scale = scale_mlp = self._layer_scale("scale1")
        if config.parallel:
            product, mlp_bias, hidden = mlp(y)
            y_mlp = self._branch(product, mlp_bias)
            if self.train and config.dropout:
                y_both = y_attn + y_mlp
            else:  # One sum over the devices along tensor.
                y_both = scatter_tokens(attn + product) + (attn_bias + mlp_bias)
            x = x + self._drop_path(scale(y_both), drop_rate)
        else:
            x = checkpoint_name(x + self._drop_path(scale(y_attn), drop_rate), "residual")
            product, mlp_bias, hidden = mlp(gather_tokens(make_norm(config, "norm2")(x)))
            y_mlp = self._branch(product, mlp_bias)
            scale_mlp = self._layer_scale("scale2")
            x = x + self._drop_path(scale_mlp(y_mlp), drop_rate)
        x = perturb(self, "blocks", x)

        captured |= {
            "blocks": x, "attention_branch": scale(y_attn), "mlp_branch": scale_mlp(y_mlp),
            "hidden": hidden,
        }  # fmt: skip
        return x, {key: captured[key] for key in self.capture}

    def _branch(self, y, bias):
        """Returns a branch's output, with its bias and dropout, as it is added to the stream."""
        dropout = nn.Dropout(self.config.dropout, deterministic=not self.train)
        return dropout(scatter_tokens(y) + bias)

    def _layer_scale(self, name):
        """Layer scale: a learned factor for each channel of a branch (Touvron 2021, 2103.17239)."""
        config = self.config
        if not config.layer_scale:
            return lambda y: y
        initial = nn.initializers.constant(config.layer_scale)
        factor = self.param(name, initial, (config.width,))
        return lambda y: y * factor.astype(y.dtype)

    def _drop_path(self, y, drop_rate):
        if not self.train or self.config.stochastic_depth == 0:
            return y
        return drop_path(y, drop_rate, self.make_rng("dropout"))


def _blocks_per_iteration(config: Any) -> int:
    """Returns the number of blocks in an iteration of the scan: one, or for small models all.

    What a scan keeps for the backward pass is copied into and out of stacked arrays, which takes a
    CPU long beside a block of a small model. Without the loop, compilation takes as long as for so
    many blocks, XLA copies their parameters, and recomputation would be merged with the forward
    pass.
    """
    parameters = config.depth * config.width * (4 * config.width + 2 * config.mlp_dim)
    is_small = config.depth <= _UNROLLED_DEPTH and parameters <= _UNROLLED_PARAMETERS
    on_cpu = attention_module.current_platform() == "cpu"
    return config.depth if on_cpu and is_small and config.remat not in REMAT else 1


def run_blocks(
    module: nn.Module,
    block: type[nn.Module],
    settings: tuple[Any, ...],
    x: Float[Array, "b n width"],
) -> tuple[Float[Array, "b n width"], dict[str, Array]]:
    """Applies all blocks in sequence, as submodules of the calling module.

    Args:
      module: the calling module; its `config` has depth, stochastic_depth, scan and remat.
      block: class of modules (x, rate of stochastic depth) -> (x, {name: intermediate}).
      settings: arguments of the constructor of `block`.
      x: input of the first block.

    Returns:
      The output of the last block, and each intermediate with a leading axis of depth.
    """
    config: Any = module.config
    drop_rates = jnp.linspace(0.0, config.stochastic_depth, config.depth, dtype=jnp.float32)
    if config.remat in REMAT:
        # Inside a scan, common subexpressions of forward and backward pass cannot be merged anyway,
        # and the barrier that prevents it costs speed.
        block = nn.remat(block, prevent_cse=not config.scan, policy=REMAT[config.remat])
    if config.scan:
        blocks = nn.scan(
            block,
            variable_axes={"params": 0, PERTURBATIONS: 0, REGISTER_NEURONS: 0},
            split_rngs={"params": True, "dropout": True},
            length=config.depth,
            unroll=1 if module.is_initializing() else _blocks_per_iteration(config),
        )(*settings, name="blocks")
        return blocks(x, drop_rates)
    captured_by_block = []
    for i in range(config.depth):
        x, captured = block(*settings, name=f"block_{i}")(x, drop_rates[i])
        captured_by_block.append(captured)
    return x, jax.tree.map(lambda *blocks: jnp.stack(blocks), *captured_by_block)


class Encoder(nn.Module):
    """All blocks, with the model's norms before and after them."""

    config: VitConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n width"], *, train: bool, capture: Collection[str]
    ) -> tuple[Float[Array, "b n width"], dict[str, Array]]:
        """Encodes a sequence of embedded tokens.

        Args:
          x: embedded tokens.
          train: whether dropout and stochastic depth are on.
          capture: intermediates to return: some of `CAPTURED`.

        Returns:
          The encoded tokens, and each intermediate with a leading axis of depth.
        """
        config = self.config
        if config.pre_norm:
            x = make_norm(config, "pre_norm")(x)
        x, captured = run_blocks(self, Block, (config, train, tuple(capture)), x)
        return (make_norm(config, "norm")(x) if config.final_norm == "tokens" else x), captured
