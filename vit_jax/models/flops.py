"""How many parameters a model has and how many operations it takes, counted by hand.

One multiply-add is two FLOPs. Only matrix products are counted, as in the papers: softmax, norms
and GELU are left out (XLA's own count, which has them, is a few per cent larger; the tests
compare). A training step takes three times the forward pass: the backward pass multiplies each
gradient with the input and with the kernel. Recomputation (remat) is not counted, so that MFU
measures the model's work and not the machine's.
"""

import jax
import jax.numpy as jnp

from vit_jax.models.build import ModelConfig, build
from vit_jax.models.config import VitConfig


def forward_flops(cfg: VitConfig) -> int:
    """FLOPs of the forward pass of one image."""
    n, width = cfg.num_tokens, cfg.width
    patches = cfg.grid[0] * cfg.grid[1]
    embedding = patches * cfg.patch_size[0] * cfg.patch_size[1] * cfg.channels * width
    projections = 4 * n * width * width  # Query, key, value, out.
    attention = 2 * n * n * width  # Query with key, weights with value.
    mlp = 2 * n * width * cfg.mlp_dim
    macs = embedding + cfg.depth * (projections + attention + mlp)
    features = width
    if cfg.pool == "map":
        macs += 2 * (1 + n) * width * width + 2 * n * width + 2 * width * cfg.mlp_dim
    if cfg.rep_size:
        macs += features * cfg.rep_size
        features = cfg.rep_size
    macs += features * cfg.num_classes
    return 2 * macs


def train_flops(cfg: ModelConfig) -> int:
    """FLOPs of the forward and backward pass of one image."""
    return 3 * forward_flops(cfg)


def param_shapes(cfg: ModelConfig) -> dict:
    """The tree of parameters as `jax.ShapeDtypeStruct`s; nothing is computed or allocated."""
    images = jax.ShapeDtypeStruct((1, *cfg.image_size, cfg.channels), jnp.float32)
    rng = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(build(cfg).init, rng, images)["params"]


def num_params(cfg: ModelConfig) -> int:
    """Number of parameters, embeddings and head included."""
    return sum(leaf.size for leaf in jax.tree.leaves(param_shapes(cfg)))
