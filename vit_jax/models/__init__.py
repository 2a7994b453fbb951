"""Models: sizes by name, Vision Transformers, ResNets and Mixers, and what they cost.

variants    the one table of sizes
build       config.model -> VitConfig, ResnetConfig or MixerConfig -> the module
section     a model's config -> config.model, to be written beside a published checkpoint
config      VitConfig: architecture and numerics, checked
checks      what all such configs check
vit         Vit: embedding, encoder, pooling, head
resnet      Resnet (the CNN baseline), and the stem of hybrids
mixer       Mixer
blocks      the encoder and its block; rematerialisation
attention   multi-head attention and its back ends
lora        low-rank adapters of attention, and their merging
positions   sincos2d, rotary embeddings
resize      position and patch embeddings for another size
heads       MAP head
flops       parameters and FLOPs
"""

from vit_jax.models.build import ModelConfig, build, model_config
from vit_jax.models.config import VitConfig
from vit_jax.models.flops import (
    forward_flops,
    num_params,
    num_params_non_embedding,
    param_shapes,
    train_flops_per_image,
    update_flops_per_image,
)
from vit_jax.models.mixer import Mixer, MixerConfig
from vit_jax.models.resnet import Resnet, ResnetConfig, StemConfig
from vit_jax.models.variants import VARIANTS, Variant, family, parse_variant
from vit_jax.models.vit import Vit

__all__ = [
    "VARIANTS",
    "Mixer",
    "MixerConfig",
    "ModelConfig",
    "Resnet",
    "ResnetConfig",
    "StemConfig",
    "Variant",
    "Vit",
    "VitConfig",
    "build",
    "family",
    "forward_flops",
    "model_config",
    "num_params",
    "num_params_non_embedding",
    "param_shapes",
    "parse_variant",
    "train_flops_per_image",
    "update_flops_per_image",
]
