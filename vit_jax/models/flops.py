"""How many parameters a model has and how many operations it takes, counted by hand.

One multiply-add is two FLOPs. Only matrix products and convolutions are counted, as in the papers:
softmax, norms and GELU are left out (XLA's own count, which has them, is a few per cent larger; the
tests compare). A training step takes three times the forward pass: the backward pass multiplies
each gradient with the input and with the kernel. Recomputation (remat) is not counted, so that MFU
measures the model's work and not the machine's.
"""

import functools
import math

import jax
import jax.numpy as jnp

from vit_jax.models.build import ModelConfig, build
from vit_jax.models.config import VitConfig
from vit_jax.models.mixer import MixerConfig
from vit_jax.models.resnet import ResnetConfig, StemConfig


def forward_flops(cfg: ModelConfig) -> int:
    """FLOPs of the forward pass of one image."""
    match cfg:
        case VitConfig():
            macs = _vit_macs(cfg)
        case MixerConfig():
            macs = _mixer_macs(cfg)
        case ResnetConfig():
            macs = _resnet_macs(cfg, cfg.image_size, cfg.channels) + cfg.features * cfg.num_classes
    return 2 * macs


def _vit_macs(cfg: VitConfig) -> int:
    n, width = cfg.num_tokens, cfg.width
    macs, channels = 0, cfg.channels
    if cfg.stem is not None:
        macs, channels = _resnet_macs(cfg.stem, cfg.image_size, cfg.channels), cfg.stem.features
    patches = cfg.grid[0] * cfg.grid[1]
    macs += patches * cfg.patch_size[0] * cfg.patch_size[1] * channels * width
    projections = 4 * n * width * width  # Query, key, value, out.
    attention = 2 * n * n * width  # Query with key, weights with value.
    mlp = (3 if cfg.gated else 2) * n * width * cfg.mlp_dim  # A gate is a third matrix.
    adapters = 8 * n * width * cfg.lora_rank  # Two thin matrices for each projection.
    macs += cfg.depth * (projections + adapters + attention + mlp)
    if cfg.pool in ("map", "map_patches"):
        read = n if cfg.pool == "map" else patches
        macs += 2 * (1 + read) * width * width + 2 * read * width + 2 * width * cfg.mlp_dim
    features = 2 * width if cfg.pool == "token_gap" else width
    if cfg.rep_size:
        macs += features * cfg.rep_size
        features = cfg.rep_size
    return macs + (features + (width if cfg.distilled else 0)) * cfg.num_classes


def _mixer_macs(cfg: MixerConfig) -> int:
    n, width = cfg.num_tokens, cfg.width
    embedding = n * cfg.patch_size[0] * cfg.patch_size[1] * cfg.channels * width
    block = 2 * n * width * (cfg.token_mlp_dim + cfg.mlp_dim)
    return embedding + cfg.depth * block + width * cfg.num_classes


def _resnet_macs(cfg: StemConfig, image_size: tuple[int, int], channels: int) -> int:
    """Of root and stages. What a kernel multiplies beyond the border is counted, as usual."""

    def conv(features_in, features, size, place):
        return math.prod(place) * size * size * features_in * features

    def halved(place):
        return tuple(-(-side // 2) for side in place)

    place = halved(image_size)
    macs = conv(channels, cfg.root_width, 7, place)
    place, features = halved(place), cfg.root_width
    for stage, units in enumerate(cfg.units):
        width = cfg.root_width * 2**stage
        for unit in range(units):
            before, project = place, unit == 0
            if stage and project:
                place = halved(place)
            macs += conv(features, width, 1, before) + conv(width, width, 3, place)
            macs += conv(width, 4 * width, 1, place)
            if project:
                macs += conv(features, 4 * width, 1, place)
            features = 4 * width
    return macs


def train_flops(cfg: ModelConfig) -> int:
    """FLOPs of the forward and backward pass of one image."""
    return 3 * forward_flops(cfg)


def head_flops(cfg: ModelConfig) -> int:
    """FLOPs of the forward and backward pass of the head alone, from one image's features."""
    return 6 * param_shapes(cfg)["head"]["kernel"].size


def update_flops(cfg: ModelConfig, *, head_only: bool, sam: bool) -> int:
    """FLOPs that an update of a run takes for each of its images.

    Args:
      cfg: of the model.
      head_only: whether the head alone is trained, on features (`config.cache_features`).
      sam: whether the gradient is taken a second time (`config.optim.sam_rho`).
    """
    return (head_flops(cfg) if head_only else train_flops(cfg)) * (2 if sam else 1)


def param_shapes(cfg: ModelConfig) -> dict:
    """The tree of parameters as `jax.ShapeDtypeStruct`s; nothing is computed or allocated."""
    return jax.tree.map(lambda leaf: leaf, _param_shapes(cfg))  # The caller's own dicts.


@functools.cache
def _param_shapes(cfg: ModelConfig) -> dict:
    # Half a second for a ViT-L without scan, and reading a checkpoint asks for it several times.
    images = jax.ShapeDtypeStruct((1, *cfg.image_size, cfg.channels), jnp.float32)
    rng = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(build(cfg).init, rng, images)["params"]


def num_params(cfg: ModelConfig) -> int:
    """Number of parameters, embeddings and head included."""
    return sum(leaf.size for leaf in jax.tree.leaves(param_shapes(cfg)))


# Of a Vision Transformer: what turns patches into tokens, the tokens that are no patches, and the
# classifier. (Of a ResNet only the head is of these; its root is a convolution like the others.)
_EMBEDDING = ("embedding", "pos_embedding", "cls", "dist", "registers", "head", "head_dist")


def num_params_non_embedding(cfg: ModelConfig) -> int:
    """Number of parameters without patch and position embeddings, further tokens and the head.

    It is the size that laws of scaling are written in (Kaplan et al. 2020, arXiv 2001.08361): the
    parameters that are left do not depend on the picture's size, nor on how many classes there are.
    """
    shapes = param_shapes(cfg)
    kept = {name: tree for name, tree in shapes.items() if name not in _EMBEDDING}
    return sum(leaf.size for leaf in jax.tree.leaves(kept))
