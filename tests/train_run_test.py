"""The train loop: the files of a run, its bits after kills and signals, and how it stops."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.small_run import STOCHASTIC, mesh_of, run, small_config, train_on_one
from vit_jax.checkpoints.load import load_run
from vit_jax.checkpoints.store import Store
from vit_jax.config import classification_eval
from vit_jax.data import pipeline
from vit_jax.errors import CheckpointError, ConfigError, ExitCode, NonFiniteError
from vit_jax.sweeps.listing import list_runs
from vit_jax.telemetry.jsonlines import read_jsonl

pytestmark = pytest.mark.medium


def arrays(workdir, step):
    """Every array of a checkpoint, by name."""
    with Store(workdir / "checkpoints") as store:
        tree = {
            item: store.restore(step, {item: store.shapes(step, item)})[0][item]
            for item in ("params", "opt_state", "ema")
        }
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_bits(a, b):
    assert a.keys() == b.keys() and len(a) > 20
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name


def assert_same_run(a, b):
    """Every array of the last checkpoint, to the bit, and every byte of metrics.jsonl."""
    assert_same_bits(arrays(a, 12), arrays(b, 12))
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_the_files_of_a_run(tmp_path):
    assert train_on_one(small_config(log__tensorboard=True), tmp_path, draw_curves=True) == 0
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert all({"train/loss", "train/lr", "train/grad_norm"} <= line.keys() for line in lines)
    assert [line["step"] for line in lines if "test/top1" in line] == [6, 12]
    assert lines[-1]["test/count"] == 50
    timing = read_jsonl(tmp_path / "timing.jsonl")
    assert [line["step"] for line in timing] == [2, 4, 6, 8, 10, 12]
    assert timing[-1]["speed/img_per_s"] > 0 and "speed/mfu" not in timing[-1]  # Unknown on a CPU.
    left = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "dataset.json", "curves.png", "checkpoints", "tb"} <= left
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["lr"] == 3e-3
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["12", "8"]


class Killed(BaseException):
    """A sudden end inside the process; `campaign_test` kills whole processes."""


def kill_at(monkeypatch, draw):
    """Raises `Killed` instead of drawing a batch when `draw` have been drawn.

    Steps 0 to 5 draw six, the evaluation at step 6 draws five (the last is the end), then come the
    steps 6 to 11.
    """
    original = pipeline.Batches.__next__
    drawn = []

    def draw_or_die(self):
        drawn.append(None)
        if len(drawn) > draw:
            raise Killed
        return original(self)

    monkeypatch.setattr(pipeline.Batches, "__next__", draw_or_die)


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [3, 8, 16])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, monkeypatch, stochastic_run, killed_at):
    with monkeypatch.context() as patch:
        kill_at(patch, killed_at)
        with pytest.raises(Killed):
            train_on_one(small_config(**STOCHASTIC), tmp_path / "killed")
    run(tmp_path / "killed", **STOCHASTIC)
    assert_same_run(stochastic_run, tmp_path / "killed")


@pytest.fixture
def resumed_run(tmp_path, stochastic_run):
    """The stochastic run, trained again from its last checkpoint but one: in a setup."""
    shutil.copytree(stochastic_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    run(tmp_path / "run", **STOCHASTIC)
    return tmp_path / "run"


def test_a_run_resumes_from_a_checkpoint_to_the_same_bits(resumed_run, stochastic_run):
    assert_same_run(stochastic_run, resumed_run)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_its_exit_code(
    tmp_path, monkeypatch, stochastic_run, number
):
    original = pipeline.Batches.__next__
    drawn = []

    def draw_and_signal(self):
        drawn.append(None)
        if len(drawn) == 6:
            os.kill(os.getpid(), number)
        return original(self)

    config = small_config(**STOCHASTIC)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Batches, "__next__", draw_and_signal)
        assert train_on_one(config, tmp_path / "a") == ExitCode.STOPPED
    with Store(tmp_path / "a" / "checkpoints") as store:
        stopped_at = store.steps()[-1]
    assert 5 <= stopped_at <= 8 and stopped_at not in (4, 8)
    assert train_on_one(config, tmp_path / "a") == 0
    assert_same_run(stochastic_run, tmp_path / "a")


def test_a_finished_run_is_not_changed(tmp_path, finished_run):
    lines = finished_run(tmp_path)
    before = arrays(tmp_path, 12)
    assert run(tmp_path) == lines
    assert_same_bits(arrays(tmp_path, 12), before)


def test_another_config_in_the_same_workdir_is_refused(tmp_path, finished_run):
    finished_run(tmp_path)
    with pytest.raises(ConfigError, match=r"log\.every_steps: 2 -> 3") as error:
        train_on_one(small_config(log__every_steps=3), tmp_path)
    assert "--allow_config_change" in str(error.value)
    assert train_on_one(small_config(log__every_steps=3), tmp_path, allow_config_change=True) == 0
    assert json.loads((tmp_path / "config.json").read_text())["log"]["every_steps"] == 3


def test_a_run_that_could_not_start_can_be_started_with_another_config(tmp_path):
    with pytest.raises(CheckpointError):
        train_on_one(small_config(init_from=str(tmp_path / "typo")), tmp_path / "run")
    run(tmp_path / "run")


def test_a_change_that_does_not_fit_changes_nothing(tmp_path, finished_run):
    finished_run(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    for changes, error in (
        ({"model__depth": 3}, CheckpointError),
        ({"total_steps": 4}, ConfigError),
    ):
        with pytest.raises(error):
            train_on_one(small_config(**changes), tmp_path, allow_config_change=True)
        assert (tmp_path / "config.json").read_bytes() == before
    run(tmp_path)


@pytest.mark.slow
def test_a_nonfinite_loss_stops_the_run_and_spares_the_checkpoint(tmp_path, monkeypatch):
    """After step 6 an infinite number in an image, as an update that explodes would make it."""
    original = pipeline.Batches.__next__
    drawn = []

    def draw_and_poison(self):
        drawn.append(None)
        batch = original(self)
        if len(drawn) > 14:  # The evaluation at step 6 draws five.
            with jax.transfer_guard("allow"):
                batch["image"] = batch["image"] * np.inf
        return batch

    monkeypatch.setattr(pipeline.Batches, "__next__", draw_and_poison)
    with pytest.raises(NonFiniteError) as error:
        train_on_one(small_config(), tmp_path)
    message = str(error.value)
    assert "Update" in message and str(tmp_path / "checkpoints" / "8") in message
    assert "digits" in message and "examples" in message
    with Store(tmp_path / "checkpoints") as store:
        assert store.steps() == [4, 8]
    assert all(np.isfinite(value).all() for value in arrays(tmp_path, 8).values())
    steps = [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")]
    assert steps == sorted(set(steps))
    (failed,) = list_runs(tmp_path)
    assert failed.state == "failed"
    assert failed.error == f"NonFiniteError: {message.splitlines()[0][:300]}"
    monkeypatch.undo()
    train_on_one(small_config(), tmp_path)  # Continues; the failure is over.
    (finished,) = list_runs(tmp_path)
    assert (finished.state, finished.error) == ("finished", "")
    assert not (tmp_path / "failure.json").exists()


@pytest.mark.slow
def test_resume_and_init_from_and_their_precedence(tmp_path):
    run(tmp_path / "first", total_steps=8)
    first = arrays(tmp_path / "first", 8)

    # resume: the whole state; the run goes on at step 8.
    lines = run(tmp_path / "resumed", resume=str(tmp_path / "first"))
    assert [line["step"] for line in lines] == [10, 12]

    # Not among the lines of another attempt there, which had not saved anything.
    (tmp_path / "tried").mkdir()
    (tmp_path / "tried" / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4}\n')
    assert run(tmp_path / "tried", resume=str(tmp_path / "first")) == lines

    # init_from: the parameters, but for the head, at step 0 (whose warm-up update changes nothing).
    started = {"init_from": str(tmp_path / "first" / "checkpoints" / "4"), "total_steps": 1}
    run(tmp_path / "started", **started, optim__schedule__warmup_steps=None,
        optim__schedule__warmup_percent=0.0, optim__lr=1e-30)  # fmt: skip
    fourth, got = arrays(tmp_path / "first", 4), arrays(tmp_path / "started", 1)
    body = "['params']['encoder']['blocks']['mlp']['fc1']['kernel']"
    head = "['params']['head']['kernel']"
    np.testing.assert_array_equal(got[body], fourth[body])
    assert np.abs(got[head]).max() < 1e-20 < np.abs(fourth[head]).max()

    # The work directory goes before both.
    lines = run(tmp_path / "resumed", resume=str(tmp_path / "first"))
    assert [line["step"] for line in lines] == [10, 12]
    assert not np.array_equal(first[body], fourth[body])


@pytest.mark.slow
def test_a_truncated_last_checkpoint_falls_back(tmp_path, monkeypatch, finished_run):
    with monkeypatch.context() as patch:
        kill_at(patch, 14)
        with pytest.raises(Killed):
            train_on_one(small_config(), tmp_path / "a")
    for path in (tmp_path / "a" / "checkpoints" / "8").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    run(tmp_path / "a")
    finished_run(tmp_path / "b")
    assert_same_bits(arrays(tmp_path / "a", 12), arrays(tmp_path / "b", 12))
    assert (tmp_path / "a" / "checkpoints.broken.8").is_dir()


@pytest.mark.usefixtures("plain_run")
def test_the_best_checkpoint_is_kept(tmp_path):
    """By the largest loss, which is the first one, so that the best is not the last as well."""
    changes = {"checkpoint__best_metric": "test/loss", "checkpoint__best_mode": "max"}
    evals = ConfigDict({"test": classification_eval(split="test[:50]", every_steps=4)})
    lines = run(tmp_path, **changes, evals=evals, checkpoint__keep_last=1)
    losses = {line["step"]: line["test/loss"] for line in lines if "test/loss" in line}
    best = max(losses, key=losses.get)
    assert best != 12
    with Store(tmp_path / "checkpoints") as store:
        assert store.steps() == [best, 12]


def test_a_trained_run_is_loaded_with_its_average(stochastic_run):
    loaded = load_run(stochastic_run, mesh=mesh_of())
    want = arrays(stochastic_run, 12)["['ema']['head']['kernel']"]
    np.testing.assert_array_equal(loaded.params["head"]["kernel"], want)
    assert loaded.step == 12 and loaded.dataset["class_names"] == list("0123456789")


@pytest.mark.slow
def test_the_shortest_run_ends_well(tmp_path):
    warmup = {"optim__schedule__warmup_steps": None, "optim__schedule__warmup_percent": 0.1}
    changes = {"total_steps": 1, "evals": ConfigDict(), "log__every_steps": 50, **warmup}
    assert train_on_one(small_config(**changes), tmp_path, draw_curves=True) == 0
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == [1]
    assert (tmp_path / "curves.png").stat().st_size > 1000
