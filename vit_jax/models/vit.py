"""The Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.config.model import VitConfig
from vit_jax.models.blocks import CAPTURED, Encoder, make_norm
from vit_jax.models.classifier import Classifier
from vit_jax.models.heads import MapHead
from vit_jax.models.patches import embed_patches
from vit_jax.models.positions import sincos2d
from vit_jax.models.resnet import Stem
from vit_jax.parallel.constraints import split_tokens


class Vit(Classifier[VitConfig]):
    """A Vision Transformer: `Vit(config).apply({"params": p}, images) -> (logits, intermediates)`.

    Parameters are float32. Computation is in `config.dtype`, except softmax, the statistics of
    norms, the pre-logits layer and the head, which are float32.

    The intermediates are `pre_logits` [b, width or rep_size]; `tokens` [b, n, width], the encoded
    sequence (class token, distillation token and registers first), after the final norm unless that
    follows pooling; if captured, `embed` [b, n, width], the first block's input; `blocks`
    [depth, b, n, width], every block's output; `attention` [depth, b, heads, n, n]; the other names
    of `vit_jax.models.blocks.CAPTURED`, with a leading axis of depth; and `pool_attention`
    [b, heads, 1, n], the weights of a MAP head.

    Example:
      >>> model = create("mu/16", image_size=32, num_classes=10)  # model.model is a Vit.
      >>> images = np.zeros((2, 32, 32, 3), np.float32)
      >>> logits, intermediates = model(images, capture=["attention"])
      >>> intermediates["attention"].shape  # Class token and four patches.
      (1, 2, 2, 5, 5)
    """

    config: VitConfig
    capturable = ("embed", *CAPTURED, "pool_attention")

    def classify(self, images, *, train, capture):
        """See `Classifier.classify`."""
        config = self.config
        x = self._embed(images, train=train)
        intermediates = {"embed": x} if "embed" in capture else {}
        x, captured = Encoder(config, name="encoder")(
            x, train=train, capture=[name for name in CAPTURED if name in capture]
        )
        intermediates |= captured
        intermediates["tokens"] = x

        distilled = x[:, 1].astype(jnp.float32) if config.distilled else None
        if config.pool in ("map", "map_patches"):
            tokens = x if config.pool == "map" else x[:, config.num_prefix :]
            weights = ("attention",) if "pool_attention" in capture else ()
            x, pooling = MapHead(config, weights, name="map_head")(tokens)
            intermediates |= {f"pool_{name}": value for name, value in pooling.items()}
        else:
            token, patches = x[:, 0], x[:, config.num_prefix :].astype(jnp.float32)
            if config.pool == "token":
                x = token
            elif config.pool == "gap":
                x = patches.mean(axis=1)
            else:
                x = jnp.concatenate([token, patches.mean(axis=1)], axis=-1)
        x = x.astype(jnp.float32)
        if config.final_norm == "pooled":
            x = make_norm(dataclasses.replace(config, dtype="float32"), "norm")(x)
        if config.rep_size:
            x = nn.tanh(nn.Dense(config.rep_size, name="pre_logits")(x))
        intermediates["pre_logits"] = x
        if not config.num_classes:
            return x, intermediates
        logits = self.head(x)
        if distilled is not None:
            # Touvron et al. 2020, arXiv 2012.12877: the mean of two classifiers.
            logits = (logits + self.head(distilled, "head_dist")) / 2
        return logits, intermediates

    def _embed(self, images, *, train):
        """Embeds patches, positions and prefix tokens: [b, h, w, channels] -> [b, n, width]."""
        config = self.config
        x = images if config.stem is None else Stem(config.stem, config.dtype, name="stem")(images)
        x = embed_patches(config, use_bias=config.patch_bias)(x)
        if config.posemb == "sincos2d":  # Prefix tokens have no position in the grid.
            x = x + sincos2d(config.grid, config.width).astype(x.dtype)
        prefix = []
        if config.has_class_token:
            prefix.append(self.param("cls", nn.initializers.zeros, (1, 1, config.width)))
        if config.distilled:
            prefix.append(self.param("dist", nn.initializers.zeros, (1, 1, config.width)))
        if config.registers:
            shape = (1, config.registers, config.width)
            prefix.append(self.param("registers", nn.initializers.normal(stddev=0.02), shape))
        if prefix:
            prefix = jnp.concatenate(prefix, axis=1).astype(x.dtype)
            x = jnp.concatenate([jnp.tile(prefix, (x.shape[0], 1, 1)), x], axis=1)
        if config.posemb == "learned":
            rows, patches = config.posemb_rows, config.num_tokens - config.num_prefix
            posemb = self.param(
                "pos_embedding",
                nn.initializers.normal(stddev=0.02),
                (1, rows + patches, config.width),
            ).astype(x.dtype)
            # Prefix tokens without a row, such as registers, come right before the patches.
            zeros = jnp.zeros((1, config.num_prefix - rows, config.width), x.dtype)
            x = x + jnp.concatenate([posemb[:, :rows], zeros, posemb[:, rows:]], axis=1)
        x = nn.Dropout(config.dropout, deterministic=not train)(x)
        return split_tokens(x)
