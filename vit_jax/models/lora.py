"""Low-rank adapters of a projection (LoRA; Hu et al. 2021, arXiv 2106.09685).

A frozen kernel W becomes W + (alpha / rank) A B. A is initialised Gaussian and B zero, so initially
the model is unchanged. The query, key, value and output projections of every attention have them.
"""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vit_jax.config.model import VitConfig

SUFFIX = "_lora"  # "query_lora" adapts "query".
PATTERN = f".*{SUFFIX}/[ab]"  # Matches the paths of all adapters' parameters.


class Adapter(nn.Module):
    """Computes (alpha / rank) (x A) B: in this order the product is cheap.

    Attributes:
      features: shape of the output's feature axes.
      axes: number of the input's feature axes, which are its last ones.
    """

    config: VitConfig
    features: tuple[int, ...]
    axes: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b n *inputs"]) -> Float[Array, "b n *outputs"]:
        config, inputs = self.config, x.shape[-self.axes :]
        # Hu et al. give no variance; with this one the entries of x A are as large as those of x.
        normal = nn.initializers.normal(stddev=1 / math.sqrt(math.prod(inputs)))
        a = self.param("a", normal, (*inputs, config.lora_rank)).astype(config.dtype)
        b = self.param("b", nn.initializers.zeros, (config.lora_rank, *self.features))
        low = jnp.tensordot(x.astype(config.dtype), a, self.axes)
        return jnp.tensordot(low, scale(config) * b.astype(config.dtype), 1)


def scale(config: VitConfig) -> float:
    """Returns alpha / rank."""
    return config.lora_alpha / config.lora_rank


def merge_lora(params: PyTree, config: VitConfig) -> tuple[PyTree, VitConfig]:
    """Adds every adapter to its kernel: the same function without adapters.

    Args:
      params: parameters, blocks scanned or not.
      config: of the model. If it has no adapters, both are returned unchanged.

    Returns:
      Parameters without those of adapters, and their config.
    """
    if not config.lora_rank:
        return params, config
    return _merged(params, scale(config)), dataclasses.replace(config, lora_rank=0)


def _merged(tree: PyTree, factor: float) -> PyTree:
    merged = {}
    for name, branch in tree.items():
        if name.endswith(SUFFIX):
            continue
        if adapter := tree.get(f"{name}{SUFFIX}"):
            kernel = branch["kernel"] + factor * _product(name, adapter["a"], adapter["b"])
            branch = {**branch, "kernel": kernel}
        elif isinstance(branch, dict):
            branch = _merged(branch, factor)
        merged[name] = branch
    return merged


def _product(name: str, a: Array, b: Array) -> Array:
    """Returns A B in the shape of the kernel, with a leading axis of depth if scanned."""
    subscripts = "...hdr,...rw->...hdw" if name == "out" else "...wr,...rhd->...whd"
    return jnp.einsum(subscripts, a, b, precision="highest")
