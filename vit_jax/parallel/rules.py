"""The table of sharding rules: over which mesh axes each parameter is split."""

import math
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import ConfigError
from vit_jax.parallel.constraints import check_axes

# (pattern of the whole parameter path, mesh axis or axes of each trailing dimension). The first
# pattern that matches counts; if more than one split is given for it, the first that the mesh
# divides, else the last. Leading dimensions without an axis in the rule (the depth of scanned
# blocks) are not split. Heads and hidden units of the MLP are split over tensor (Shoeybi et al.
# 2019, arXiv 1909.08053), another dimension of the same kernel over fsdp. Only over fsdp are split
# convolutions (their norms use groups of channels) and a Mixer's layers over tokens (their number
# need not be divisible). Attention's output projection is split over its heads by both axes where
# they divide: XLA for TPUs sums its gradient by a reduce-scatter only along the dimension that is
# first in memory, and else by an all-reduce of the whole.
RULES = (
    (r"embedding/kernel", (None, None, None, "fsdp")),
    (r"(.*/)?(root/conv|unit\d+/(conv\d|proj))/kernel", (None, None, None, "fsdp")),
    (r"(cls|dist|registers|pos_embedding|.*/probe)", ("fsdp",)),
    (r".*/(query|key|value)/kernel", ("fsdp", "tensor", None)),
    (r".*/(query|key|value)/bias", ("tensor", None)),
    (r".*/(query|key|value)_lora/a", ("fsdp", None)),
    (r".*/(query|key|value)_lora/b", (None, "tensor", None)),
    (r".*/out_lora/a", ("tensor", None, None)),
    (r".*/out_lora/b", (None, "fsdp")),
    (r".*/(query_norm|key_norm)/scale", ()),
    (r".*/out/kernel", (("tensor", "fsdp"), None, None), ("tensor", None, "fsdp")),
    (r".*/token_mlp/fc1/kernel", (None, "fsdp")),
    (r".*/token_mlp/fc2/kernel", ("fsdp", None)),
    (r".*/token_mlp/.*/bias", ()),
    (r".*/(fc1|gate)/kernel", ("fsdp", "tensor")),
    (r".*/(fc1|gate)/bias", ("tensor",)),
    (r".*/fc2/kernel", ("tensor", "fsdp")),
    (r"pre_logits/kernel", ("fsdp", None)),
    (r"(head|head_dist)/kernel", ("fsdp", None)),
    (r"(.*/)?(bias|scale|scale1|scale2)", ()),
)

# In elements, not bytes. Replicating a smaller parameter costs next to nothing, so its dimensions
# are left unsplit if the mesh does not divide them; for a larger one that is an error.
LARGE = 2**18


class UndividedError(ConfigError):
    """A mesh does not divide a dimension of a large parameter."""


def path_name(path: tuple[Any, ...]) -> str:
    """Returns a key path of `jax.tree_util` as "encoder/blocks/mlp/fc1/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their path names."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def partition_spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Returns the mesh axes over which the dimensions of a parameter are split.

    Args:
      path: of the parameter, joined by slashes.
      shape: of the parameter.
      mesh: with the axes data, fsdp, tensor.

    Raises:
      UndividedError: the mesh does not divide a dimension of a large parameter.
      ConfigError: no rule matches, or the mesh lacks an axis.
    """
    check_axes(mesh.axis_names)
    splits = next((splits for pattern, *splits in RULES if re.fullmatch(pattern, path)), None)
    if splits is None:
        raise ConfigError(
            f"No sharding rule matches the parameter {path} of shape {shape}: add one to RULES in "
            "vit_jax/parallel/rules.py."
        )
    specs = [[None] * (len(shape) - len(axes)) + list(axes) for axes in splits]
    spec = next((spec for spec in specs if not _undivided(spec, shape, mesh)), specs[-1])
    for dim in _undivided(spec, shape, mesh):
        if math.prod(shape) >= LARGE:
            raise UndividedError(
                f"Dimension {dim} of the parameter {path}, shape {shape}, does not split over "
                f"mesh.{spec[dim]}={mesh.shape[spec[dim]]}: choose a divisor of {shape[dim]}."
            )
        spec[dim] = None
    return PartitionSpec(*spec)


def _undivided(spec: list[Any], shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> list[int]:
    """Returns the dimensions that the mesh axes of a split do not divide."""

    def shards(axes: str | tuple[str, ...] | None) -> int:
        names = (axes,) if isinstance(axes, str) else axes or ()
        return math.prod(mesh.shape[name] for name in names)

    return [dim for dim, axes in enumerate(spec) if shape[dim] % shards(axes)]


def param_shardings(params: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Returns the tree of `NamedSharding`s for a tree of parameters (arrays or their shapes)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, partition_spec(path_name(path), leaf.shape, mesh)),
        params,
    )


def state_shardings(state: Any, params: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Returns the shardings of a tree with statistics per parameter, such as an optimizer's state.

    A leaf whose path ends with a parameter's path is split like that parameter if it has its shape,
    or its shape without one dimension (Adafactor's row and column statistics). All others
    (counters) are replicated.

    Raises:
      ConfigError: a large leaf would be replicated although the mesh splits parameters.
    """
    specs = {
        name: (leaf.shape, partition_spec(name, leaf.shape, mesh))
        for name, leaf in named_leaves(params).items()
    }
    splits_params = mesh.shape["fsdp"] * mesh.shape["tensor"] > 1

    def sharding(path, leaf):
        parts = path_name(path).split("/")
        for start in range(len(parts)):
            param = specs.get("/".join(parts[start:]))
            if param is None:
                continue
            shape, spec = param
            if shape == leaf.shape:
                return NamedSharding(mesh, spec)
            for dim in range(len(shape)):
                if shape[:dim] + shape[dim + 1 :] == leaf.shape:
                    return NamedSharding(mesh, PartitionSpec(*spec[:dim], *spec[dim + 1 :]))
        if splits_params and leaf.size >= LARGE:
            raise ConfigError(
                f"The state {path_name(path)} of shape {leaf.shape} matches no parameter's shape, "
                "so no rule splits it, and it is too large to replicate on every device."
            )
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, state)
