"""Adapts sharded parameters to another image size, patch size or head."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from vit_jax.models import ModelConfig, VitConfig, param_shapes
from vit_jax.models.lora import merge_lora
from vit_jax.models.resize import resize_patches, resize_posemb
from vit_jax.parallel.rules import param_shardings


def adapt_params(params: PyTree, *, old: ModelConfig, new: ModelConfig, mesh: Mesh) -> PyTree:
    """Resizes position and patch embeddings, and stacks or unstacks blocks.

    A head of another size starts at zero. Low-rank adapters (LoRA) are merged into their kernels if
    the new model has none. All of this is one jitted function over the mesh: no process gathers a
    parameter. The old and new models' blocks have the same shapes. The result is sharded on the
    mesh by `vit_jax.parallel.rules`.
    """
    shapes = param_shapes(new)
    adapt = functools.partial(_adapt, old=old, new=new, shapes=shapes)
    return jax.jit(adapt, out_shardings=param_shardings(shapes, mesh))(params)


def _adapt(params: PyTree, *, old: ModelConfig, new: ModelConfig, shapes: PyTree) -> PyTree:
    if isinstance(old, VitConfig) and not new.lora_rank:
        params, old = merge_lora(params, old)
    changed: dict[str, Any] = {}
    if isinstance(old, VitConfig) and "pos_embedding" in shapes and old.grid != new.grid:
        changed["pos_embedding"] = resize_posemb(
            params["pos_embedding"], old=old.grid, new=new.grid, prefix=old.posemb_rows,
            kernel=new.posemb_resize,
        )  # fmt: skip
    if isinstance(old, VitConfig) and old.patch_size != new.patch_size:
        kernel = resize_patches(params["embedding"]["kernel"], new=new.patch_size)
        changed["embedding"] = {**params["embedding"], "kernel": kernel}
    for head in ("head", "head_dist"):
        if head in shapes and old.num_classes != new.num_classes:
            bias = jnp.full(shapes[head]["bias"].shape, new.head_bias_init)
            changed[head] = {"kernel": jnp.zeros(shapes[head]["kernel"].shape), "bias": bias}
    if "encoder" in params and old.scan != new.scan:
        convert = _stacked if new.scan else _unstacked
        changed["encoder"] = convert(params["encoder"], old.depth)
    return {name: leaf for name, leaf in {**params, **changed}.items() if name in shapes}


def _stacked(encoder: PyTree, depth: int) -> PyTree:
    """Stacks the blocks along a leading axis of depth."""
    names = [f"block_{i}" for i in range(depth)]
    blocks = jax.tree.map(lambda *layers: jnp.stack(layers), *(encoder[name] for name in names))
    return {k: v for k, v in encoder.items() if k not in names} | {"blocks": blocks}


def _unstacked(encoder: PyTree, depth: int) -> PyTree:
    """Splits the stacked blocks into one tree for each block."""
    blocks = {
        f"block_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], encoder["blocks"])
        for i in range(depth)
    }
    return {k: v for k, v in encoder.items() if k != "blocks"} | blocks
