"""MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601): dense layers over tokens, then channels."""

import dataclasses
from collections.abc import Collection

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import ConfigError
from vit_jax.models.blocks import drop_path, run_blocks
from vit_jax.models.checks import (
    check_capture,
    check_choices,
    check_images,
    check_multiple,
    check_ranges,
)
from vit_jax.models.config import CHOICES
from vit_jax.parallel.constraints import BATCH, constrain

CAPTURABLE = ("embed", "blocks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """Architecture and numerics of an MLP-Mixer. Hashable, checked when made.

    The fields have the meaning and units that `vit_jax.config.base_config` declares.

    Raises:
      ConfigError: a value is not accepted, or two do not go together.
    """

    image_size: tuple[int, int]  # Height, width, pixels.
    patch_size: tuple[int, int]
    channels: int = 3
    num_classes: int  # 0: no head, the logits are the pre-logits.
    width: int
    depth: int
    mlp_dim: int  # Of the MLP over channels.
    token_mlp_dim: int
    stochastic_depth: float = 0.0
    head_bias_init: float = 0.0
    ln_eps: float = 1e-6
    gelu: str = "tanh"
    dtype: str = "float32"
    scan: bool = True
    remat: str = "none"

    def __post_init__(self):
        check_choices(self, {field: CHOICES[field] for field in ("gelu", "dtype", "remat")})
        check_ranges(self)
        check_multiple(self.image_size, self.patch_size, what="the patch size")

    @property
    def num_tokens(self) -> int:
        """Patches of an image, which the parameters are made for."""
        rows, columns = (
            side // patch for side, patch in zip(self.image_size, self.patch_size, strict=True)
        )
        return rows * columns


def _norm(cfg, name):
    return nn.LayerNorm(epsilon=cfg.ln_eps, dtype=cfg.dtype, use_fast_variance=False, name=name)


class MixerMlp(nn.Module):
    """Two dense layers over the last axis, with a GELU between them."""

    cfg: MixerConfig
    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "b m n"]) -> Float[Array, "b m n"]:
        cfg = self.cfg
        y = nn.Dense(self.hidden, dtype=cfg.dtype, name="fc1")(x)
        y = nn.gelu(y, approximate=cfg.gelu == "tanh")
        return nn.Dense(x.shape[-1], dtype=cfg.dtype, name="fc2")(y)


class MixerBlock(nn.Module):
    """x + mlp(norm(x)) over the tokens of each channel, then over the channels of each token.

    Attributes:
      cfg: of the model.
      train: stochastic depth on.
      capture: "blocks" or nothing: what to return beside the output.
    """

    cfg: MixerConfig
    train: bool
    capture: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n width"], drop_rate: Float[Array, ""]
    ) -> tuple[Float[Array, "b n width"], dict[str, Array]]:
        cfg = self.cfg
        x = constrain(x, BATCH, None, None)
        y = _norm(cfg, "norm1")(x).swapaxes(1, 2)
        y = MixerMlp(cfg, cfg.token_mlp_dim, name="token_mlp")(y).swapaxes(1, 2)
        x = x + self._drop_path(y, drop_rate)
        y = MixerMlp(cfg, cfg.mlp_dim, name="mlp")(_norm(cfg, "norm2")(x))
        x = x + self._drop_path(y, drop_rate)
        return x, dict.fromkeys(self.capture, x)

    def _drop_path(self, y, drop_rate):
        if not self.train or self.cfg.stochastic_depth == 0:
            return y
        return drop_path(y, drop_rate, self.make_rng("dropout"))


class MixerEncoder(nn.Module):
    """All blocks and the norm after them."""

    cfg: MixerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n width"], *, train: bool, capture: Collection[str]
    ) -> tuple[Float[Array, "b n width"], dict[str, Array]]:
        cfg = self.cfg
        x, captured = run_blocks(MixerBlock, cfg, (cfg, train, tuple(capture)), x)
        return _norm(cfg, "norm")(x), captured


class Mixer(nn.Module):
    """An MLP-Mixer: `Mixer(cfg).apply({"params": p}, images) -> (logits, intermediates)`, as `Vit`.

    Parameters are float32 and computation is in `cfg.dtype`, but for the statistics of the norms
    and everything from the average of the tokens on. What stochastic depth keeps grows by
    1 / (1 - rate), as in our ViT; big_vision's Mixer leaves it as it is.
    """

    cfg: MixerConfig

    @nn.compact
    def __call__(
        self,
        images: Float[Array | np.ndarray, "b height width channels"],
        *,
        train: bool = False,
        capture: Collection[str] = (),
    ) -> tuple[Float[Array, "b classes"], dict[str, Array]]:
        """Classifies images.

        Args:
          images: of the config's size and channels, normalised as the model was trained.
          train: stochastic depth on; then pass `rngs={"dropout": key}`.
          capture: some of "embed", "blocks": further intermediates to return.

        Returns:
          The logits in float32, and intermediates: `tokens` [b, n, width], after the last norm;
          `pre_logits` [b, width], their mean in float32; if captured, `embed` [b, n, width], the
          first block's input, and `blocks` [depth, b, n, width], every block's output.

        Raises:
          ConfigError: images of another size, parameters for another number of patches, or an
            unknown name in `capture`.
        """
        cfg = self.cfg
        check_images(images.shape, cfg.image_size, cfg.channels)
        check_capture(capture, CAPTURABLE)
        self._check_params()
        x = nn.Conv(
            cfg.width,
            cfg.patch_size,
            strides=cfg.patch_size,
            padding="VALID",
            dtype=cfg.dtype,
            name="embedding",
        )(images)
        x = x.reshape(x.shape[0], -1, cfg.width)
        intermediates = {"embed": x} if "embed" in capture else {}
        x, captured = MixerEncoder(cfg, name="encoder")(
            x, train=train, capture=[name for name in capture if name == "blocks"]
        )
        intermediates |= captured
        intermediates["tokens"] = x
        x = x.astype(jnp.float32).mean(axis=1)
        intermediates["pre_logits"] = x
        if not cfg.num_classes:
            return x, intermediates
        head = nn.Dense(
            cfg.num_classes,
            kernel_init=nn.initializers.zeros,
            bias_init=nn.initializers.constant(cfg.head_bias_init),
            name="head",
        )
        return head(x), intermediates

    def _check_params(self):
        """Raises ConfigError if there are parameters, and they mix another number of patches."""
        encoder = self.variables.get("params", {}).get("encoder", {})
        block = encoder.get("blocks", encoder.get("block_0"))
        if block is None:
            return
        there = block["token_mlp"]["fc1"]["kernel"].shape[-2]
        if there != self.cfg.num_tokens:
            raise ConfigError(
                f"These parameters of a Mixer are for {there} patches, and model.image_size "
                f"{self.cfg.image_size} has {self.cfg.num_tokens}: unlike a ViT, it cannot change "
                "its resolution. Give the size that it was trained at, or resize the images."
            )
