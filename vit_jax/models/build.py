"""Builds the Flax module of a model's config."""

import flax.linen as nn

from vit_jax.config.model import MixerConfig, ModelConfig, ResnetConfig, VitConfig
from vit_jax.models.mixer import Mixer
from vit_jax.models.resnet import Resnet
from vit_jax.models.vit import Vit

_MODULES = {VitConfig: Vit, ResnetConfig: Resnet, MixerConfig: Mixer}


def build(config: ModelConfig) -> nn.Module:
    """Returns the module of a config: `build(config).apply({"params": p}, images)`.

    Its result is `(logits, intermediates)`. The intermediates always contain `pre_logits`,
    float32[b, features].

    Example:
      >>> model = build(create("mu/16", image_size=32, num_classes=10).config)
      >>> type(model).__name__
      'Vit'
    """
    return _MODULES[type(config)](config)
