"""A plan's numbers without a compiler: collectives and memory traffic by formula.

They are those of a program that gathers the shards of each kernel before its use and scatters its
gradient (Rajbhandari et al. 2020, 1910.02054), and sums over the tensor axis twice in each block
and pass (Shoeybi et al. 2019, 1909.08053), by a gather and a scatter where tokens are split over it
(Korthikanti et al. 2022, 2205.05198).
"""

import functools

import jax
from jax.sharding import AbstractMesh, Mesh
from ml_collections import FrozenConfigDict

from vit_jax.config import base_config, freeze
from vit_jax.models import ModelConfig, VitConfig, param_shapes, update_flops_per_image
from vit_jax.parallel import mesh as meshes
from vit_jax.planning.collectives import Collective
from vit_jax.planning.flops import traced_flops
from vit_jax.planning.step import Step
from vit_jax.training.memory import Memory

# `model.remat` -> how often each kernel is used in a step: forward, backward, and again.
_USES = {"full": 3}


def formula_collectives(
    config: FrozenConfigDict,
    model_config: ModelConfig,
    mesh: Mesh | AbstractMesh,
    *,
    groups: int = 1,
) -> list[Collective]:
    """Returns what a step sends, as `vit_jax.planning.collectives` would count it.

    Args:
      config: of the run.
      model_config: of its model.
      mesh: of its devices.
      groups: TPU slices or nodes of GPUs, over which data is split; gradients are summed inside of
        them first, and each device sends its share of the sum to the others.
    """
    data, fsdp, tensor = (mesh.shape[axis] for axis in ("data", "fsdp", "tensor"))
    sizes = [leaf.size for leaf in jax.tree.leaves(param_shapes(model_config))]
    item = 2 if model_config.dtype == "bfloat16" else 4
    dtype = "bf16" if item == 2 else "f32"
    whole = sum(sizes) * item / tensor  # Of all kernels in the dtype of the computation.
    passes = config.optim.accum_steps
    uses = _USES.get(getattr(model_config, "remat", "none"), 2)
    blocks = getattr(model_config, "depth", 1)
    found = []

    def add(kind, axis, devices, executions, size, network=False):
        if devices > 1 and size:
            each = Collective(kind, True, dtype, (axis,), network, devices, executions, size, ())
            found.append(each)

    add("all-gather", "fsdp", fsdp, passes * uses * blocks, whole / blocks)
    add("reduce-scatter", "fsdp", fsdp, passes * blocks, whole / blocks)
    shard, inside = whole / blocks / fsdp, max(1, data // groups)
    add("all-reduce", "data", inside, passes * blocks, shard)
    add("all-reduce", "data", min(groups, data), passes * blocks, shard / inside, network=True)
    if isinstance(model_config, VitConfig):
        images = config.batch_size / (data * fsdp * passes)
        stream = images * model_config.num_tokens * model_config.width * item
        # Two sums in the forward pass of a block and two in its backward pass; one and one if its
        # branches are parallel. With remat=full the forward pass is made twice.
        branches = 1 if model_config.parallel else 2
        sums = passes * blocks * branches * uses
        if model_config.num_tokens % tensor:
            add("all-reduce", "tensor", tensor, sums, stream)
        else:  # Tokens are split between blocks; the backward pass gathers the norms' again.
            again = passes * blocks * branches
            add("all-gather", "tensor", tensor, sums + again, stream)
            add("reduce-scatter", "tensor", tensor, sums, stream)
    return sorted(found, key=lambda each: -each.sent_bytes)


def formula_hbm_bytes(memory: Memory) -> float:
    """Returns a rough count of the bytes that a step reads and writes.

    What is kept is written and read once, and three times as much is moved by the operations
    between the products; the parameters in the dtype of the computation are read three times;
    parameters, gradients, optimizer and average are read and written once.
    """
    state = memory.params + memory.optimizer + memory.average + memory.gradients
    used = memory.cast or memory.params
    return float(2 * state + 3 * used + 8 * memory.residuals)


def recomputation(config: FrozenConfigDict, model_config: ModelConfig) -> float:
    """Returns the FLOPs of a step as a multiple of the model's: what is computed again counts.

    Traces a step of one image in each microbatch on a device of this machine.
    """
    # Only what the step's arithmetic depends on: runs that differ in anything else share the trace.
    small = base_config()
    small.batch_size, small.total_steps = config.optim.accum_steps, 1
    optim = {key: value for key, value in config.optim.items() if key != "schedule"}
    small.optim.update(optim)
    return _recomputation(freeze(small), model_config)


@functools.cache
def _recomputation(config: FrozenConfigDict, model_config: ModelConfig) -> float:
    mesh = meshes.make_mesh(config.mesh, devices=jax.devices()[:1])
    step = Step.with_model(config, model_config, "", mesh, num_examples=1)
    model_flops = update_flops_per_image(model_config, config) * config.batch_size
    return traced_flops(step.trace().jaxpr) / model_flops
