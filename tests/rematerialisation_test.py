"""`model.remat="auto"`: the least recomputation that fits in a device's memory."""

import dataclasses
import json
import shutil
import types

import jax
import numpy as np
import pytest
from etils import epath
from jax.sharding import AbstractMesh

from tests.small_run import mesh_of, small_config, train_on_one
from vit_jax.config.model import model_section
from vit_jax.errors import ConfigError
from vit_jax.models import read_section
from vit_jax.parallel.constraints import AXES
from vit_jax.rundir import agreement
from vit_jax.rundir import workdir as workdirs
from vit_jax.telemetry import notes
from vit_jax.telemetry.chips import GB, GIB
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.training import rematerialisation
from vit_jax.training.memory import bytes_per_device, memory_per_device, smallest_mesh
from vit_jax.training.rematerialisation import POLICIES, SHARE, available_bytes, choose, resolve

CONFIG = small_config(batch_size=256)
MODEL = read_section(CONFIG.model, num_classes=10)


def estimates(config=CONFIG, model=MODEL):
    mesh = smallest_mesh(config)
    models = [dataclasses.replace(model, remat=policy) for policy in POLICIES]
    return [bytes_per_device(config, each, mesh) for each in models]


def resnet_section(remat):
    section = model_section()
    section.update({"variant": "BiT-R50x1", "remat": remat})
    return section


def test_the_first_policy_that_leaves_the_margin_is_taken():
    sizes = estimates()
    assert sizes == sorted(set(sizes), reverse=True)  # Each keeps less than the one before.
    for policy, size in zip(POLICIES, sizes, strict=True):
        fits = choose(CONFIG, MODEL, smallest_mesh(CONFIG), int(size / SHARE) + 1)
        assert fits[0] == policy
    gib = [f"{size / GIB:.1f}" for size in (sizes[1], sizes[1], sizes[0])]
    policy, reason = choose(CONFIG, MODEL, smallest_mesh(CONFIG), int(sizes[1] / SHARE) + 1)
    expected = "auto: {} of {} GiB, 75% of a device's memory; none would take {}"
    assert (policy, reason) == ("named", expected.format(*gib))


def test_if_nothing_fits_everything_is_recomputed_with_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(notes, "_shown", set())
    policy, _ = choose(CONFIG, MODEL, smallest_mesh(CONFIG), estimates()[-1])
    assert policy == "full"
    for word in ("model.remat=full", "batch_size", "optim.accum_steps", "mesh.fsdp"):
        assert word in caplog.text


def test_more_devices_need_less_recomputation():
    budget = int(estimates()[2] / SHARE)
    with jax.set_mesh(mesh_of(data=8)):
        assert choose(CONFIG, MODEL, mesh_of(data=8), budget)[0] == "none"
    assert choose(CONFIG, MODEL, mesh_of(), budget)[0] in POLICIES[2:]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_over_tensor_all_is_split_but_the_inputs_of_its_layers(policy, parallel):
    model = dataclasses.replace(MODEL, pool="gap", remat=policy, parallel=parallel)
    alone, split = (
        memory_per_device(CONFIG, model, AbstractMesh((1, 1, tensor), AXES)) for tensor in (1, 2)
    )
    one_array = CONFIG.batch_size * model.num_tokens * model.width * 4
    gathered = model.depth * (1 if parallel else 2) * one_array if policy == "none" else 0
    assert split.residuals == (alone.residuals + gathered) / 2
    # Two more in the backward pass.
    assert alone.working / 2 < split.working < alone.working / 2 + 2 * one_array


def test_a_mixer_keeps_its_hidden_units_by_name():
    config = small_config(model__variant="Mixer-S/4", model__pool=None)
    model = read_section(config.model, num_classes=10)
    none, named, _, full = estimates(model=model)
    assert full < named < none


def test_without_a_choice_by_memory(monkeypatch):
    assert resolve(CONFIG, MODEL, mesh_of())[0].remat == "none"  # A CPU.
    monkeypatch.setattr(rematerialisation, "available_bytes", lambda device: 1)
    explicit = dataclasses.replace(MODEL, remat="named")
    assert resolve(CONFIG, explicit, mesh_of()) == (explicit, "")
    resnet = read_section(resnet_section("auto"), num_classes=10)
    assert resolve(CONFIG, resnet, mesh_of()) == (resnet, "")
    assert choose(small_config(cache_features=True), MODEL, mesh_of(), 1) == ("none", "")


@pytest.mark.parametrize(
    ("platform", "kind", "statistics", "available"),
    [
        ("gpu", "NVIDIA H200", {"bytes_limit": 5}, 5),
        ("gpu", "NVIDIA H200", None, 141 * GB),
        ("tpu", "TPU v3", {"bytes_limit": 5}, int(15.48 * GIB)),  # A core of its chip.
        ("tpu", "unknown", {"bytes_limit": 5}, 5),
        ("gpu", "unknown", None, None),
    ],
)
def test_the_memory_of_a_device(platform, kind, statistics, available):
    device = types.SimpleNamespace(
        platform=platform, device_kind=kind, memory_stats=lambda: statistics
    )
    assert available_bytes(device) == available


def test_the_policy_is_no_other_run():
    then, now = (
        workdirs.comparable(small_config(model__remat=remat)) for remat in ("none", "full")
    )
    assert not workdirs.config_changes(then, now)
    # Release 0.1.0 recorded it for models that have no such setting, too.
    assert read_section(resnet_section("none"), num_classes=10).units == (3, 4, 6, 3)


def test_processes_that_chose_differently_are_refused(monkeypatch):
    def exchange(message):
        return [message, message.replace('"remat": "none"', '"remat": "full"')]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(agreement, "exchange", exchange)
    with pytest.raises(
        ConfigError, match=r"process 1 of 2 chose model.remat=full, and process 0 none"
    ):
        agreement.agree(epath.Path("/nowhere"), small_config(), {}, remat="none", mesh={})


def test_processes_that_chose_different_meshes_are_refused(monkeypatch):
    def exchange(message):
        return [message, message.replace('"fsdp": 77', '"fsdp": 2')]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(agreement, "exchange", exchange)
    with pytest.raises(ConfigError, match=r"process 1 of 2 chose the mesh .*'fsdp': 2.* process 0"):
        agreement.agree(
            epath.Path("/nowhere"), small_config(), {}, remat="none", mesh={"data": 4, "fsdp": 77}
        )


@pytest.mark.slow
def test_a_run_continues_with_another_policy(tmp_path, capsys, monkeypatch, plain_run):
    assert json.loads((plain_run / "run.json").read_text())["remat"] == "none"
    shutil.copytree(plain_run, tmp_path / "run")
    for step in (tmp_path / "run" / "checkpoints").iterdir():
        if step.name != "4":
            shutil.rmtree(step)
    # Between what the last two policies need.
    config = small_config()
    *_, third, last = estimates(config, read_section(config.model, num_classes=10))
    available = int((third + last) / 2 / SHARE)
    monkeypatch.setattr(rematerialisation, "available_bytes", lambda device: available)
    capsys.readouterr()
    assert train_on_one(config, tmp_path / "run") == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert "attention by xla, remat full (auto: 0.0 of 0.0 GiB, 75% of a device's memory; " in line
    assert json.loads((tmp_path / "run" / "run.json").read_text())["remat"] == "full"
    config_json = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config_json["model"]["remat"] == "auto"
    kept, recomputed = (
        [line["train/loss"] for line in read_jsonl(path / "metrics.jsonl") if "train/loss" in line]
        for path in (plain_run, tmp_path / "run")
    )
    assert len(kept) == 6
    np.testing.assert_allclose(recomputed, kept, rtol=1e-5)
