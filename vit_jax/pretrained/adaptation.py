"""Adapts sharded parameters to another image size, patch size or head."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from vit_jax.models import MixerConfig, ModelConfig, VitConfig, param_shapes
from vit_jax.models.lora import merge_lora
from vit_jax.models.resize import resize_patches, resize_posemb
from vit_jax.parallel.rules import named_leaves, param_shardings, path_name

NEW_HEAD = "new head, of zeros"


def adapt_params(params: PyTree, *, old: ModelConfig, new: ModelConfig, mesh: Mesh) -> PyTree:
    """Resizes position and patch embeddings, and stacks or unstacks blocks.

    A head for another number of classes is new: its kernel is zero, its bias `head_bias_init`.
    Low-rank adapters (LoRA) are merged into their kernels if the new model has none. All of this is
    one jitted function over the mesh: no process gathers a parameter. Requires that the blocks of
    both models have the same shapes. The result is sharded on the mesh by
    `vit_jax.parallel.rules`.
    """
    return _program(old, new, mesh)(params)


@functools.lru_cache(maxsize=8)  # A run whose model is measured adapts it again and again.
def _program(old: ModelConfig, new: ModelConfig, mesh: Mesh) -> Callable[[PyTree], PyTree]:
    shapes = param_shapes(new)
    adapt = functools.partial(_adapt, old=old, new=new, shapes=shapes)
    return jax.jit(adapt, out_shardings=param_shardings(shapes, mesh))


def adapt_leaf(
    path: str,
    leaf: Float[Array | np.ndarray, "..."] | None,
    *,
    old: ModelConfig,
    new: ModelConfig,
    shape: tuple[int, ...],
) -> tuple[Float[Array | np.ndarray, "..."], str]:
    """Returns a parameter in the shape of another model, and a note of what was changed or "".

    Args:
      path: path of the parameter.
      leaf: its value in the old model; None only for a new head.
      old: config of the old model.
      new: config of the new model.
      shape: shape of the parameter in the new model.
    """
    if path.startswith("head") and old.num_classes != new.num_classes:
        value = new.head_bias_init if path.endswith("bias") else 0.0
        return jnp.full(shape, value), NEW_HEAD
    if (
        path == "pos_embedding"
        and isinstance(old, VitConfig)
        and isinstance(new, VitConfig)
        and old.grid != new.grid
    ):
        resized = resize_posemb(
            jnp.asarray(leaf), old=old.grid, new=new.grid, prefix=old.posemb_rows,
            kernel=new.posemb_resize,
        )  # fmt: skip
        sizes = f"from {_size(old.grid)} to {_size(new.grid)} patches ({new.posemb_resize})"
        return resized, f"position embedding resized {sizes}"
    assert leaf is not None, path
    if path == "embedding/kernel" and leaf.shape != shape:
        note = f"patch embedding resized to {_size(shape[:2])} (FlexiViT)"
        return resize_patches(jnp.asarray(leaf), new=(shape[0], shape[1])), note
    return leaf, ""


def _size(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


def _adapt(params: PyTree, *, old: ModelConfig, new: ModelConfig, shapes: PyTree) -> PyTree:
    if isinstance(old, VitConfig) and isinstance(new, VitConfig) and not new.lora_rank:
        params, old = merge_lora(params, old)
    has_blocks = (VitConfig, MixerConfig)
    if isinstance(old, has_blocks) and isinstance(new, has_blocks) and old.scan != new.scan:
        convert = _stacked if new.scan else _unstacked
        params = {**params, "encoder": convert(params["encoder"], old.depth)}
    leaves = named_leaves(params)

    def adapted(path, target):
        name = path_name(path)
        return adapt_leaf(name, leaves.get(name), old=old, new=new, shape=target.shape)[0]

    return jax.tree_util.tree_map_with_path(adapted, shapes)


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
