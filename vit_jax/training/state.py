"""The training state: its content, initial value, shardings and restore."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree
from ml_collections import FrozenConfigDict

from vit_jax.checkpoints.load import locate
from vit_jax.checkpoints.store import Store
from vit_jax.errors import CheckpointError
from vit_jax.models import ModelConfig
from vit_jax.optim import ema
from vit_jax.parallel import mesh as meshes
from vit_jax.parallel import rules
from vit_jax.rundir import workdir as workdirs
from vit_jax.storage import as_path
from vit_jax.training.init_from import inherit_params


@flax.struct.dataclass
class TrainState:
    """All that a run carries from one step to the next. Random keys are derived from the step."""

    step: Any  # int32[]: number of updates made.
    params: PyTree
    opt_state: PyTree
    ema: PyTree  # Moving average of the parameters, or {}.


def run_keys(seed: int) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Returns two keys: for the initial parameters, and for the updates (folded with the step)."""
    init, updates = jax.random.split(jax.random.key(seed))
    return init, updates


def make_init(
    config: FrozenConfigDict, model: nn.Module, tx: optax.GradientTransformation
) -> Callable[..., TrainState]:
    """Returns a function (key, params=None) -> the state before the first update."""
    model_config = model.config

    def init(key: jax.Array, params: PyTree = None) -> TrainState:
        if params is None:
            # The mesh can split this batch; parameters do not depend on its size.
            images = max(1, jax.sharding.get_abstract_mesh().size)
            shape = (images, *model_config.image_size, model_config.channels)
            params = model.init(key, jnp.zeros(shape))["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=tx.init(params),
            ema=ema.init(params) if config.optim.ema_decay else {},
        )

    return init


def state_layout(shapes: TrainState, mesh: Mesh) -> TrainState:
    """Returns the shardings of a state, by the table in `vit_jax.parallel.rules`."""
    params = rules.param_shardings(shapes.params, mesh)
    return TrainState(
        step=meshes.replicated(mesh),
        params=params,
        opt_state=rules.state_shardings(shapes.opt_state, shapes.params, mesh),
        ema=params if shapes.ema else {},
    )


def with_shardings(shapes: TrainState, layout: TrainState) -> TrainState:
    """Returns the shapes of a state with their shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        layout,
    )


def starting_point(
    config: FrozenConfigDict,
    store: Store,
    init: Callable[..., TrainState],
    targets: TrainState,
    model_config: ModelConfig,
    mesh: Mesh,
) -> tuple[TrainState, dict[str, Any] | None, str]:
    """Returns the first state, the loop state of its checkpoint (None at step 0), and its origin.

    The origin says what was taken from `config.init_from`; "" if nothing was.

    Precedence: the work directory, then config.resume, then config.init_from, then random
    parameters.

    Args:
      config: the config of the run.
      store: the checkpoints of its work directory.
      init: see `make_init`.
      targets: shape, dtype and sharding of each array of the state.
      model_config: the config of its model.
      mesh: the mesh of the state.
    """
    items = {"params": targets.params, "opt_state": targets.opt_state, "ema": targets.ema}

    restored = store.restore_newest(items)
    if restored is None and config.resume:
        location = locate(as_path(config.resume, name="config.resume"))
        with Store(location.workdir / workdirs.CHECKPOINTS, read_only=True) as trunk_store:
            restored = (location.step, *trunk_store.restore(location.step, items))
    if restored is not None:
        step, arrays, loop_state = restored
        last_line = loop_state.get("last_line")
        if last_line is not None and type(last_line) is not int:
            raise CheckpointError(f"The checkpoint's last_line is {last_line!r:.80}, not a number.")
        return (
            TrainState(step=jax.device_put(jnp.int32(step), targets.step.sharding), **arrays),
            loop_state,
            "",
        )

    layout = jax.tree.map(lambda leaf: leaf.sharding, targets)
    key, _ = run_keys(config.seed)
    state = jax.jit(init, out_shardings=layout)(key)
    if config.init_from:
        params, origin = inherit_params(config, model_config, state.params, mesh=mesh)
        return jax.jit(init, out_shardings=layout)(key, params), None, origin
    return state, None, ""
