"""What `sweep --dry_run` says a run will take, against real arrays on real meshes."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import jax
import jax.numpy as jnp
import optax
import pytest

from tests.conftest import ROOT
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
    share = cost_of(tmp_path, mesh__data=1, batch_size=16).bytes_per_device
    assert cost_of(tmp_path, mesh__data=4, batch_size=64).bytes_per_device == share
    # A microbatch needs no more, but for the sum of the gradients, and the other 48 images, in this
    # batch and two ahead.
    accumulated = cost_of(tmp_path, batch_size=64, optim__accum_steps=4).bytes_per_device
    params = param_shapes(read_section(small_config(**MODEL).model, num_classes=10))
    gradients = sum(leaf.size for leaf in jax.tree.leaves(params)) * 4
    assert accumulated == share + gradients + 48 * 3 * 8 * 8 * 4


def test_frozen_parameters_take_neither_gradients_nor_activations(tmp_path):
    config = small_config(**MODEL)
    params = param_shapes(read_section(config.model, num_classes=10))
    head = sum(leaf.size for leaf in jax.tree.leaves(params["head"])) * 4
    whole = sum(leaf.size for leaf in jax.tree.leaves(params)) * 4
    probe = {"optim__freeze": ("(?!head/).*",), "optim__name": "sgd", "optim__momentum": 0.0}
    # Parameters, gradients of the head; optax.trace keeps a momentum of what is trained.
    assert state_bytes(tmp_path, 1, **probe) == pytest.approx(whole + 2 * head, abs=64)
    one, two = (cost_of(tmp_path, batch_size=n, **probe).bytes_per_device for n in (1, 2))
    # Of each image: the working set, whose largest part is the MLP's hidden units of 5 tokens, and
    # three images of 8x8 in the batches; with gradients, the residuals, among them these units
    # before and after the GELU; with SAM, twice those.
    hidden = 5 * 4096 * 4
    assert 1.5 * hidden < two - one < 4 * hidden
    trained = [cost_of(tmp_path, batch_size=n).bytes_per_device for n in (1, 2)]
    residuals = trained[1] - trained[0] - (two - one)
    assert 2 * hidden < residuals < 2.5 * hidden
    sharp = [cost_of(tmp_path, batch_size=n, optim__sam_rho=0.1).bytes_per_device for n in (1, 2)]
    assert sharp[1] - sharp[0] - (trained[1] - trained[0]) == pytest.approx(residuals, rel=0.01)


# In a process of its own: the tests' programs are not optimised, so they need more memory.
COMPILE = """
import json, sys
import jax
import jax.numpy as jnp
from tests.small_run import mesh_of, small_config
from vit_jax.models import read_section
from vit_jax.parallel import mesh as meshes
from vit_jax.parallel.processes import flag_array
from vit_jax.training import experiment
from vit_jax.training.experiment import Program

mesh = mesh_of()
experiment.number_of_parts = lambda *args: 1  # As on other devices: the whole batch at once.
for changes in json.loads(sys.argv[1]):
    config = small_config(**changes)
    model_config = read_section(config.model, num_classes=10)
    with jax.set_mesh(mesh):
        program = Program.of(config, model_config, mesh, num_examples=1000)
        state = jax.tree.map(
            lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout),
            jax.eval_shape(program.init, jax.random.key(0)), program.layout,
        )
        size, layout = config.batch_size, meshes.batch_sharding(mesh)
        batch = {
            "image": jax.ShapeDtypeStruct((size, 32, 32, 1), jnp.float32, sharding=layout),
            "label": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=layout),
            "weight": jax.ShapeDtypeStruct((size,), jnp.float32, sharding=layout),
        }
        program = program.train_step.lower(state, batch, flag_array(False, mesh)).compile()
    used = program.memory_analysis()
    print(used.argument_size_in_bytes + used.temp_size_in_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not version("jaxlib").startswith("0.9."),
    reason="compared with jaxlib 0.9; 0.12 allocates 1.2 and 1.7 times as much in two cases",
)
def test_memory_is_near_what_the_compiler_allocates(tmp_path):
    model = {"model__image_size": (32,), "model__depth": 3, "model__num_classes": 10}
    head = {"optim__freeze": ("(?!head/).*",)}
    sam = {"optim__sam_rho": 0.1, "model__remat": "named"}
    mixer = {"model__variant": "Mixer-S/4", "model__pool": None, "model__token_mlp_dim": 64}
    mixer |= {"model__width": 64, "model__mlp_dim": 256}
    named = {"model__remat": "named"}
    variants = ({}, named, head, sam, mixer, mixer | named)
    cases = [model | case | {"batch_size": 64} for case in variants]
    environment = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, json.dumps(cases)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for case, allocated in zip(cases, map(int, done.stdout.split()), strict=True):
        run = PlannedRun("a", {}, (), small_config(**case, data__prefetch=1), tmp_path)
        ahead = 64 * 32 * 32 * 4  # The compiler does not know of the next batch.
        # More where the compiler fuses the softmax.
        assert 0.9 < (cost(run).bytes_per_device - ahead) / allocated < 1.6, case


def test_flops_count_trained_parameters_only(tmp_path):
    whole = cost_of(tmp_path).total_train_flops
    probe = cost_of(tmp_path, optim__freeze=("(?!head/).*",)).total_train_flops
    assert 2.7 < whole / probe < 3
    assert cost_of(tmp_path, optim__sam_rho=0.1).total_train_flops == 2 * whole
    run = PlannedRun("a", {}, (), small_config(**MODEL, optim__freeze=("(",)), tmp_path)
    assert total_train_flops(run) is None  # As the run will say.
    with pytest.raises(ConfigError, match=r"optim\.freeze"):
        cost(run)
