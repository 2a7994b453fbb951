"""`vit-jax plan`: topologies, sizes of data, plans by formula, and the command."""

import dataclasses
import json

import jax
import pytest
from jax.sharding import AbstractMesh

from tests.commands import call
from tests.small_run import small_config
from vit_jax.errors import ConfigError
from vit_jax.models import param_shapes
from vit_jax.planning import search as search_module
from vit_jax.planning.advice import advice
from vit_jax.planning.data_size import data_size
from vit_jax.planning.formula import formula_collectives
from vit_jax.planning.plan import plan_by_formula
from vit_jax.planning.remedies import remedies
from vit_jax.planning.report import sentence, text, to_json
from vit_jax.planning.roofline import roofline
from vit_jax.planning.step import Compiled
from vit_jax.planning.topology import parse
from vit_jax.telemetry.chips import GIB
from vit_jax.training.memory import bytes_per_device

pytestmark = pytest.mark.medium

SIZES = {"num_classes": 10, "num_examples": 1442}
# Sixteen rows of width 128 in each of two shards; large enough for a rule to matter.
WIDE = {"model__width": 128, "model__mlp_dim": 512, "model__num_heads": 2}
# Its state takes gigabytes, so that mesh.fsdp matters.
LARGE = {"model__width": 2048, "model__mlp_dim": 8192, "model__num_heads": 16}


@pytest.mark.parametrize(
    ("name", "slices", "chips", "devices", "words"),
    [
        ("v5e:16x16", 1, 256, 256, "256 TPU v5e chips (16x16)"),
        ("v5p:8x8x8", 2, 1024, 1024, "1,024 TPU v5p chips (2 slices of 8x8x8)"),
        ("v7:2x2x4", 1, 16, 32, "16 TPU7x chips (2x2x4)"),
        ("V4:4x4x4", 1, 64, 64, "64 TPU v4 chips (4x4x4)"),
        ("h200x8", 1, 8, 8, "8 H200 SXM GPUs (1x8)"),
        ("b200x64", 1, 64, 64, "64 B200 GPUs (8x8)"),
    ],
)
def test_topologies(name, slices, chips, devices, words):
    topology = parse(name, slices=slices)
    assert (topology.num_chips, topology.num_devices) == (chips, devices)
    assert topology.describe() == words


@pytest.mark.parametrize(
    ("name", "slices", "message"),
    [
        ("v5x:4x4", 1, "Did you mean v5"),
        ("v5e", 1, "Accepted are v3, v4, v5e, v5p, v6e, v7 with the chips along each axis"),
        ("v5litepod-32", 1, "Did you mean v5e:4x8"),
        ("v5p-1024", 1, "Did you mean v5p with the axes of its 512 chips"),
        ("v5e:0x4", 1, "a slice of v5e is v5e:AxB with up to 256 chips"),
        ("v5e:16x32", 1, "More chips: --slices"),
        ("v6e:3x5", 1, "slices of v6e of 1x1, 2x2, 2x4"),
        ("v5p:8x8", 1, "v5p:AxBxC"),
        ("h200x12", 1, "up to 8 GPUs, or a multiple of 8"),
        ("h200x8", 2, "write h200x16"),
        ("v5e:4x4", 0, "--slices=0"),
    ],
)
def test_what_is_no_topology(name, slices, message):
    with pytest.raises(ConfigError, match=message):
        parse(name, slices=slices)


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"name": "imagenet2012", "split": "train"}, (1_281_167, 1000)),
        ({"name": "imagenet2012:5.1.0", "split": "train[:99%]"}, (1_268_355, 1000)),
        ({"name": "imagenet21k", "split": "full[51200:]"}, (14_145_922, 21_843)),
        ({"name": "cifar10", "split": "train[-100:]"}, (100, 10)),
        ({"name": "cifar10", "split": "train", "shots": 5}, (50, 10)),
        # The shots are those of the data's ten classes.
        ({"name": "cifar10", "split": "train", "shots": 5, "model__num_classes": 99}, (50, 99)),
        ({"source": "digits", "split": "train"}, (1442, 10)),
        # Known without the data, which opening would download.
        ({"source": "fashion_mnist", "split": "train[:55000]"}, (55_000, 10)),
    ],
)
def test_sizes_of_data(changes, size):
    changes = {
        key if "__" in key else f"data__{key}": value
        for key, value in {"source": "tfds", **changes}.items()
    }
    assert data_size(small_config(**changes)) == size


def test_data_of_unknown_size_needs_flags():
    config = small_config(data__source="tfds", data__name="no_such_data", data__split="train")
    with pytest.raises(ConfigError, match="--examples"):
        data_size(config)
    assert data_size(config, examples=5, classes=3) == (5, 3)


def planned(topology="h200x8", **changes):
    return plan_by_formula(small_config(**changes), parse(topology), **SIZES)


def test_a_plan_by_formula():
    plan = planned(mesh__fsdp=2, model__dtype="bfloat16", **WIDE)
    assert plan.fits and plan.mesh == {"data": 4, "fsdp": 2, "tensor": 1}
    mesh = AbstractMesh((4, 2, 1), ("data", "fsdp", "tensor"))
    assert plan.needed == bytes_per_device(plan.config, plan.model_config, mesh)
    params = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(plan.model_config)))
    sent = {each.kind: each.total_bytes for each in plan.sends}
    # Each kernel is gathered forward and backward and scattered once, in bfloat16, and a shard's
    # gradient is summed over the data axis.
    assert sent == pytest.approx(
        {"all-gather": 4 * params, "reduce-scatter": 2 * params, "all-reduce": params}
    )
    assert plan.step_flops > plan.model_flops > 0
    assert plan.num_steps == 12 and plan.images_per_device == 2
    low, high = plan.chip_hours
    assert 0 < low < high and high == pytest.approx(plan.roofline.slowest * 12 * 8 / 3600)


def test_the_tensor_axis_sums_the_residual_stream():
    plan = planned(mesh__tensor=2, mesh__data=4)
    (sums,) = (each for each in plan.sends if each.axes == ("tensor",))
    model = plan.model_config
    assert sums.executions == 2 * 2 * model.depth  # Two in each pass of a block.
    assert sums.bytes == 16 / 4 * model.num_tokens * model.width * 4
    mesh = AbstractMesh((4, 1, 2), ("data", "fsdp", "tensor"))
    assert formula_collectives(plan.config, model, mesh) == plan.sends


def sent(plan):
    return {(each.kind, *each.axes, each.dtype): each.total_bytes for each in plan.sends}


@pytest.mark.slow
def test_frozen_parameters_are_gathered_and_not_summed():
    changes = {"mesh__fsdp": 2, "model__dtype": "bfloat16", **WIDE}
    all_trained, head = planned(**changes), planned(**changes, optim__freeze=("(?!head/).*",))
    key = ("reduce-scatter", "fsdp", "bf16")
    assert sent(head)[key] < 0.01 * sent(all_trained)[key]
    key = ("all-gather", "fsdp", "bf16")
    assert sent(head)[key] == sent(all_trained)[key]


@pytest.mark.slow
def test_gradients_summed_in_float32_take_twice_the_bytes():
    changes = {"mesh__fsdp": 2, "model__dtype": "bfloat16"}
    plain, wide = planned(**changes), planned(**changes, model__grad_sum_dtype="float32")
    for kind, axis in (("reduce-scatter", "fsdp"), ("all-reduce", "data")):
        assert sent(wide)[kind, axis, "f32"] == 2 * sent(plain)[kind, axis, "bf16"]


@pytest.mark.slow
def test_microbatches_gather_and_move_as_often():
    one, four = planned(batch_size=64), planned(batch_size=64, optim__accum_steps=4)
    assert sum(sent(four).values()) == 4 * sum(sent(one).values())
    assert one.hbm_bytes < four.hbm_bytes < 4 * one.hbm_bytes


@pytest.mark.parametrize(
    ("topology", "ports"),
    [
        ("v5e:16x16", (2, 2)),
        ("v5e:8x16", (1, 2)),
        ("v5e:4x8", (1, 1)),
        ("v5p:4x4x8", (2, 2, 2)),
        ("v5p:2x4x8", (1, 1, 1)),  # No whole cubes.
        ("h200x8", (1,)),
    ],
)
def test_ports_of_a_slice(topology, ports):
    assert parse(topology).ports_by_axis == ports


@pytest.mark.slow
def test_models_that_are_no_vit():
    plan = planned(
        model__variant="BiT-R50x1", model__pool=None, model__depth=None, model__remat="none"
    )
    assert plan.fits and not [each for each in advice(plan) if "remat" in each]
    with pytest.raises(ConfigError, match="splits no ResNet"):
        planned(model__variant="BiT-R50x1", model__pool=None, model__depth=None, mesh__tensor=2)


def test_a_slice_holds_whole_groups():
    with pytest.raises(ConfigError, match="must be a multiple of 2, the number of slices"):
        plan_by_formula(
            small_config(mesh__fsdp=8, mesh__data=1), parse("v5e:2x2", slices=2), **SIZES
        )


def test_several_nodes_send_over_the_network():
    two = roofline(
        parse("h200x16"), peak=1.0, flops=0.0, hbm_bytes=0.0, collectives=planned("h200x16").sends
    )
    one = roofline(parse("h200x8"), peak=1.0, flops=0.0, hbm_bytes=0.0, collectives=planned().sends)
    assert two.network > 0 == one.network
    # Each of 16 devices sends an eighth of the gradients to the other node and gets its eighth.
    params = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(planned().model_config)))
    assert two.network == pytest.approx(4 * params / 8 / 50e9)


def test_an_axis_that_fills_no_whole_node_has_a_part_between_nodes():
    plan = planned()
    mesh = AbstractMesh((2, 12, 1), ("data", "fsdp", "tensor"))
    sends = formula_collectives(plan.config, plan.model_config, mesh, groups=3)
    gathers = {each.network: each.devices for each in sends if each.kind == "all-gather"}
    assert gathers == {False: 4, True: 3}


def test_the_text_of_a_plan_has_its_numbers():
    plan = planned(mesh__fsdp=2)
    written = text(plan, advice(plan), price=2.0)
    assert sentence(plan, price=2.0) in written
    for part in ("by formula", "small ones", "parameters", "chip-hours", "at a cost of", "What to"):
        assert part in written
    saved = json.loads(json.dumps(to_json(plan, advice(plan))))
    assert saved["fits"] and saved["needed_bytes"] == plan.needed and saved["by_formula"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "fewer than 8"),
        ({"model__remat": "full", "batch_size": 64}, "recomputes more than needed"),
        ({"batch_size": 32, "mesh__fsdp": 16, **WIDE, "model__mlp_dim": 2048}, "shards of 8 rows"),
        ({"mesh__data": 4, "mesh__tensor": 2}, "5 tokens do not split over mesh.tensor=2"),
    ],
)
def test_advice(changes, message):
    topology = "v5e:4x8" if "mesh__fsdp" in changes else "h200x8"
    assert message in " ".join(advice(planned(topology, **changes)))


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"model__remat": "none"}, 3),
        ({"model__remat": "dots"}, 3),
        ({"batch_size": 2**21}, 2),  # Microbatches change what remat=auto chooses,
        (LARGE | {"batch_size": 2**17, "model__remat": "full", "mesh__auto": True}, 2),  # or fsdp.
    ],
)
def test_each_remedy_is_enough(changes, count):
    changes = {"batch_size": 2**19, "model__image_size": (64,)} | changes
    plan = planned(**changes)
    found = remedies(plan)
    assert not plan.fits and len(found) == count
    for remedy in found:
        words = [word for word in remedy.split() if word.startswith("--")]
        flags = dict(word.removeprefix("--config.").split("=") for word in words)
        values = {name.replace(".", "__"): text for name, text in flags.items()}
        values = {name: int(v) if v.isdecimal() else v for name, v in values.items()}
        mended = planned(**changes | values)
        assert mended.fits, remedy
        assert remedy.endswith(f"({mended.needed / GIB:.1f} GiB)")


def test_a_plan_that_does_not_fit():
    plan = planned(batch_size=2**22, model__image_size=(64,))
    assert not plan.fits and sentence(plan).startswith("Does not fit on 8 H200 SXM GPUs (1x8): it")
    assert plan.days is None and plan.chip_hours is None
    assert "one of these is enough: --config.optim.accum_steps=16 (" in advice(plan)[0]
    refused = Compiled("", {}, "RESOURCE_EXHAUSTED: Allocation", False, {})  # It names no size.
    plan = dataclasses.replace(plan, compiled=refused, needed=0, roofline=None)
    assert "it needs more than the 98.49 GiB that JAX" in sentence(plan)


@pytest.mark.slow
def test_a_search_finds_the_fastest_that_fits():
    lines = []
    config = small_config(batch_size=2048, **WIDE)
    best = search_module.search(config, parse("h200x8"), **SIZES, show=lines.append)
    assert best.fits and best.mesh["tensor"] == 1  # Sums over tensor cost, and save nothing here.
    assert best.config.model.remat == "none" and best.config.optim.accum_steps == 1
    assert any("candidates by formula" in line for line in lines)
    # Whatever is recomputed, only microbatches fit.
    large = small_config(batch_size=2**15, model__image_size=(128,), model__depth=2)
    best = search_module.search(
        large, parse("h200x1"), **SIZES, batch_sizes=(2**14, 2**15), show=lines.append
    )
    assert best.fits and best.config.optim.accum_steps > 1
    assert f"--config.optim.accum_steps={best.config.optim.accum_steps}" in lines[-1]
    assert {int(line.split()[0]) for line in lines if line[5:6].isdigit()} >= {2**14, 2**15}
    with pytest.raises(ConfigError, match=r"No mesh of 32 H200 .* divides a batch of 15 images"):
        search_module.search(
            small_config(batch_size=15), parse("h200x32"), **SIZES, show=lines.append
        )
    with pytest.raises(ConfigError, match=r"Nothing fits on 1 H200 .* the smallest needs"):
        search_module.search(
            small_config(batch_size=2**22, model__image_size=(64,)), parse("h200x1"), **SIZES,
            show=lines.append,
        )  # fmt: skip


@pytest.mark.slow
def test_a_search_has_the_config_itself_and_names_batches_that_it_leaves_out(monkeypatch):
    monkeypatch.setattr(search_module, "MAX_FSDP", 1)
    monkeypatch.setattr(search_module, "MAX_TENSOR", 1)
    lines, config = [], small_config(batch_size=24, optim__accum_steps=3, mesh__auto=True)
    search_module.search(config, parse("h200x8"), **SIZES, batch_sizes=(24, 25), show=lines.append)
    assert lines[0].startswith("Left out: batches of 25,")
    assert any(line.split()[:5] == ["24", "8", "1", "1", "3"] for line in lines)
    assert "--config.mesh.auto=False" in lines[-1]  # Else its mesh would be chosen anew.


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    small = ["--config.model.depth=2", "--config.model.scan=True"]
    flags = ["--config=quickstart", *small, "--topology=h200x8"]
    flags.append(f"--out={tmp_path / 'plan.json'}")
    done = call("plan", *flags)
    assert done.code == 0 and done.out.startswith("Fits on 8 H200"), done
    assert json.loads((tmp_path / "plan.json").read_text())["chips"] == 8
    again = call("plan", *flags)
    assert again.code == 2 and "exists: name another file, or add --overwrite" in again.err
    (tmp_path / "full.json").symlink_to("/dev/full")
    flags[-1] = f"--out={tmp_path / 'full.json'}"
    done = call("plan", *flags, "--overwrite")
    assert done.code == 2 and "full.json cannot be written: No space left" in done.err
    done = call("plan", *flags, "--price=nan")
    assert done.code == 2 and "--price=nan: give a number" in done.err
    done = call("plan", "--config=quickstart", "--topology=h20x8")
    assert done.code == 2 and "Did you mean h200?" in done.err
