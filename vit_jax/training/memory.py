"""Estimates the memory of a run on one device, without compiling or training it.

The parts of the estimate:

- Parameters, gradients, optimizer state and moving average are counted exactly, with the layout of
  `vit_jax.parallel.rules`: replicated along the mesh axis data, sharded along fsdp and tensor.
  Gradients count for trained parameters only.
- A model in bfloat16 has a copy of the parameters in that dtype: compilers make it before the loop
  over the blocks, not in the loop.
- Residuals that `jax.vjp` of the model keeps for the backward pass (fewer with frozen parameters),
  for the device's images of a microbatch. Sharpness-aware minimisation makes two passes, and XLA on
  a CPU allocates the residuals of both.
  For a ResNet, and for a hybrid (a ViT on a ResNet stem), instead the results of convolutions,
  products, reductions and pooling: compilers recompute normalisations and activations from these
  inside their fusions.
- The working set: the most that is alive at once in a forward pass that keeps nothing, by the order
  of its operations. It is all that the frozen part of a model needs.
- The batch of the update and those that the loader has put onto the devices ahead.

Where the size of tensor divides the tokens of a ViT, which are then split between blocks, the
activations are divided by it. Not so the norms' outputs, which layers over tensor gather: without
recomputation they are kept whole. A backward pass has two more such arrays. Where tensor does not
divide the tokens, and in other models, the sharding of activations along it is ignored.

XLA's own count (`compiled.memory_analysis()`) of an update with 32 images of 96x96, as a share of
the estimate without the batches ahead (2 cores of an Intel Xeon, jax 0.9.2):

    ViT, width 192, depth 6   1.03        all but the head frozen     2.09
    with scan off             0.97        LoRA                        0.86
    accumulating 4 steps      1.00        SAM                         0.60
    remat named               1.09        SAM, all but head frozen    1.32
    remat full                1.25        SAM, remat named            1.03

On a CPU, small models are not scanned: XLA copies each block's parameters, which the estimate does
not count (20 MB of 38 with all but the head frozen), and keeps residuals of one of SAM's passes.
Not measured on a GPU. A CPU computes bfloat16 in float32, so its count says nothing there.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.sharding import AbstractMesh, AxisType, Mesh
from jaxtyping import PyTree
from ml_collections import FrozenConfigDict

from vit_jax.models import MixerConfig, ModelConfig, ResnetConfig, VitConfig, build, param_shapes
from vit_jax.optim import frozen_mask, make_optimizer, stop_frozen_gradients
from vit_jax.parallel import rules
from vit_jax.parallel.constraints import AXES
from vit_jax.parallel.mesh import mesh_shape

# Arrays [tokens, width] that the backward pass of a layer over tensor has whole at once. There are
# three: its input, the gradient of that before the sum over tensor, and the gradient of its output;
# two of them are closest to compiled programs (docs/planning.md, "With tensor, on TPUs").
_WHOLE_IN_BACKWARD = 2
# Operations whose results compilers keep for the backward pass of a ResNet or a hybrid.
_LARGE = {"conv_general_dilated", "dot_general", "reduce_sum", "reduce_window_max"}
# Images of the programs whose difference is the working set: of a ResNet with one or two images,
# the largest set is that of its kernels.
_FEW, _MANY = 64, 128


def smallest_mesh(config: FrozenConfigDict) -> AbstractMesh:
    """Returns the mesh of a config with the fewest possible devices: an axis of -1 has one."""
    fixed = math.prod(config.mesh[axis] for axis in AXES if config.mesh[axis] != -1)
    sizes = mesh_shape(config.mesh, fixed)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes))


@dataclasses.dataclass(frozen=True)
class Memory:
    """Estimated bytes of a run on one device, by kind; the module says how each is counted."""

    params: int
    average: int
    optimizer: int
    gradients: int
    cast: int
    residuals: int
    working: int
    batches: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, field.name) for field in dataclasses.fields(self))


def bytes_per_device(
    config: FrozenConfigDict, model_config: ModelConfig, mesh: Mesh | AbstractMesh
) -> int:
    """Returns the estimated bytes of a run on each device of a mesh: see `memory_per_device`."""
    return memory_per_device(config, model_config, mesh).total


def memory_per_device(
    config: FrozenConfigDict, model_config: ModelConfig, mesh: Mesh | AbstractMesh
) -> Memory:
    """Returns the estimated memory of a run on each device of a mesh.

    Args:
      config: of the run.
      model_config: of its model; `remat` is a policy, and "auto" counts as "none".
      mesh: has the axes data, fsdp and tensor.
    """
    # Only residuals depend on `remat`: policies that are compared share the rest. Without the
    # schedule, which has no state, and microbatches, runs that differ in these share the caches
    # below.
    plain = _without_remat(model_config)
    optim = FrozenConfigDict({**config.optim, "schedule": {}, "accum_steps": 1})
    shapes, state = param_shapes(plain), _optimizer_state(optim, plain)
    layout = rules.param_shardings(shapes, mesh)
    params, trained = _bytes(shapes, layout), _bytes(shapes, layout, frozen_mask(optim, shapes))
    images = -(-config.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"]))
    at_once = -(-images // config.optim.accum_steps)
    tensor = mesh.shape["tensor"]
    if not isinstance(model_config, VitConfig) or model_config.num_tokens % tensor:
        tensor = 1
    residuals = _residual_bytes(optim, model_config, tensor) * (2 if optim.sam_rho else 1)
    return Memory(
        params=params,
        # The moving average; the perturbed parameters of sharpness-aware minimisation.
        average=params * (bool(optim.ema_decay) + bool(optim.sam_rho)),
        optimizer=_bytes(state, rules.state_shardings(state, shapes, mesh)),
        # The sum over microbatches, which has zeros for frozen parameters, is kept beside theirs.
        gradients=trained + (params if config.optim.accum_steps > 1 else 0),
        cast=params // 2 if model_config.dtype == "bfloat16" else 0,
        residuals=at_once * residuals,
        working=at_once * _working_bytes(plain, tensor),
        batches=images * (1 + config.data.prefetch) * _image_bytes(model_config),
    )


def _without_remat(model_config: ModelConfig) -> ModelConfig:
    if isinstance(model_config, VitConfig | MixerConfig):
        return dataclasses.replace(model_config, remat="none")
    return model_config


def _image_bytes(model_config: ModelConfig) -> int:
    return math.prod(model_config.image_size) * model_config.channels * 4


@functools.cache
def _optimizer_state(optim: FrozenConfigDict, model_config: ModelConfig) -> PyTree:
    tx = make_optimizer(optim, param_shapes(model_config), schedule=optax.constant_schedule(1.0))
    return jax.eval_shape(tx.init, param_shapes(model_config))


def _residual_bytes(optim: FrozenConfigDict, model_config: ModelConfig, tensor: int) -> int:
    """Returns the bytes of residuals per image: the difference between two images and one."""
    fused = isinstance(model_config, ResnetConfig) or getattr(model_config, "stem", None)
    one, two = (
        sum(_bytes_of_results(jaxpr.eqns, _sources(jaxpr) if fused else jaxpr.outvars, tensor))
        for jaxpr in _residual_programs(optim, model_config)
    )
    return two - one


def _sources(jaxpr: Jaxpr) -> list[Var]:
    """Returns the results of large operations from which the results of a program follow."""
    made = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
    pending, seen, sources = _variables(jaxpr.outvars), set(), []
    while pending:
        var = pending.pop()
        if var in seen or var not in made:
            continue
        seen.add(var)
        if _is_large(made[var]):
            sources.append(var)
        else:
            pending += _variables(made[var].invars)
    return sources


def _is_large(eqn: JaxprEqn) -> bool:
    """Returns whether compilers keep the result of an operation for the backward pass."""
    return eqn.primitive.name in _LARGE or any(
        _is_large(inner) for program in programs(eqn) for inner in program.eqns
    )


@functools.cache
def _residual_programs(optim: FrozenConfigDict, model_config: ModelConfig) -> tuple[Jaxpr, Jaxpr]:
    """Returns programs, for one image and two, whose results are the residuals."""
    model, params = build(model_config), param_shapes(_without_remat(model_config))
    frozen = frozen_mask(optim, params)

    def residuals(params: PyTree, images: jax.Array, key: jax.Array) -> PyTree:
        def logits(params: PyTree) -> jax.Array:
            variables = {"params": stop_frozen_gradients(params, frozen)}
            return model.apply(variables, images, train=True, rngs={"dropout": key})[0]

        return jax.tree.leaves(jax.vjp(logits, params)[1])

    return _programs_of(residuals, params, model_config)


def _working_bytes(model_config: ModelConfig, tensor: int) -> int:
    """Returns the bytes per image of the largest working set."""
    few, many = (_peak_bytes(jaxpr, tensor) for jaxpr in _forward_programs(model_config))
    whole = 0
    if isinstance(model_config, VitConfig):
        item = jnp.dtype(model_config.dtype).itemsize
        whole = _WHOLE_IN_BACKWARD * model_config.num_tokens * model_config.width * item
    return (many - few) // (_MANY - _FEW) + whole * (tensor - 1) // tensor


@functools.cache
def _forward_programs(model_config: ModelConfig) -> tuple[Jaxpr, Jaxpr]:
    """Returns programs of the forward pass, for _FEW images and _MANY."""
    model = build(model_config)

    def logits(params: PyTree, images: jax.Array, key: jax.Array) -> jax.Array:
        return model.apply({"params": params}, images, train=True, rngs={"dropout": key})[0]

    return _programs_of(logits, param_shapes(model_config), model_config, (_FEW, _MANY))


def _programs_of(
    function: Callable[..., PyTree],
    params: PyTree,
    model_config: ModelConfig,
    counts: tuple[int, int] = (1, 2),
) -> tuple[Jaxpr, Jaxpr]:
    """Returns the programs of a function (params, images, key), for two numbers of images."""
    # With a mesh of any size, programs have the constraints that say what is split over tensor.
    device = jax.sharding.get_abstract_mesh().abstract_device
    mesh = AbstractMesh(
        (1, 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES), abstract_device=device
    )
    with jax.sharding.use_abstract_mesh(mesh):
        one, other = (
            jax.make_jaxpr(function)(params, _images(count, model_config), _key()).jaxpr
            for count in counts
        )
    return one, other


def _images(count: int, model_config: ModelConfig) -> jax.ShapeDtypeStruct:
    shape = (count, *model_config.image_size, model_config.channels)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def _peak_bytes(jaxpr: Jaxpr, tensor: int) -> int:
    """Returns the most bytes of results that are alive at once, if operations run in order."""
    last_use = {var: i for i, eqn in enumerate(jaxpr.eqns) for var in _variables(eqn.invars)}
    last_use |= dict.fromkeys(_variables(jaxpr.outvars), len(jaxpr.eqns))
    alive: dict[Var, int] = {}
    peak = 0
    for i, eqn in enumerate(jaxpr.eqns):
        results = dict(zip(eqn.outvars, _bytes_of_results([eqn], eqn.outvars, tensor), strict=True))
        inside = max((_peak_bytes(each, tensor) for each in programs(eqn)), default=0)
        peak = max(peak, sum(alive.values()) + max(inside, sum(results.values())))
        alive |= results
        alive = {var: size for var, size in alive.items() if last_use.get(var, -1) > i}
    return peak


def _bytes_of_results(eqns: list[JaxprEqn], results: list, tensor: int) -> list[int]:
    """Returns the bytes of arrays that operations make, on one of the devices along tensor."""
    made = {var: (eqn, i) for eqn in eqns for i, var in enumerate(eqn.outvars)}
    return [
        _array_bytes(var) // (1 if var in made and _is_whole(*made[var]) else tensor)
        for var in results
        if not isinstance(var, Literal)
    ]


def _is_whole(eqn: JaxprEqn, result: int) -> bool:
    """Returns whether a constraint made a result of an operation whole on devices along tensor."""
    if eqn.primitive.name == "sharding_constraint":
        return "tensor" not in eqn.params["sharding"].spec
    for program in programs(eqn):
        if len(program.outvars) == len(eqn.outvars):  # The body of a loop, or a function.
            var = program.outvars[result]
            for inner in program.eqns:
                if var in inner.outvars:
                    return _is_whole(inner, inner.outvars.index(var))
    return False


def _variables(operands: list) -> list[Var]:
    return [operand for operand in operands if not isinstance(operand, Literal)]


def _array_bytes(var: Var) -> int:
    """Returns the bytes of an array; 0 of anything else, such as a random key."""
    size = getattr(getattr(var.aval, "dtype", None), "itemsize", 0)
    return math.prod(getattr(var.aval, "shape", ())) * size


def programs(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """Yields the programs inside an operation, such as the body of a loop."""
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            program = getattr(item, "jaxpr", item)  # A ClosedJaxpr has a Jaxpr.
            if isinstance(program, Jaxpr):
                yield program


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
