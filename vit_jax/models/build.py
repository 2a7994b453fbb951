"""The module of a model's config."""

import flax.linen as nn

from vit_jax.config.model import MixerConfig, ModelConfig, ResnetConfig, VitConfig
from vit_jax.models.mixer import Mixer
from vit_jax.models.resnet import Resnet
from vit_jax.models.vit import Vit

_MODULES = {VitConfig: Vit, ResnetConfig: Resnet, MixerConfig: Mixer}


def build(config: ModelConfig) -> nn.Module:
    """The module of a config: `build(config).apply({"params": p}, images)`.

    It gives `(logits, intermediates)`; these always have `pre_logits`, [b, features] in float32.
    """
    return _MODULES[type(config)](config)
