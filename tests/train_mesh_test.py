"""The same run on other meshes, and the program that it compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.small_run import small_config
from vit_jax import train as train_module
from vit_jax.models import Vit, param_shapes, vit_config
from vit_jax.optim import make_optimizer, make_schedule
from vit_jax.parallel import processes
from vit_jax.parallel.mesh import batch_sharding, make_mesh
from vit_jax.state import make_init, state_layout
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.train import make_train_step, train

STOCHASTIC = {
    "model__dropout": 0.1,
    "model__attention_dropout": 0.1,
    "model__stochastic_depth": 0.1,
    "mix__mixup_alpha": 0.2,
    "mix__cutmix_alpha": 1.0,
}


def losses(workdir, *, devices, **changes):
    config = small_config(log__every_steps=1, **STOCHASTIC, **changes)
    assert train(config, workdir, devices=jax.devices()[:devices]) == 0
    return [line["train/loss"] for line in read_jsonl(workdir / "metrics.jsonl")]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("one"), devices=1)


@pytest.mark.parametrize(
    "mesh",
    [
        {"mesh__data": 8},
        pytest.param({"mesh__data": 1, "mesh__fsdp": 8}, marks=pytest.mark.slow),
        {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2},
    ],
)
def test_a_mesh_trains_as_one_device_does(tmp_path, one_device, mesh):
    got = losses(tmp_path, devices=8, **mesh)
    assert len(got) == 12
    np.testing.assert_allclose(got, one_device, atol=1e-5, rtol=0)


def test_a_run_moves_to_another_mesh(tmp_path, one_device):
    losses(tmp_path / "a", devices=8, total_steps=4, mesh__fsdp=4, optim__schedule__name="constant")
    first = losses(tmp_path / "b", devices=1, total_steps=12, optim__schedule__name="constant")
    moved = small_config(
        log__every_steps=1, **STOCHASTIC, mesh__tensor=2, optim__schedule__name="constant"
    )
    assert train(moved, tmp_path / "a", devices=jax.devices()[:2], allow_config_change=True) == 0
    got = [line["train/loss"] for line in read_jsonl(tmp_path / "a" / "metrics.jsonl")]
    np.testing.assert_allclose(got, first, atol=1e-5, rtol=0)


def test_accumulation_gives_the_big_batchs_run(tmp_path):
    # Without dropout, which differs between microbatches on purpose.
    config = {"log__every_steps": 1, "mix__mixup_alpha": 0.2}
    runs = []
    for accum in (1, 4):
        workdir = tmp_path / str(accum)
        run = small_config(**config, optim__accum_steps=accum)
        assert train(run, workdir, devices=jax.devices()[:2]) == 0
        runs.append([line["train/loss"] for line in read_jsonl(workdir / "metrics.jsonl")])
    np.testing.assert_allclose(runs[1], runs[0], atol=1e-5, rtol=0)


def test_the_train_step_is_compiled_once(tmp_path, monkeypatch):
    compiled = []
    make = train_module.make_train_step

    def counting(*args):
        step = make(*args)

        def train_step(*step_args):
            compiled.append(None)  # Runs while tracing only.
            return step(*step_args)

        return train_step

    monkeypatch.setattr(train_module, "make_train_step", counting)
    losses(tmp_path, devices=2)
    assert len(compiled) == 1


def lowered_step(**changes):
    """The train step on 8 devices, lowered with its layouts; and the state's shapes."""
    config = small_config(**changes)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        cfg = vit_config(config.model, num_classes=10)
        schedule = make_schedule(
            config.optim.schedule, total_steps=10, batch_size=16, num_examples=1000
        )
        tx = make_optimizer(config.optim, param_shapes(cfg), schedule=schedule)
        init = make_init(config, Vit(cfg), tx)
        shapes = jax.eval_shape(init, jax.random.key(0))
        layout = state_layout(shapes, mesh)
        place = lambda leaf, sharding: jax.ShapeDtypeStruct(  # noqa: E731
            leaf.shape, leaf.dtype, sharding=sharding
        )
        split = batch_sharding(mesh)
        batch = {
            "image": jax.ShapeDtypeStruct((16, *cfg.image_size, 1), jnp.float32, sharding=split),
            "label": jax.ShapeDtypeStruct((16,), jnp.int32, sharding=split),
        }
        step = make_train_step(config, Vit(cfg), tx, schedule)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(layout, None))
        state = jax.tree.map(place, shapes, layout)
        return jitted.lower(state, batch, processes.flag_array(False, mesh)), shapes


@pytest.mark.parametrize("mesh", [{"mesh__fsdp": 8, "mesh__data": 1}, {"mesh__tensor": 2}])
def test_the_step_keeps_its_constraints_and_donates_its_state(mesh):
    lowered, shapes = lowered_step(**mesh)
    text = lowered.as_text()
    assert text.count("sharding_constraint") >= 6
    compiled = lowered.compile()
    # Parameters in, the same layout out: nothing is gathered to be whole on a device.
    ins = compiled.input_shardings[0][0]
    outs = compiled.output_shardings[0]
    jax.tree.map(
        lambda leaf, a, b: None if a.is_equivalent_to(b, leaf.ndim) else pytest.fail(f"{a} {b}"),
        shapes, ins, outs,
    )  # fmt: skip
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes.params))
    assert compiled.memory_analysis().alias_size_in_bytes > state_bytes / 8  # Donated.


@pytest.mark.parametrize("told", [None, 0, 5])
def test_all_processes_learn_of_a_stop(told):
    mesh = make_mesh(ConfigDict({"data": 2, "fsdp": 2, "tensor": 2}))
    flags = [processes.flag_array(value, mesh) for value in (False, True)]
    assert flags[0].shape == (8,) and len(flags[0].addressable_shards) == 8
    # As if each device were a process, and one of them had been told.
    shards = [flags[i == told].addressable_shards[i].data for i in range(8)]
    mixed = jax.make_array_from_single_device_arrays((8,), flags[0].sharding, shards)
    with jax.set_mesh(mesh):
        assert bool(jax.jit(processes.any_flag)(mixed)) is (told is not None)
