"""The same run on other meshes, and the program that it compiles."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.conftest import campaign
from tests.exactness import MESHES, TOLERANCE, whole
from tests.small_run import small_config, train_on_one
from vit_jax.models import build, param_shapes, read_section
from vit_jax.optim import make_optimizer, make_schedule
from vit_jax.parallel import processes
from vit_jax.parallel.mesh import batch_sharding, make_mesh
from vit_jax.parallel.rules import path_name
from vit_jax.telemetry.clock import Clock
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.training import experiment
from vit_jax.training.run import train
from vit_jax.training.state import make_init, state_layout
from vit_jax.training.update import make_train_step

# Three steps: the second and the third take what the first gave.
SHORT = small_config(
    total_steps=3, model__depth=1, optim__name="sgd", evals=ConfigDict(),
    checkpoint__every_steps=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Fifty steps on one device by the number of microbatches, each run on its first use."""
    folder = tmp_path_factory.mktemp("alone")
    return functools.cache(lambda n: whole(folder / str(n), (1, 1, 1), accum_steps=n))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("mesh", "accum_steps"),
    [case if case == ((2, 2, 2), 4) else campaign(*case) for case in MESHES],
)
def test_fifty_steps_on_any_mesh(tmp_path, alone, mesh, accum_steps):
    run = whole(tmp_path / "run", mesh, accum_steps=accum_steps)
    difference = run.compared(alone(accum_steps))
    assert difference["loss"] < TOLERANCE, difference
    assert difference["same batches"] and difference["same accuracies"]
    assert run.losses[-5:].mean() < run.losses[0] - 0.02  # It learns: equality means something.


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [True, campaign(False)])
def test_the_same_losses_with_tokens_split_over_tensor(tmp_path, parallel):
    # Four tokens: without a class token, tensor=2 divides them.
    losses = {}
    for mesh in ((1, 1, 1), (2, 2, 2)):
        config = small_config(
            model__pool="map", model__parallel=parallel, model__qk_norm=parallel,
            evals=ConfigDict(), log__every_steps=1, checkpoint__every_steps=12,
            **dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), mesh, strict=True)),
        )  # fmt: skip
        folder = tmp_path / str(mesh)
        assert train(config, folder, devices=jax.devices()[: math.prod(mesh)]) == 0
        losses[mesh] = [line["train/loss"] for line in read_jsonl(folder / "metrics.jsonl")]
    alone, split = losses.values()
    assert len(set(alone)) >= 11  # The parameters change, but for the head at first.
    np.testing.assert_allclose(split, alone, rtol=TOLERANCE)


@pytest.mark.slow
def test_the_train_step_is_compiled_once(tmp_path, monkeypatch):
    compiled = []
    make = experiment.make_train_step

    def counting(*args, **settings):
        step = make(*args, **settings)

        def train_step(*step_args):
            compiled.append(None)  # Runs while tracing only.
            return step(*step_args)

        return train_step

    monkeypatch.setattr(experiment, "make_train_step", counting)
    assert train(SHORT, tmp_path, devices=jax.devices()[:2]) == 0
    assert len(compiled) == 1


def prepared(**changes):
    """The jitted train step on 8 devices, and its arguments: shapes with their layouts."""
    config = small_config(**changes)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        cfg = read_section(config.model, num_classes=10)
        schedule = make_schedule(
            config.optim.schedule, total_steps=10, batch_size=16, num_examples=1000
        )
        tx = make_optimizer(config.optim, param_shapes(cfg), schedule=schedule)
        shapes = jax.eval_shape(make_init(config, build(cfg), tx), jax.random.key(0))
        layout = state_layout(shapes, mesh)
        state = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            layout,
        )
        split = batch_sharding(mesh)
        batch = {
            "image": jax.ShapeDtypeStruct((16, *cfg.image_size, 1), jnp.float32, sharding=split),
            "label": jax.ShapeDtypeStruct((16,), jnp.int32, sharding=split),
            "weight": jax.ShapeDtypeStruct((16,), jnp.float32, sharding=split),
        }
        step = make_train_step(config, build(cfg), tx, schedule)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(layout, None))
        return jitted, mesh, (state, batch, processes.flag_array(False, mesh))


@pytest.mark.medium
@pytest.mark.parametrize(
    "mesh",
    [
        {"mesh__data": 1, "mesh__fsdp": 4, "mesh__tensor": 2},
        campaign({"mesh__data": 1, "mesh__fsdp": 8}),
        campaign({"mesh__tensor": 2}),
    ],
)
def test_the_step_keeps_its_constraints_and_donates_its_state(mesh):
    jitted, mesh, (state, *inputs) = prepared(optim__name="sgd", **mesh)
    with jax.set_mesh(mesh):
        lowered = jitted.lower(state, *inputs)
    text = lowered.as_text()
    assert text.count("sharding_constraint") >= 6
    compiled = lowered.compile()
    # Parameters in, the same layout out: nothing is gathered to be whole on a device.
    ins = compiled.input_shardings[0][0]
    outs = compiled.output_shardings[0]
    jax.tree.map(
        lambda leaf, a, b: None if a.is_equivalent_to(b, leaf.ndim) else pytest.fail(f"{a} {b}"),
        state, ins, outs,
    )  # fmt: skip
    # What the program asks for is a device's part of the state and of the batch, and no more; and
    # the state's memory is used again, all of it.
    memory = compiled.memory_analysis()
    held, fed = local_bytes(state), local_bytes(inputs[0]) + 1
    assert held < memory.argument_size_in_bytes <= held + fed
    assert memory.alias_size_in_bytes >= held


def local_bytes(tree):
    """Of one device's part, by shapes and layouts."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


@pytest.mark.medium
@pytest.mark.parametrize("signalled", [None, 0, 5])
def test_all_processes_receive_a_stop(signalled):
    mesh = make_mesh(ConfigDict({"data": 2, "fsdp": 2, "tensor": 2}))
    flags = [processes.flag_array(value, mesh) for value in (False, True)]
    assert flags[0].shape == (8,) and len(flags[0].addressable_shards) == 8
    # As if each device were a process, and one of them had been signalled.
    shards = [flags[i == signalled].addressable_shards[i].data for i in range(8)]
    mixed = jax.make_array_from_single_device_arrays((8,), flags[0].sharding, shards)
    with jax.set_mesh(mesh):
        assert bool(jax.jit(processes.any_flag)(mixed)) is (signalled is not None)


# ------------------------------------------------------------------- what a device has to hold

# What theory says a device keeps of a parameter: a share by the sizes f and t of fsdp and tensor.
# Written down once more, so that the table of rules has something to be held against.
SHARES = (
    (r"(embedding|head)/kernel|cls|pos_embedding", lambda f, t: f),
    (r".*/(query|key|value|out|fc1|fc2)/kernel", lambda f, t: f * t),
    (r".*/(query|key|value|fc1)/bias", lambda f, t: t),
    (r".*", lambda f, t: 1),
)


def bytes_by_theory(params, *, fsdp, tensor):
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        share = next(share for pattern, share in SHARES if re.fullmatch(pattern, name))
        assert leaf.size % share(fsdp, tensor) == 0, name
        total += leaf.size * leaf.dtype.itemsize // share(fsdp, tensor)
    return total


def bytes_on(device, tree):
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == device
    )


@pytest.mark.medium
@pytest.mark.parametrize(
    "mesh",
    [
        (1, 8, 1),
        (2, 2, 2),
        *(campaign(mesh) for mesh in [(8, 1, 1), (4, 1, 2), (1, 2, 4), (2, 4, 1)]),
    ],
)
def test_a_device_holds_its_share_of_the_state(mesh):
    data, fsdp, tensor = mesh
    _, _, (shapes, *_) = prepared(
        mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor, model__num_heads=8,
        optim__ema_decay=0.9,
    )  # fmt: skip
    state = jax.tree.map(
        lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), shapes
    )
    whole_size = bytes_by_theory(shapes.params, fsdp=1, tensor=1)
    size = bytes_by_theory(shapes.params, fsdp=fsdp, tensor=tensor)
    counters = sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 0)
    assert size < 1.3 * whole_size / (fsdp * tensor)
    for device in jax.devices():
        assert bytes_on(device, state.params) == bytes_on(device, state.ema) == size
        assert bytes_on(device, state.opt_state) == 2 * size + counters


@pytest.mark.medium
@pytest.mark.usefixtures("plain_run")
def test_the_loop_forbids_implicit_transfers(tmp_path, monkeypatch):
    count = Clock.count

    def careless(clock, examples):
        jnp.add(np.ones(3), 1)  # What is on the host goes to the device unasked.
        count(clock, examples)

    monkeypatch.setattr(Clock, "count", careless)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train_on_one(small_config(), tmp_path)
