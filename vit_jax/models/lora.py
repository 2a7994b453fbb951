"""Low-rank adapters of a projection (LoRA; Hu et al. 2021, arXiv 2106.09685).

A frozen kernel W becomes W + (alpha / rank) A B, with A gaussian and B zero, so that the model
begins as it was. Adapted are the query, key, value and output projections of every attention.
"""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vit_jax.config.model import VitConfig

SUFFIX = "_lora"  # "query_lora" stands beside "query".
PATTERN = f".*{SUFFIX}/[ab]"  # Of the paths of all adapters.


class Adapter(nn.Module):
    """(alpha / rank) x A B, the product taken from the left, so that it costs little.

    Attributes:
      config: of the model.
      features: shape of the output's features.
      axes: how many of the input's last axes are its features.
    """

    config: VitConfig
    features: tuple[int, ...]
    axes: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b n *inputs"]) -> Float[Array, "b n *outputs"]:
        config, inputs = self.config, x.shape[-self.axes :]
        # Hu et al. say gaussian; this scale gives x A entries as large as those of x.
        normal = nn.initializers.normal(stddev=1 / math.sqrt(math.prod(inputs)))
        a = self.param("a", normal, (*inputs, config.lora_rank)).astype(config.dtype)
        b = self.param("b", nn.initializers.zeros, (config.lora_rank, *self.features))
        low = jnp.tensordot(x.astype(config.dtype), a, self.axes)
        return jnp.tensordot(low, scale(config) * b.astype(config.dtype), 1)


def scale(config: VitConfig) -> float:
    """Alpha / rank."""
    return config.lora_alpha / config.lora_rank


def merge_lora(params: PyTree, config: VitConfig) -> tuple[PyTree, VitConfig]:
    """The same model without adapters: each is added to its kernel.

    Args:
      params: of the model, blocks stacked or not.
      config: of the model; without adapters, both are returned as they are.

    Returns:
      Parameters of the original's names and shapes, and the config that they are of.
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
    """A B, in the shape of the kernel; with a leading axis of depth where blocks are stacked."""
    letters = "...hdr,...rw->...hdw" if name == "out" else "...wr,...rhd->...whd"
    return jnp.einsum(letters, a, b, precision="highest")
