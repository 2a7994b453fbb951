"""Models: sizes by name, Vision Transformers, ResNets and Mixers, and their costs.

variants    the table of sizes
section     config.model -> VitConfig, ResnetConfig or MixerConfig, and the inverse
description the name or the sizes of a model, in words
build       such a config -> the module
classifier  base class of all models: call, checks, linear head
vit         Vit: embedding, encoder, pooling, head
resnet      Resnet (the CNN baseline), and the stem of hybrids
mixer       Mixer
patches     the embedding of patches
blocks      the encoder and its block; rematerialisation
attention   multi-head attention and its back ends
operations  GELU, LayerNorm, attention and dense layers with backward passes of their own
lora        low-rank adapters of attention, and merging them
positions   sincos2d and rotary position embeddings
resize      resizes position and patch embeddings
heads       MAP head
hooks       variables beside the parameters with which analyses change a forward pass
flops       counts parameters and FLOPs
"""

from vit_jax.config.model import (
    MixerConfig,
    ModelConfig,
    ResnetConfig,
    StemConfig,
    VitConfig,
)
from vit_jax.models.build import build
from vit_jax.models.description import describe_model
from vit_jax.models.flops import (
    forward_flops,
    num_params,
    num_params_non_embedding,
    param_shapes,
    train_flops_per_image,
    update_flops_per_image,
)
from vit_jax.models.mixer import Mixer
from vit_jax.models.resnet import Resnet
from vit_jax.models.section import read_section, with_remat
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
    "describe_model",
    "family",
    "forward_flops",
    "num_params",
    "num_params_non_embedding",
    "param_shapes",
    "parse_variant",
    "read_section",
    "train_flops_per_image",
    "update_flops_per_image",
    "with_remat",
]
