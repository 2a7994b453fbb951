"""The Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929)."""

import dataclasses
from collections.abc import Collection

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.models.blocks import Encoder, make_norm
from vit_jax.models.checks import check_capture, check_images
from vit_jax.models.config import VitConfig
from vit_jax.models.heads import MapHead
from vit_jax.models.positions import sincos2d
from vit_jax.models.resnet import Stem
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
        images: Float[Array | np.ndarray, "b height width channels"],
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
          head's input in float32; `tokens` [b, n, width], the sequence after the final norm (or
          after the blocks, if that norm is of what is pooled), class token, distillation token and
          registers first; if captured, `embed` [b, n, width], the first block's input, `blocks`
          [depth, b, n, width], every block's output, and `attention` [depth, b, heads, n, n].

        Raises:
          ConfigError: images of another size, or an unknown name in `capture`.
        """
        cfg = self.cfg
        check_images(images.shape, cfg.image_size, cfg.channels)
        check_capture(capture, CAPTURABLE)
        x = self._embed(jnp.asarray(images), train=train)
        intermediates = {"embed": x} if "embed" in capture else {}
        x, captured = Encoder(cfg, name="encoder")(
            x, train=train, capture=[name for name in ("blocks", "attention") if name in capture]
        )
        intermediates |= captured
        intermediates["tokens"] = x

        distilled = x[:, 1].astype(jnp.float32) if cfg.distilled else None
        if cfg.pool in ("map", "map_patches"):
            read = x if cfg.pool == "map" else x[:, cfg.num_prefix :]
            x = MapHead(cfg, name="map_head")(read)
        else:
            token, patches = x[:, 0], x[:, cfg.num_prefix :].astype(jnp.float32)
            if cfg.pool == "token":
                x = token
            elif cfg.pool == "gap":
                x = patches.mean(axis=1)
            else:
                x = jnp.concatenate([token, patches.mean(axis=1)], axis=-1)
        x = x.astype(jnp.float32)
        if cfg.final_norm == "pooled":
            x = make_norm(dataclasses.replace(cfg, dtype="float32"), "norm")(x)
        if cfg.rep_size:
            x = nn.tanh(nn.Dense(cfg.rep_size, name="pre_logits")(x))
        intermediates["pre_logits"] = x
        if not cfg.num_classes:
            return x, intermediates
        logits = self._head("head")(x)
        if cfg.distilled:  # Touvron et al. 2020, arXiv 2012.12877: the mean of two classifiers.
            logits = (logits + self._head("head_dist")(distilled)) / 2
        return logits, intermediates

    def _head(self, name):
        return nn.Dense(
            self.cfg.num_classes,
            kernel_init=nn.initializers.zeros,
            bias_init=nn.initializers.constant(self.cfg.head_bias_init),
            name=name,
        )

    def _embed(self, images, *, train):
        """Patches to tokens; positions; class token. [b, height, width, channels] -> [b, n, d]."""
        cfg = self.cfg
        x = images if cfg.stem is None else Stem(cfg.stem, cfg.dtype, name="stem")(images)
        # A convolution whose stride is its kernel is a linear map of each patch.
        x = nn.Conv(
            cfg.width,
            cfg.patch_size,
            strides=cfg.patch_size,
            padding="VALID",
            use_bias=cfg.patch_bias,
            dtype=cfg.dtype,
            name="embedding",
        )(x)
        x = x.reshape(x.shape[0], -1, cfg.width)
        if cfg.posemb == "sincos2d":  # The class token has no place in the grid.
            x = x + sincos2d(cfg.grid, cfg.width).astype(x.dtype)
        prefix = []
        if cfg.has_class_token:
            prefix.append(self.param("cls", nn.initializers.zeros, (1, 1, cfg.width)))
        if cfg.distilled:
            prefix.append(self.param("dist", nn.initializers.zeros, (1, 1, cfg.width)))
        if cfg.registers:
            shape = (1, cfg.registers, cfg.width)
            prefix.append(self.param("registers", nn.initializers.normal(stddev=0.02), shape))
        if prefix:
            prefix = jnp.concatenate(prefix, axis=1).astype(x.dtype)
            x = jnp.concatenate([jnp.tile(prefix, (x.shape[0], 1, 1)), x], axis=1)
        if cfg.posemb == "learned":
            rows, patches = cfg.posemb_rows, cfg.num_tokens - cfg.num_prefix
            posemb = self.param(
                "pos_embedding",
                nn.initializers.normal(stddev=0.02),
                (1, rows + patches, cfg.width),
            ).astype(x.dtype)
            # Registers stand between the class token and the patches, and may have no position.
            gap = jnp.zeros((1, cfg.num_prefix - rows, cfg.width), x.dtype)
            x = x + jnp.concatenate([posemb[:, :rows], gap, posemb[:, rows:]], axis=1)
        x = nn.Dropout(cfg.dropout, deterministic=not train)(x)
        return constrain(x, BATCH, None, None)
