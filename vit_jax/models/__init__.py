"""Models: sizes by name, the Vision Transformer, and what it costs.

variants    the one table of sizes
config      VitConfig: architecture and numerics, checked
vit         Vit: embedding, encoder, pooling, head
blocks      the encoder and its block; rematerialisation
attention   multi-head attention and its back ends
positions   sincos2d
heads       MAP head
flops       parameters and FLOPs
"""

from vit_jax.models.config import VitConfig, vit_config
from vit_jax.models.flops import forward_flops, num_params, param_shapes, train_flops
from vit_jax.models.variants import VARIANTS, Variant, parse_variant
from vit_jax.models.vit import Vit

__all__ = [
    "VARIANTS",
    "Variant",
    "Vit",
    "VitConfig",
    "forward_flops",
    "num_params",
    "param_shapes",
    "parse_variant",
    "train_flops",
    "vit_config",
]
