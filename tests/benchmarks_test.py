"""Every benchmark runs at toy size."""

import csv
import dataclasses
import errno
import functools
import importlib.util
import json
import math
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from benchmarks import (
    analysis,
    checkpointing,
    gpu,
    gpu_attention,
    gpu_plan,
    growth,
    input,
    loading,
    planning,
    pod_reading,
    prediction,
    scaling_fits,
    scaling_lack_of_fit,
    scaling_optimistix,
    scaling_published,
    scaling_rules,
    seeds,
    shuffling,
    startup,
    transfer,
)
from tests.conftest import ROOT
from tests.data_sources_test import small_idx
from tests.small_run import small_config, train_on_one
from vit_jax.benchmarking.case import Case
from vit_jax.benchmarking.run import check_peers
from vit_jax.config import base_config, freeze, validate

__all__ = ["small_idx"]  # A fixture.

pytestmark = pytest.mark.medium

TESTED = {
    "analysis", "checkpointing", "gpu", "gpu_attention", "gpu_plan", "growth", "input", "loading",
    "planning", "pod_reading", "prediction", "scaling_fits", "scaling_lack_of_fit",
    "scaling_optimistix", "scaling_published", "scaling_rules", "seeds", "shuffling", "startup",
    "transfer",
}  # fmt: skip
# By numerics_test.py.
TESTED |= {"numerics", "numerics_cases", "numpy_gradients", "numpy_optimizers"}


def test_none_is_left_out():
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__"} == TESTED


@pytest.mark.slow
def test_analysis():
    ratios = analysis.relative_times(
        ["attention_distance"], model="mu/16", image_size=32, images=4, rounds=1
    )
    assert ratios["attention_distance"].median > 0
    peak = analysis.peak_mebibytes("attention_distance", "digits:test", 10, "mu/4", 8)
    assert 100 < peak < 4000


def test_input(tmp_path):
    scale = input.SCALES["toy"]
    assert input.write(tmp_path, scale.files)["png"] > 100
    exact = input.CASES[0]
    assert input.run(exact, tmp_path, scale)["processor"] > 0
    cached = next(case for case in input.CASES if case.cache == "disk")
    assert input.run(cached, tmp_path, scale)["processor"] > 0
    assert list((tmp_path / "cache").iterdir())
    assert input.measure(exact, "", "", "toy") is None  # No TensorFlow.
    assert "not measured" in input._cells([])


@pytest.mark.slow
def test_gpu_dry_run(tmp_path):
    """A stage of each kind, at toy size on a CPU: beside a peer, with a flag, commands."""
    stages = {stage.name: gpu_plan.toy(stage) for stage in gpu_plan.plan()}
    (pallas,) = (
        command
        for command in stages["attention alone"].commands
        if "--backend=pallas" in command.arguments
    )
    shortened = [
        dataclasses.replace(stages["B/16"], cases=stages["B/16"].cases[:1]),
        stages["latency hiding"],
        stages["reference outputs"],
        dataclasses.replace(stages["attention alone"], commands=(pallas,)),
    ]
    outcomes = gpu.run(shortened, seconds=280.0, cpu=True, out=tmp_path / "gpu.json")
    text = gpu.table(outcomes)
    assert text.count("| vit_jax") == 2 and "WRONG" not in text and "FAILED" not in text
    assert all(each["seconds"] > 0 for each in json.loads((tmp_path / "gpu.json").read_text()))
    assert re.search(r"pallas, 70 tokens, batch 1: forward [\d.]+ ms", text)
    if gpu_plan.GOLDENS.is_dir():
        assert "hf_vit/cls" in text


def test_gpu_plan_is_well_formed():
    """What every stage names exists: models, peers, modules, folders, tests, flags of XLA."""
    stages = gpu_plan.plan()
    names = {stage.name for stage in stages}
    assert len(names) == len(stages) and names >= gpu_plan.TARGETS.keys()
    for stage in (*stages, *map(gpu_plan.toy, stages)):
        check_peers(stage.peers)
        assert bool(stage.cases) != bool(stage.commands)
        for case in stage.cases:
            case.model_config()
        for command in stage.commands:
            module, argument = command.arguments[:2]
            assert importlib.util.find_spec(module), module
            if argument.startswith("--verify=") and gpu_plan.GOLDENS.is_dir():
                assert pathlib.Path(argument.removeprefix("--verify=")).is_dir(), argument
    (training,) = (each.commands[0] for each in stages if each.name == "reference training")
    path, _, test = training.arguments[1].partition("::")
    function = getattr(importlib.import_module(path[:-3].replace("/", ".")), test.split("[")[0])
    (cases,) = (mark.args[1] for mark in function.pytestmark if mark.name == "parametrize")
    assert test == f"{function.__name__}[{cases[0][0]}-sizes0]"
    flags = {"XLA_FLAGS": " ".join(stage.xla_flags for stage in stages)}
    code, text = gpu._output([sys.executable, "-c", "import jax; jax.devices()"], 60.0, flags)
    assert code == 0, text


def python(code, *, seconds=60.0, **fields):
    """A stage of a module that runs code."""
    arguments = ("timeit", "-n1", "-r1", code)
    command = gpu_plan.Command(arguments, arguments, **fields)
    return gpu_plan.Stage(code, seconds, commands=(command,))


def test_gpu_rows_of_what_fails(tmp_path):
    """A stage that raises, hangs, is killed or lacks something costs its own rows only."""
    wrong = gpu_plan.Stage("wrong", 60.0, (Case("not_a_variant/16"),))
    hangs = "import os, time; print('before', flush=True); os.fork(); time.sleep(60)"
    stages = [
        wrong,
        python("import os; os.kill(os.getpid(), 9)"),
        python("import not_there"),
        python("print('No module named x', flush=True); 1 / 0"),
        python("pass", needs=tmp_path / "shared" / "goldens"),
        python("print('done')"),
        python(hangs, seconds=2.0),
        python("print('after')"),
    ]
    outcomes = gpu.run(stages, seconds=200.0, cpu=True, out=tmp_path / "gpu.json")
    assert [each.note[:22] for each in outcomes] == [
        "failed: ConfigError: m",
        *[""] * 7,
    ]
    assert outcomes[1].lines[-1] == "timeit -n1: FAILED, exit code -9"
    ends = [each.lines[-1].partition(": ")[2] for each in outcomes[2:]]
    assert ends == [
        "skipped: ModuleNotFoundError: No module named 'not_there'; see requirements-dev.txt",
        "FAILED, exit code 1",
        "skipped: there is no folder shared/goldens",
        "exit code 0",
        "stopped: took longer than 2 s",
        "exit code 0",
    ]
    assert outcomes[6].lines[0] == "before"
    saved = json.loads((tmp_path / "gpu.json").read_text())
    assert [each["lines"] for each in saved] == [each.lines for each in outcomes]
    assert "ConfigError" in gpu.table(outcomes)

    late = gpu.run([python("pass")], seconds=0.5, cpu=True)
    assert [each.note for each in late] == [gpu.SKIPPED]


def test_gpu_interrupted_ends_its_command(monkeypatch):
    started = []

    class Interrupted(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is None:
                return super().wait()
            started.append(self)
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        gpu._output(["sleep", "60"], 50.0, {})
    assert [each.returncode for each in started] == [-signal.SIGKILL]


def test_gpu_a_full_disk_ends_no_stage(tmp_path, monkeypatch, capsys):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gpu, "write_bytes", full)
    outcomes = gpu.run([python("pass")], seconds=60.0, cpu=True, out=tmp_path / "gpu.json")
    assert outcomes[0].lines[-1] == "timeit -n1: exit code 0"
    assert "not saved: [Errno 28]" in capsys.readouterr().err


def test_gpu_attention_that_is_wrong_or_not_there(monkeypatch):
    measure = functools.partial(gpu_attention.line, dtype="float32", interpret=True)
    monkeypatch.setattr(gpu_attention, "attend", lambda query, key, value: query + key + value)
    assert "WRONG: differs by" in measure("xla", 5, 1)
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.ops.gpu", None)
    assert "not shipped in JAX" in measure("pallas", 5, 1)


def test_growth():
    point = growth.Point(growth.BASE, 2.0, 1.0, 0.9, 1.1, 100.0)
    curves = {axis: [point] for axis in growth.BASE}
    assert len(list(growth.table(curves))) == 2 + len(growth.BASE)
    assert len(growth.figure(curves).axes) == len(growth.COSTS)


@pytest.mark.slow
def test_checkpointing(tmp_path):
    results, megabytes = checkpointing.saves("toy", tmp_path, repeats=1)
    assert 0 < megabytes < 1 and all(len(seconds) == 1 for seconds in results.values())
    table = checkpointing.table({"toy": results})
    assert "| restore | " in table and "not measured" not in table


@pytest.mark.slow
def test_checkpointing_by_commands(tmp_path):
    results = checkpointing.commands("toy", tmp_path, repeats=1)
    assert {name: len(seconds) for name, seconds in results.items()} == {
        "start-up, nothing compiled": 1, "start-up, compiled before": 1,
        "start-up, from a checkpoint": 1, "shutdown, from SIGTERM": 3,
        "shutdown, from the last step": 1,
    }  # fmt: skip


@pytest.mark.slow
def test_prediction(tmp_path):
    prediction.prepare(tmp_path, 12, name="mu/16", image_size=32)
    measured = prediction.measure(tmp_path, 10, "--features=out.npz")
    assert measured.files_per_second > 0 and 100 < measured.peak_mebibytes < 4000
    assert "| 10 files: files/s" in prediction.table({"--features=": {10: measured}})


@pytest.mark.parametrize("case", loading.SIZES["toy"], ids=lambda case: case.kind)
def test_loading(tmp_path, case):
    size = loading.write(case, tmp_path)
    assert 100_000 < size < 30_000_000
    # All of the eight devices that the tests have.
    assert set(loading.load(str(tmp_path), 8)) == {"bytes", "seconds"}


@pytest.mark.slow
def test_planning(tmp_path):
    small = planning.Point(width=128, depth=2, image_size=96, mesh=(1, 2, 2))
    found = planning.measure(small, str(tmp_path))
    # What is allocated for small arrays and threads is a part of so little.
    assert 0.5 < found.compiler / found.measured < 2 and found.formula > 0
    lines = list(planning.table({small: [found, found]}))
    assert "| 128 x 2 | 96 | 16 | none | 1 | 1x2x2 |" in lines[2] and "worst" in lines[-1]


def test_pod_reading():
    def of(pattern, hosts, storage, threads=4):
        return pod_reading.simulate(pattern, storage, hosts=hosts, threads=threads, windows=2)

    single, grouped, chunked, no_lanes = pod_reading.PATTERNS
    slow = pod_reading.Storage(0.05)
    # A thread waits for the latency and 110 kB at 100 MB/s.
    assert of(single, 16, slow).images_per_second == pytest.approx(4 / 0.0511, rel=0.03)
    assert of(grouped, 16, slow).images_per_second == pytest.approx(32 * 4 / 0.0511, rel=0.03)
    result = of(chunked, 16, slow)
    assert result.requests_per_image == pytest.approx(1 / 64, rel=0.1)
    assert result.images_per_second > 10 * of(single, 16, slow).images_per_second
    assert of(no_lanes, 16, slow).bytes_per_image > 10 * result.bytes_per_image
    few = pod_reading.Storage(0.05, requests=100)
    assert of(grouped, 16, few).images_per_second == pytest.approx(100, rel=0.1)


@pytest.mark.slow
def test_pod_reading_by_the_loader():
    storage, size = pod_reading.Storage(0.03), {"hosts": 16, "threads": 8}
    for pattern in pod_reading.PATTERNS[:3]:
        simulated = pod_reading.simulate(pattern, storage, **size).images_per_second
        rate = pod_reading.loader_rate(pattern, storage, images=3000, **size)
        # The upper bound is for what was read ahead when the timing began.
        assert 0.2 * simulated < rate < 1.8 * simulated


def test_shuffling():
    data = {"batch_size": 64, "num_examples": 6400, "num_classes": 100, "batches": 10}
    measured = [shuffling.classes_in_batches(of, **data)[0] for of in shuffling.orders([(16, 640)])]
    uniform, chunked, none = measured
    assert uniform == pytest.approx(1, abs=0.3) and none == pytest.approx(100)
    assert chunked == pytest.approx(1 + 100 / 40, rel=0.5)


@pytest.mark.slow
def test_shuffling_by_accuracy():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10, dtype=np.int32), 100)
    split = np.broadcast_to(labels[:, None, None, None] / 5 - 1, (1000, 28, 28, 1)), labels
    images = (split[0] + 0.01 * rng.standard_normal(split[0].shape)).astype(np.float32)
    trainer = shuffling.Trainer(shuffling.run_config(4.0), (images, labels), (images, labels))
    assert trainer.accuracy(shuffling.Order("global"), seed=0) > 0.2


def test_scaling_fits():
    few = dataclasses.replace(scaling_fits.SETTINGS[0], points=6)
    results = scaling_fits.coverage(few, ["profile"], draws=1)
    assert results.keys() == {"profile"} and results["profile"][1] > 1
    results = scaling_fits.speed(count=5, against=5)
    assert all(math.isfinite(value) for value in results.values())


@pytest.mark.slow
def test_scaling_optimistix():
    pytest.importorskip("optimistix")
    results = scaling_optimistix.compare(count=5)
    shares = [value for name, value in results.items() if name.endswith("larger loss")]
    assert shares == [0, 0]


def test_scaling_rules(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling_rules, "CANDIDATES", ("power", "power_floor"))
    x = np.logspace(0, 2, 10)
    rows = zip(x, 0.6 * x**-0.3 + 0.1, x < 13, strict=True)
    with (tmp_path / "table.csv").open("w") as file:
        table = csv.writer(file)
        table.writerow(["Model", "Task", "Seen Examples", "Loss", "Training"])
        table.writerows(["B", "cats", seen, loss, int(half)] for seen, loss, half in rows)
    lines = list(scaling_rules.report(str(tmp_path / "table.csv")))
    assert lines[0].startswith("1 extrapolations") and len(lines) > len([*scaling_rules.rules()])


def test_scaling_lack_of_fit():
    for setting in (scaling_lack_of_fit.CORRECT[0], scaling_lack_of_fit.WRONG[1]):
        share = scaling_lack_of_fit.refused(setting, tables=3)
        assert (share > 0) == (setting in scaling_lack_of_fit.WRONG)


def test_scaling_published(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling_published, "STARTS", {"alpha": (0.3, 0.5)})
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(7, 10, 40), 10 ** rng.uniform(9, 11.5, 40)
    losses = 1.8 + 480 / n**0.35 + 2100 / d**0.37
    with (tmp_path / "table.csv").open("w") as file:
        table = csv.writer(file)
        table.writerow(["Model Size", "Training FLOP", "loss"])
        table.writerows(zip(n, 6 * n * d, losses, strict=True))
    lines = list(scaling_published.chinchilla(str(tmp_path / "table.csv")))
    assert lines[0] == "chinchilla, 35 runs"
    assert len(lines) == 6 and all("E 1.8  A 480  B 2100" in line for line in lines[2:])


def test_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "train", train_on_one)
    assert 0 <= seeds.accuracy(small_config(), 0, tmp_path) <= 1
    assert (tmp_path / "seed0" / "checkpoints" / "12").is_dir()


@pytest.mark.slow
def test_startup(monkeypatch):
    sizes = {"width": 32, "depth": 1, "mlp_dim": 32, "num_heads": 2}
    small = [f"--config.model.{key}={value}" for key, value in sizes.items()]
    monkeypatch.setitem(startup.CONFIGS, "small", ("--config=quickstart", *small))
    measured, lines = startup.measure(1, ["small"], ["runs"], [ROOT])
    names = [
        "import jax",
        "imports of runs",
        *(f"first update of small, {s}" for s in ("cold", "warm")),
    ]
    assert list(measured) == names and startup.table(measured).count("\n") == 5
    assert "programs: 0 from the cache" in lines[0] and lines[2].endswith(" 0 not")


@pytest.fixture
def few_clothes(small_idx, tmp_path, monkeypatch):
    """Fashion-MNIST of 60 and 20 images, in the configs of `transfer`."""

    def config_with_folders() -> ConfigDict:
        c = base_config()
        c.data.data_dir, c.data.manual_dir = str(tmp_path / "tfds"), str(small_idx)
        return c

    monkeypatch.setattr(transfer, "base_config", config_with_folders)


@pytest.mark.parametrize("size", transfer.SIZES)
def test_the_configs_of_transfer(size):
    validate(freeze(transfer.pre_training(transfer.SIZES[size])))
    for way in transfer.LEARNING_RATES:
        made = transfer.transfer(
            way, transfer.SIZES[size], origin="runs/x", shots=2, seed=0, lr=0.1
        )
        validate(freeze(made))


@pytest.mark.slow
def test_transfer(tmp_path, few_clothes, monkeypatch, capsys):
    toy = transfer.SIZES["toy"]
    monkeypatch.setattr(transfer, "train", train_on_one)
    monkeypatch.setitem(transfer.LEARNING_RATES, "probe", (0.1,))
    transfer.study(tmp_path / "runs", toy, ["probe"], [2])
    assert "probe, 2 labels a class, lr 0.1: mean" in capsys.readouterr().out
