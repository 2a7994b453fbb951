"""What `sweep --dry_run` says a run will take, against real arrays on real meshes."""

import jax
import jax.numpy as jnp
import optax
import pytest

from tests.small_run import small_config
from vit_jax.errors import ConfigError
from vit_jax.models import build, param_shapes, read_section
from vit_jax.optim import make_optimizer
from vit_jax.parallel.mesh import make_mesh
from vit_jax.sweeps.costs import cost, total_train_flops
from vit_jax.sweeps.plan import PlannedRun
from vit_jax.training.state import make_init, state_layout

# Large enough for the rules to insist that it is split, with Adafactor's factored statistics.
MODEL = {"model__width": 64, "model__num_heads": 4, "model__mlp_dim": 4096, "model__depth": 1}


def cost_of(tmp_path, **changes):
    config = small_config(**MODEL, **changes)
    return cost(PlannedRun("a", {}, (), config, tmp_path))


def state_bytes(tmp_path, parts, **changes):
    """Bytes of a device without activations, which grow with the batch."""
    one, two = (cost_of(tmp_path, batch_size=n * parts, **changes).bytes_per_device for n in (1, 2))
    return 2 * one - two


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 4)])
def test_bytes_per_device_are_those_of_the_state_there(tmp_path, mesh, optimizer):
    changes = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), mesh, strict=True))
    changes |= {"optim__name": optimizer, "optim__ema_decay": 0.5}
    config = small_config(**MODEL, **changes)
    cfg = read_section(config.model, num_classes=10)
    count = mesh[0] * mesh[1] * mesh[2]
    real_mesh = make_mesh(config.mesh, devices=jax.devices()[:count])
    with jax.set_mesh(real_mesh):
        tx = make_optimizer(config.optim, param_shapes(cfg), schedule=optax.constant_schedule(1.0))
        shapes = jax.eval_shape(make_init(config, build(cfg), tx), jax.random.key(0))
        layout = state_layout(shapes, real_mesh)
        state = jax.tree.map(
            lambda leaf, sharding: jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), sharding),
            shapes, layout,
        )  # fmt: skip
    trees = (state.params, state.params, state.ema, state.opt_state)  # Gradients are as params.
    real = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(trees))
    parts = mesh[0] * mesh[1]
    # But for the schedule's step.
    assert state_bytes(tmp_path, parts, **changes) == pytest.approx(real, abs=16)


def test_more_devices_along_data_do_not_split_the_state(tmp_path):
    one = state_bytes(tmp_path, 1, mesh__data=1)
    assert state_bytes(tmp_path, 8, mesh__data=8) == one
    assert state_bytes(tmp_path, 1, mesh__data=-1) == one
    assert state_bytes(tmp_path, 8, mesh__data=1, mesh__fsdp=8) < 0.3 * one
    # Each has its share of the images.
    assert (
        cost_of(tmp_path, mesh__data=4, batch_size=64).bytes_per_device
        == cost_of(tmp_path, mesh__data=1, batch_size=16).bytes_per_device
        == cost_of(tmp_path, mesh__data=1, batch_size=64, optim__accum_steps=4).bytes_per_device
    )


def test_frozen_parameters_take_neither_gradients_nor_activations(tmp_path):
    config = small_config(**MODEL)
    params = param_shapes(read_section(config.model, num_classes=10))
    head = sum(leaf.size for leaf in jax.tree.leaves(params["head"])) * 4
    whole = sum(leaf.size for leaf in jax.tree.leaves(params)) * 4
    probe = {"optim__freeze": ("(?!head/).*",), "optim__name": "sgd", "optim__momentum": 0.0}
    # Parameters, gradients of the head; optax.trace keeps a momentum of what is trained.
    assert state_bytes(tmp_path, 1, **probe) == pytest.approx(whole + 2 * head, abs=64)
    one, two = (cost_of(tmp_path, batch_size=n, **probe).bytes_per_device for n in (1, 2))
    assert two - one < 4096
    trained = [cost_of(tmp_path, batch_size=n).bytes_per_device for n in (1, 2)]
    assert trained[1] - trained[0] > 50 * (two - one)
    sharp = [cost_of(tmp_path, batch_size=n, optim__sam_rho=0.1).bytes_per_device for n in (1, 2)]
    assert sharp[1] - sharp[0] == 2 * (trained[1] - trained[0])


def test_flops_count_trained_parameters_only(tmp_path):
    whole = cost_of(tmp_path).total_train_flops
    probe = cost_of(tmp_path, optim__freeze=("(?!head/).*",)).total_train_flops
    assert 2.7 < whole / probe < 3
    assert cost_of(tmp_path, optim__sam_rho=0.1).total_train_flops == 2 * whole
    run = PlannedRun("a", {}, (), small_config(**MODEL, optim__freeze=("(",)), tmp_path)
    assert total_train_flops(run) is None  # As the run will say.
    with pytest.raises(ConfigError, match=r"optim\.freeze"):
        cost(run)
