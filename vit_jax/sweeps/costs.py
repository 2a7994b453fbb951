"""Estimates the cost of a run (parameters, FLOPs, memory) without training it.

Memory is an estimate for one device. Parameters, gradients, optimizer state and moving average are
counted exactly, with the layout of `vit_jax.parallel.rules`: replicated along the mesh axis data,
sharded along fsdp and tensor. Gradients count for trained parameters only. Activations are the
residuals that `jax.vjp` of the model keeps for the backward pass (fewer with frozen parameters),
for the device's images of a microbatch; their sharding along tensor is ignored. For sharpness-aware
minimisation they count twice, as XLA on a CPU allocates them.

XLA needs less where it fuses operations, and more where it needs temporary buffers: .74 to .83 of
the estimate for ViTs, 1.4 of it for a ResNet (measured on a CPU: quickstart .78, fashion_mnist .83,
vit-120k .74 and resnet-120k 1.39 of the study on Fashion-MNIST). Temporary memory of the forward
pass is not counted: a run that trains only the head needs many times its estimate.
"""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh
from jaxtyping import PyTree
from ml_collections import FrozenConfigDict

from vit_jax.config import validate
from vit_jax.data.sources import open_source
from vit_jax.errors import ConfigError, VitJaxError
from vit_jax.models import (
    ModelConfig,
    build,
    forward_flops,
    num_params,
    num_params_non_embedding,
    param_shapes,
    read_section,
    update_flops_per_image,
)
from vit_jax.optim import frozen_mask, make_optimizer, stop_frozen_gradients, total_steps
from vit_jax.parallel import rules
from vit_jax.parallel.mesh import mesh_shape
from vit_jax.sweeps.plan import PlannedRun


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a run; None: unknown without the data.

    Attributes:
      params: number of parameters of the model.
      params_non_embedding: see `vit_jax.models.flops`.
      forward_flops: FLOPs of the forward pass of one image.
      steps: steps of the whole run.
      own_steps: steps that the run makes itself; of a branch, the steps after the trunk's state.
      total_train_flops: FLOPs of `own_steps`.
      bytes_per_device: memory of each device, on the mesh of the config. A mesh axis of -1 counts
        as 1, the fewest possible devices; with more devices each needs less.
      unknown: what is unknown, and why; "" if nothing is.
    """

    params: int
    params_non_embedding: int
    forward_flops: int
    steps: int | None
    own_steps: int | None
    total_train_flops: int | None
    bytes_per_device: int
    unknown: str = ""


def cost(run: PlannedRun) -> Cost:
    """Estimates the cost of a run.

    Raises:
      ConfigError: the config is invalid, or the model is unknown without a checkpoint.
    """
    config, unknown = run.config, []
    validate(config)
    if config.init_from and not config.model.variant:
        raise ConfigError(
            f"{run.name}: its model is defined by the checkpoint init_from={config.init_from}. Set "
            "model.variant to estimate the cost."
        )
    examples, classes, reason = _data(config)
    if not (config.model.num_classes or classes):
        unknown.append("the number of classes (the head is counted with one)")
    model_config = read_section(config.model, num_classes=classes or 1)
    steps = None
    if config.total_epochs is None or examples:
        steps = total_steps(config, examples or 0)
    else:
        unknown.append("the number of steps")
    own_steps = None if steps is None else steps - (run.branch_of[1] if run.branch_of else 0)
    return Cost(
        params=num_params(model_config),
        params_non_embedding=num_params_non_embedding(model_config),
        forward_flops=forward_flops(model_config),
        steps=steps,
        own_steps=own_steps,
        total_train_flops=None if own_steps is None else _flops(config, model_config, own_steps),
        bytes_per_device=_bytes_per_device(config, model_config),
        unknown=f"{' and '.join(unknown)}: {reason}" if unknown else "",
    )


def total_train_flops(run: PlannedRun) -> float | None:
    """Returns the FLOPs of a run's own steps, computed without data.

    For comparing the durations of runs; counts the head with one class.

    Returns:
      None if the number of steps depends on the data, or the model on a checkpoint.
    """
    config = run.config
    if not config.model.variant or (config.total_epochs is not None and not config.data.examples):
        return None
    try:
        validate(config)
        model_config = read_section(config.model, num_classes=1)
        steps = total_steps(config, config.data.examples)
    except ConfigError:  # The run will report it.
        return None
    own_steps = steps - (run.branch_of[1] if run.branch_of else 0)
    return float(_flops(config, model_config, own_steps))


def _flops(config: FrozenConfigDict, model_config: ModelConfig, steps: int) -> int:
    return update_flops_per_image(model_config, config) * config.batch_size * steps


def _data(config: FrozenConfigDict) -> tuple[int | None, int | None, str]:
    """Returns the numbers of examples and classes (None: unknown), and why they are unknown."""
    data = config.data
    source_keys = {
        key: data[key]
        for key in ("source", "name", "data_dir", "manual_dir", "image_key", "label_key", "classes")
    }
    whole, classes, reason = _open(json.dumps(source_keys), data.split)
    examples = data.examples or (data.shots * classes if classes and data.shots else whole)
    return examples, classes, reason


@functools.cache
def _open(source_keys: str, split: str) -> tuple[int | None, int | None, str]:
    data = json.loads(source_keys)
    try:
        source = open_source(
            FrozenConfigDict({**data, "classes": tuple(data["classes"])}), split=split
        )
    except VitJaxError as error:
        return None, len(data["classes"]) or None, str(error).splitlines()[0]
    return len(source), source.num_classes, ""


def _bytes_per_device(config: FrozenConfigDict, model_config: ModelConfig) -> int:
    fixed = math.prod(size for size in config.mesh.values() if size != -1)
    sizes = mesh_shape(config.mesh, fixed)
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    # Without the schedule, which has no state, runs of all lengths share the cache below.
    optim = FrozenConfigDict({**config.optim, "schedule": {}})
    shapes, state = param_shapes(model_config), _optimizer_state(optim, model_config)
    layout = rules.param_shardings(shapes, mesh)
    params, trained = _bytes(shapes, layout), _bytes(shapes, layout, frozen_mask(optim, shapes))
    # The moving average; the perturbed parameters of sharpness-aware minimisation.
    copies = 1 + bool(optim.ema_decay) + bool(optim.sam_rho)
    # The sum over microbatches has zeros for frozen parameters.
    gradients = params if optim.accum_steps > 1 else trained
    optimizer = _bytes(state, rules.state_shardings(state, shapes, mesh))
    parts = sizes["data"] * sizes["fsdp"] * optim.accum_steps
    images = -(-config.batch_size // parts)
    residual_bytes = _activations(optim, model_config) * (2 if optim.sam_rho else 1)
    return copies * params + gradients + optimizer + images * residual_bytes


@functools.cache
def _optimizer_state(optim: FrozenConfigDict, model_config: ModelConfig) -> PyTree:
    tx = make_optimizer(optim, param_shapes(model_config), schedule=optax.constant_schedule(1.0))
    return jax.eval_shape(tx.init, param_shapes(model_config))


@functools.cache
def _activations(optim: FrozenConfigDict, model_config: ModelConfig) -> int:
    """Returns the bytes of residuals per image: the difference between two images and one."""
    model, params = build(model_config), param_shapes(model_config)
    frozen = frozen_mask(optim, params)

    def residuals(params: PyTree, images: jax.Array, key: jax.Array) -> PyTree:
        def logits(params: PyTree) -> jax.Array:
            variables = {"params": stop_frozen_gradients(params, frozen)}
            return model.apply(variables, images, train=True, rngs={"dropout": key})[0]

        return jax.tree.leaves(jax.vjp(logits, params)[1])

    def residual_bytes(images: int) -> int:
        shape = (images, *model_config.image_size, model_config.channels)
        key = jax.eval_shape(lambda: jax.random.key(0))
        leaves = jax.eval_shape(residuals, params, jax.ShapeDtypeStruct(shape, jnp.float32), key)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if hasattr(leaf, "dtype"))

    return residual_bytes(2) - residual_bytes(1)


def _bytes(tree: PyTree, shardings: PyTree, frozen: PyTree | None = None) -> int:
    """Returns the bytes of a tree on one device, without its frozen leaves."""
    if frozen is None:
        frozen = jax.tree.map(lambda _: False, tree)
    leaves = zip(*map(jax.tree.leaves, (tree, shardings, frozen)), strict=True)
    return sum(
        math.prod(layout.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, layout, is_frozen in leaves
        if not is_frozen
    )
