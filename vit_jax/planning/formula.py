"""A plan's numbers without a compiler: collectives and memory traffic by formula.

They are those of a program that gathers the shards of each kernel before its use and scatters its
gradient (Rajbhandari et al. 2020, 1910.02054), and sums over the tensor axis twice in each block
and pass (Shoeybi et al. 2019, 1909.08053), by a gather and a scatter where tokens are split over it
(Korthikanti et al. 2022, 2205.05198).
"""

import dataclasses
import functools
import math

import jax
from jax.sharding import AbstractMesh, Mesh
from ml_collections import FrozenConfigDict

from vit_jax.config import base_config, freeze
from vit_jax.models import (
    MixerConfig,
    ModelConfig,
    VitConfig,
    param_shapes,
    update_flops_per_image,
)
from vit_jax.optim import frozen_mask
from vit_jax.parallel import mesh as meshes
from vit_jax.parallel import rules
from vit_jax.parallel.constraints import AXES
from vit_jax.planning.collectives import Collective
from vit_jax.planning.flops import traced_flops
from vit_jax.planning.step import Step
from vit_jax.training.memory import memory_per_device

# `model.remat` -> how often each kernel is used in a step: forward, backward, and again.
_USES = {"full": 3}
# Bytes that a step moves for each byte that a model without recomputation keeps: in three compiled
# programs of ViTs 11 to 19.
_MOVED = 12


def formula_collectives(
    config: FrozenConfigDict,
    model_config: ModelConfig,
    mesh: Mesh | AbstractMesh,
    *,
    groups: int = 1,
) -> list[Collective]:
    """Returns what a step sends, as `vit_jax.planning.collectives` would count it.

    Args:
      config: with the batch, its microbatches, and what is frozen.
      model_config: whose parameters are split.
      mesh: on which they are split.
      groups: TPU slices or nodes of GPUs. Of what goes between them, a device sends its share.
    """
    data, fsdp, tensor = (mesh.shape[axis] for axis in AXES)
    shapes = param_shapes(model_config)
    frozen = frozen_mask(config.optim, shapes)
    over_tensor = rules.param_shardings(shapes, AbstractMesh((1, 1, tensor), AXES))
    parts = [
        (math.prod(layout.shard_shape(leaf.shape)), is_frozen)
        for leaf, layout, is_frozen in zip(
            *map(jax.tree.leaves, (shapes, over_tensor, frozen)), strict=True
        )
    ]
    kernels = sum(size for size, _ in parts)
    trained = sum(size for size, is_frozen in parts if not is_frozen)
    wide = model_config.dtype != "bfloat16"
    item = 4 if wide else 2
    sum_item = 4 if wide or config.model.grad_sum_dtype == "float32" else 2
    remat = getattr(model_config, "remat", "none")
    uses, passes = _USES.get(remat, 2), config.optim.accum_steps
    blocks = getattr(model_config, "depth", 1)
    found = []

    def add(kind: str, axis: str, inside: int, executions: int, size: float, item: int) -> None:
        """Adds collectives of `size` elements inside groups, and their share between groups."""
        dtype = {2: "bf16", 4: "f32"}[item]
        between = mesh.shape[axis] // inside
        for network, devices, moved in (
            (False, inside, size * item), (True, between, size * item / inside)
        ):  # fmt: skip
            if devices > 1 and size:
                found.append(
                    Collective(kind, True, dtype, (axis,), network, devices, executions, moved, ())
                )

    # The last axis has the nearest devices. Where an axis does not fill whole groups, the rest of
    # it is between them.
    group = data * fsdp * tensor // groups
    in_tensor = math.gcd(tensor, group)
    in_fsdp = math.gcd(fsdp, group // in_tensor)
    in_data = math.gcd(data, group // in_tensor // in_fsdp)
    add("all-gather", "fsdp", in_fsdp, passes * uses * blocks, kernels / blocks, item)
    add("reduce-scatter", "fsdp", in_fsdp, passes * blocks, trained / blocks, sum_item)
    add("all-reduce", "data", in_data, passes * blocks, trained / blocks / fsdp, sum_item)
    if isinstance(model_config, VitConfig):
        stream = config.batch_size / (data * fsdp * passes)
        stream *= model_config.num_tokens * model_config.width
        branches = 1 if model_config.parallel else 2
        # The backward pass recomputes all but the last sum of a block, and gathers the norms'
        # outputs again unless they are kept.
        sums = (3 * branches - 1 if remat == "full" else 2 * branches) * blocks * passes
        gathers = (2 if remat == "none" else 3) * branches * blocks * passes
        if model_config.num_tokens % tensor:
            add("all-reduce", "tensor", in_tensor, sums, stream, item)
        else:
            add("all-gather", "tensor", in_tensor, gathers, stream, item)
            add("reduce-scatter", "tensor", in_tensor, sums, stream, item)
    return sorted(found, key=lambda each: -each.sent_bytes)


def formula_hbm_bytes(
    config: FrozenConfigDict, model_config: ModelConfig, mesh: Mesh | AbstractMesh
) -> float:
    """Returns a rough count of the bytes that a step moves between memory and processor.

    A multiple of what the model keeps if it recomputes nothing: what is computed again is moved
    again. Gathered kernels are read in each use; parameters, gradients, optimizer and average are
    read and written once.
    """
    if isinstance(model_config, VitConfig | MixerConfig):
        model_config = dataclasses.replace(model_config, remat="none")
    memory, passes = memory_per_device(config, model_config, mesh), config.optim.accum_steps
    state = memory.params + memory.optimizer + memory.average + memory.gradients
    kernels = (memory.cast or memory.params) * mesh.shape["fsdp"]
    return float(2 * state + passes * (3 * kernels + _MOVED * memory.residuals))


def recomputation(config: FrozenConfigDict, model_config: ModelConfig) -> float:
    """Returns the FLOPs of a step as a multiple of the model's: what is computed again counts.

    Traces a step of one image on a device of this machine.
    """
    # Only what the step's arithmetic depends on: runs that differ in anything else share the trace.
    small = base_config()
    small.batch_size = small.total_steps = 1
    optim = {key: value for key, value in config.optim.items() if key != "schedule"}
    small.optim.update(optim | {"accum_steps": 1})
    return _recomputation(freeze(small), model_config)


@functools.cache
def _recomputation(config: FrozenConfigDict, model_config: ModelConfig) -> float:
    mesh = meshes.make_mesh(config.mesh, devices=jax.devices()[:1])
    step = Step.with_model(config, model_config, "", mesh, num_examples=1)
    model_flops = update_flops_per_image(model_config, config) * config.batch_size
    return traced_flops(step.trace().jaxpr) / model_flops
