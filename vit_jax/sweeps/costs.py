"""What a run will take: parameters, FLOPs, memory; found without training, and mostly without data.

Memory is an estimate, of one device. Parameters, gradients, optimizer state and average are counted
exactly, as `vit_jax.parallel.rules` lays them out: copied along the mesh's axis data, split along
fsdp and tensor; gradients only of what is trained. Activations are what JAX's transposition of the
model keeps for the backward pass, less where parameters are frozen, for the device's images of a
microbatch; what tensor splits of them is counted whole. For sharpness-aware minimisation they count
twice, as XLA on a CPU lays them out. What XLA then takes is less where it fuses operations, and
more where it needs room to compute: .74 and .83 of the estimate for ViTs, 1.4 of it for a ResNet
(measured on a CPU: quickstart .78, fashion_mnist .83, vit-120k .74 and resnet-120k 1.39 of the
study on Fashion-MNIST). What the forward pass takes for itself is not counted: a run that trains
a head alone takes many times its estimate.
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
    """What a run takes; None is not known without the data.

    Attributes:
      params: of the model.
      params_non_embedding: see `vit_jax.models.flops`.
      forward_flops: of one image.
      steps: of the whole run.
      own_steps: that it makes itself; of a branch those after its trunk's.
      total_train_flops: of its own steps.
      bytes_per_device: memory of each device, on the mesh of the config; an axis of -1 is taken as
        1, the fewest devices that the run can have: with more, each takes less.
      unknown: what could not be found, and why; "" if all could.
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
    """What a run takes.

    Raises:
      ConfigError: the run could not begin: there is no such model or optimizer, say.
    """
    config, unknown = run.config, []
    validate(config)
    if config.init_from and not config.model.variant:
        raise ConfigError(
            f"{run.name}: what its model is, the checkpoint says that it starts from "
            f"(init_from={config.init_from}). Give model.variant to know it before."
        )
    examples, classes, absent = _data(config)
    if not (config.model.num_classes or classes):
        unknown.append("how many classes there are (the head is counted for one)")
    model_config = read_section(config.model, num_classes=classes or 1)
    steps = None
    if config.total_epochs is None or examples:
        steps = total_steps(config, examples or 0)
    else:
        unknown.append("how many steps it has")
    own = None if steps is None else steps - (run.branch_of[1] if run.branch_of else 0)
    return Cost(
        params=num_params(model_config),
        params_non_embedding=num_params_non_embedding(model_config),
        forward_flops=forward_flops(model_config),
        steps=steps,
        own_steps=own,
        total_train_flops=None if own is None else _flops(config, model_config, own),
        bytes_per_device=_bytes_per_device(config, model_config),
        unknown=f"{' and '.join(unknown)}: {absent}" if unknown else "",
    )


def total_train_flops(run: PlannedRun) -> float | None:
    """FLOPs of the steps that a run makes itself, without a look at the data or a trace.

    It says how long runs will take beside each other; the head's share is left out.

    Returns:
      None where the number of steps is a matter of the data, or the model of a checkpoint.
    """
    config = run.config
    if not config.model.variant or (config.total_epochs is not None and not config.data.examples):
        return None
    try:
        validate(config)
        model_config = read_section(config.model, num_classes=1)
        steps = total_steps(config, config.data.examples)
    except ConfigError:  # As the run will say.
        return None
    own = steps - (run.branch_of[1] if run.branch_of else 0)
    return float(_flops(config, model_config, own))


def _flops(config: FrozenConfigDict, model_config: ModelConfig, steps: int) -> int:
    return update_flops_per_image(model_config, config) * config.batch_size * steps


def _data(config: FrozenConfigDict) -> tuple[int | None, int | None, str]:
    """How many examples and classes there are, as far as one knows; and why one does not."""
    data = config.data
    where = {
        key: data[key]
        for key in ("source", "name", "data_dir", "manual_dir", "image_key", "label_key", "classes")
    }
    whole, classes, absent = _open(json.dumps(where), data.split)
    examples = data.examples or (data.shots * classes if classes and data.shots else whole)
    return examples, classes, absent


@functools.cache
def _open(where: str, split: str) -> tuple[int | None, int | None, str]:
    data = json.loads(where)
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
    # The schedule has no state: runs of all lengths share what is counted here.
    optim = FrozenConfigDict({**config.optim, "schedule": {}})
    shapes, state = param_shapes(model_config), _optimizer_state(optim, model_config)
    layout = rules.param_shardings(shapes, mesh)
    params, trained = _bytes(shapes, layout), _bytes(shapes, layout, frozen_mask(optim, shapes))
    # The average; the parameters that sharpness-aware minimisation takes its gradient at.
    copies = 1 + bool(optim.ema_decay) + bool(optim.sam_rho)
    # The sum over microbatches has zeros for what is frozen.
    gradients = params if optim.accum_steps > 1 else trained
    optimizer = _bytes(state, rules.state_shardings(state, shapes, mesh))
    parts = sizes["data"] * sizes["fsdp"] * optim.accum_steps
    images = -(-config.batch_size // parts)
    kept = _activations(optim, model_config) * (2 if optim.sam_rho else 1)
    return copies * params + gradients + optimizer + images * kept


@functools.cache
def _optimizer_state(optim: FrozenConfigDict, model_config: ModelConfig) -> PyTree:
    tx = make_optimizer(optim, param_shapes(model_config), schedule=optax.constant_schedule(1.0))
    return jax.eval_shape(tx.init, param_shapes(model_config))


@functools.cache
def _activations(optim: FrozenConfigDict, model_config: ModelConfig) -> int:
    """Bytes for an image: what two images keep beyond what one does."""
    model, params = build(model_config), param_shapes(model_config)
    frozen = frozen_mask(optim, params)

    def kept(params: PyTree, images: jax.Array, key: jax.Array) -> PyTree:
        def logits(params: PyTree) -> jax.Array:
            variables = {"params": stop_frozen_gradients(params, frozen)}
            return model.apply(variables, images, train=True, rngs={"dropout": key})[0]

        return jax.tree.leaves(jax.vjp(logits, params)[1])

    def size(images: int) -> int:
        shape = (images, *model_config.image_size, model_config.channels)
        key = jax.eval_shape(lambda: jax.random.key(0))
        leaves = jax.eval_shape(kept, params, jax.ShapeDtypeStruct(shape, jnp.float32), key)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if hasattr(leaf, "dtype"))

    return size(2) - size(1)


def _bytes(tree: PyTree, shardings: PyTree, frozen: PyTree | None = None) -> int:
    """Bytes of a tree on one device, without the leaves that are frozen."""
    if frozen is None:
        frozen = jax.tree.map(lambda _: False, tree)
    leaves = zip(*map(jax.tree.leaves, (tree, shardings, frozen)), strict=True)
    return sum(
        math.prod(layout.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, layout, held in leaves
        if not held
    )
