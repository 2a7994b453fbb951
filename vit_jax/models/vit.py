"""The Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929)."""

from collections.abc import Collection

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.models.blocks import Encoder
from vit_jax.models.config import VitConfig
from vit_jax.models.heads import MapHead
from vit_jax.models.positions import sincos2d
from vit_jax.parallel.constraints import BATCH, constrain

CAPTURABLE = ("embed", "blocks", "attention")


class Vit(nn.Module):
    """A Vision Transformer: `Vit(cfg).apply({"params": p}, images) -> (logits, intermediates)`.

    Parameters are float32 and computation is in `cfg.dtype`, but for softmax, the statistics of
    the norms, the pre-logits layer and the head, which are float32.
    """

    cfg: VitConfig

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b height width channels"],
        *,
        train: bool = False,
        capture: Collection[str] = (),
    ) -> tuple[Float[Array, "b classes"], dict[str, Array]]:
        """Classifies images.

        Args:
          images: of the config's size and channels, normalised as the model was trained.
          train: dropout and stochastic depth on; then pass `rngs={"dropout": key}`.
          capture: some of "embed", "blocks", "attention": further intermediates to return. What
            is not asked for is not kept.

        Returns:
          The logits in float32, and intermediates: `pre_logits` [b, width or rep_size], the
          head's input in float32; `tokens` [b, n, width], the sequence after the final norm, class
          token first; if captured, `embed` [b, n, width], the first block's input, `blocks`
          [depth, b, n, width], every block's output, and `attention` [depth, b, heads, n, n].

        Raises:
          ConfigError: images of another size, or an unknown name in `capture`.
        """
        cfg = self.cfg
        if images.shape[1:] != (*cfg.image_size, cfg.channels):
            raise ConfigError(
                f"This model takes images of height, width, channels "
                f"{(*cfg.image_size, cfg.channels)}, not {images.shape[1:]}: set model.image_size "
                "and model.channels, or resize the images."
            )
        for name in capture:
            if name not in CAPTURABLE:
                raise ConfigError(
                    f'Cannot capture "{name}". ' + did_you_mean(str(name), CAPTURABLE)
                )

        x = self._embed(images, train=train)
        intermediates = {"embed": x} if "embed" in capture else {}
        x, captured = Encoder(cfg, name="encoder")(
            x, train=train, capture=[name for name in ("blocks", "attention") if name in capture]
        )
        intermediates |= captured
        intermediates["tokens"] = x

        if cfg.pool == "map":
            x = MapHead(cfg, name="map_head")(x)
        else:
            x = x[:, 0] if cfg.pool == "token" else x.astype(jnp.float32).mean(axis=1)
        x = x.astype(jnp.float32)
        if cfg.rep_size:
            x = nn.tanh(nn.Dense(cfg.rep_size, name="pre_logits")(x))
        intermediates["pre_logits"] = x
        if cfg.num_classes:
            x = nn.Dense(
                cfg.num_classes,
                kernel_init=nn.initializers.zeros,
                bias_init=nn.initializers.constant(cfg.head_bias_init),
                name="head",
            )(x)
        return x, intermediates

    def _embed(self, images, *, train):
        """Patches to tokens; positions; class token. [b, height, width, channels] -> [b, n, d]."""
        cfg = self.cfg
        # A convolution whose stride is its kernel is a linear map of each patch.
        x = nn.Conv(
            cfg.width,
            cfg.patch_size,
            strides=cfg.patch_size,
            padding="VALID",
            dtype=cfg.dtype,
            name="embedding",
        )(images)
        x = x.reshape(x.shape[0], -1, cfg.width)
        if cfg.posemb == "sincos2d":  # The class token has no place in the grid.
            x = x + sincos2d(cfg.grid, cfg.width).astype(x.dtype)
        if cfg.pool == "token":
            cls = self.param("cls", nn.initializers.zeros, (1, 1, cfg.width))
            cls = jnp.tile(cls.astype(x.dtype), (x.shape[0], 1, 1))
            x = jnp.concatenate([cls, x], axis=1)
        if cfg.posemb == "learned":
            shape = (1, cfg.num_tokens, cfg.width)
            x = x + self.param("pos_embedding", nn.initializers.normal(stddev=0.02), shape).astype(
                x.dtype
            )
        x = nn.Dropout(cfg.dropout, deterministic=not train)(x)
        return constrain(x, BATCH, None, None)
