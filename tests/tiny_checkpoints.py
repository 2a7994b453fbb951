"""Tiny models with random parameters as `Pretrained`, to export, damage and load again."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models import VitConfig, build
from vit_jax.pretrained.model import Pretrained
from vit_jax.pretrained.preprocess import Preprocess, from_family, from_hf

VIT = VitConfig(
    image_size=(32, 32), patch_size=(8, 8), num_classes=5, width=16, depth=2, mlp_dim=24,
    num_heads=4, gelu="erf", posemb_resize="bicubic",
)  # fmt: skip
LABELS = tuple(f"thing {k}" for k in range(5))


def tiny(config=VIT, *, family="hf", labels=None, seed=0, **changes):
    """Returns a model with random parameters: none is zero or one, unlike initial ones."""
    config = dataclasses.replace(config, **changes)
    model = build(config)
    images = jax.ShapeDtypeStruct((1, *config.image_size, config.channels), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape)), shapes)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    size = config.image_size
    transforms = (
        from_hf({}, image_size=size) if family == "hf" else from_family(family, image_size=size)
    )
    return Pretrained(
        model=model,
        params=params,
        config=config,
        preprocess=Preprocess(transforms, config.image_size, config.channels),
        labels=labels,
        format="made here",
        published=config,
        left_out=(),
        notes=(),
    )


def outputs(pretrained, images):
    """Returns logits and intermediates, computed with exact matrix products."""

    def apply(params, images):
        logits, intermediates = pretrained.model.apply({"params": params}, images)
        return {"logits": logits, **intermediates}

    with jax.default_matmul_precision("highest"):
        return jax.device_get(jax.jit(apply)(pretrained.params, images))


def random_images(pretrained, n=2):
    """Returns random images of a model's input shape."""
    shape = (n, *pretrained.config.image_size, pretrained.config.channels)
    return np.random.default_rng(1).standard_normal(shape, np.float32)
