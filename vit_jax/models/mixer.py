"""MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601): dense layers over tokens, then channels."""

from collections.abc import Collection

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from vit_jax.config.model import MixerConfig
from vit_jax.errors import ConfigError
from vit_jax.models.blocks import drop_path, run_blocks
from vit_jax.models.classifier import Classifier
from vit_jax.models.hooks import perturb
from vit_jax.models.operations import Dense, LayerNorm, gelu
from vit_jax.models.patches import embed_patches
from vit_jax.parallel.constraints import BATCH, constrain


def _norm(config, name):
    return LayerNorm(config.ln_eps, config.dtype, name=name)


class MixerMlp(nn.Module):
    """Two dense layers over the last axis, with a GELU between them."""

    config: MixerConfig
    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "b m n"]) -> Float[Array, "b m n"]:
        config = self.config
        y = Dense(config, (self.hidden,), name="fc1")(x)
        y = gelu(checkpoint_name(y, "mlp_hidden"), approximate=config.gelu == "tanh")
        return Dense(config, (x.shape[-1],), name="fc2")(y)


class MixerBlock(nn.Module):
    """x + mlp(norm(x)) over the tokens of each channel, then over the channels of each token.

    Attributes:
      train: whether stochastic depth is on.
      capture: intermediates to return: "blocks" or none.
    """

    config: MixerConfig
    train: bool
    capture: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n width"], drop_rate: Float[Array, ""]
    ) -> tuple[Float[Array, "b n width"], dict[str, Array]]:
        config = self.config
        x = constrain(x, BATCH, None, None)
        y = _norm(config, "norm1")(x).swapaxes(1, 2)
        y = MixerMlp(config, config.token_mlp_dim, name="token_mlp")(y).swapaxes(1, 2)
        x = checkpoint_name(x + self._drop_path(y, drop_rate), "residual")
        y = MixerMlp(config, config.mlp_dim, name="mlp")(_norm(config, "norm2")(x))
        x = perturb(self, "blocks", x + self._drop_path(y, drop_rate))
        return x, dict.fromkeys(self.capture, x)

    def _drop_path(self, y, drop_rate):
        if not self.train or self.config.stochastic_depth == 0:
            return y
        return drop_path(y, drop_rate, self.make_rng("dropout"))


class MixerEncoder(nn.Module):
    """All blocks and the norm after them."""

    config: MixerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n width"], *, train: bool, capture: Collection[str]
    ) -> tuple[Float[Array, "b n width"], dict[str, Array]]:
        config = self.config
        x, captured = run_blocks(self, MixerBlock, (config, train, tuple(capture)), x)
        return _norm(config, "norm")(x), captured


class Mixer(Classifier[MixerConfig]):
    """An MLP-Mixer, called as `vit_jax.models.Vit`.

    Parameters are float32. Computation is in `config.dtype`, except the statistics of norms and
    everything from the mean of the tokens on, which are float32. Stochastic depth scales the
    branches that it does not drop by 1 / (1 - rate), as in our ViT; big_vision's Mixer does not.

    The intermediates are `tokens` [b, n, width], after the last norm; `pre_logits` [b, width],
    their mean; if captured, `embed` [b, n, width], the first block's input, and `blocks`
    [depth, b, n, width], every block's output.

    Example:
      >>> config = create("Mixer-S/16", image_size=32, num_classes=10).config
      >>> Mixer(config).config.width
      512
    """

    config: MixerConfig
    capturable = ("embed", "blocks")

    def classify(self, images, *, train, capture):
        """See `Classifier.classify`. Raises ConfigError for parameters of another image size."""
        config = self.config
        self._check_params()
        x = embed_patches(config)(images)
        intermediates = {"embed": x} if "embed" in capture else {}
        x, captured = MixerEncoder(config, name="encoder")(
            x, train=train, capture=[name for name in capture if name == "blocks"]
        )
        intermediates |= captured
        intermediates["tokens"] = x
        x = x.astype(jnp.float32).mean(axis=1)
        intermediates["pre_logits"] = x
        if not config.num_classes:
            return x, intermediates
        return self.head(x), intermediates

    def _check_params(self):
        """Raises ConfigError if there are parameters for another number of patches."""
        encoder = self.variables.get("params", {}).get("encoder", {})
        block = encoder.get("blocks", encoder.get("block_0"))
        if block is None:
            return
        num_patches, expected = (
            block["token_mlp"]["fc1"]["kernel"].shape[-2],
            self.config.num_tokens,
        )
        if num_patches != expected:
            raise ConfigError(
                f"These parameters of a Mixer are for {num_patches} patches, but model.image_size "
                f"{self.config.image_size} has {expected}: unlike a ViT, a Mixer cannot change its "
                "resolution. Set the size that it was trained at, or resize the images."
            )
