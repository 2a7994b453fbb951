"""Work directories as they should not be: full, read-only, gone, replaced, or made up by somebody.

The faults are real: small file systems are mounted in a namespace of the test's own.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, campaign, slow
from tests.small_run import run, small_config, train_on_one
from tests.train_run_test import arrays, assert_same_bits
from vit_jax import evaluate as evaluate_module
from vit_jax.checkpoints.load import locate
from vit_jax.data import pipeline
from vit_jax.errors import DataError
from vit_jax.evaluate import evaluate
from vit_jax.rundir import workdir as workdirs
from vit_jax.telemetry import MetricWriter, read_jsonl
from vit_jax.telemetry.growing import open_growing

# Orbax leaves tasks of a save that failed to an event loop that is closed.
pytestmark = [
    pytest.mark.medium,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("leaves_nothing"),
]


def at_draw(monkeypatch, draw, act):
    """Calls `act` when `draw` batches have been drawn: 4 before the save of step 4."""
    original = pipeline.Batches.__next__
    drawn = []

    def act_and_draw(self):
        drawn.append(None)
        if len(drawn) == draw:
            act()
        return original(self)

    monkeypatch.setattr(pipeline.Batches, "__next__", act_and_draw)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, finished_run):
    """A run that nothing has disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    finished_run(workdir)
    return workdir


def assert_same_run(workdir, whole):
    assert (workdir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert_same_bits(arrays(workdir, 12), arrays(whole, 12))


# ---------------------------------------------------------------- a file under the run is no more


def delete(path):
    path.unlink()


def replace(path):
    path.rename(path.with_suffix(".old"))
    path.write_bytes(path.with_suffix(".old").read_bytes())


@pytest.mark.parametrize(
    ("name", "harm", "word"),
    [
        ("metrics.jsonl", replace, "replaced"),
        ("timing.jsonl", delete, "deleted"),
        slow("metrics.jsonl", delete, "deleted"),
        slow("timing.jsonl", replace, "replaced"),
    ],
)
def test_lines_are_not_written_to_a_file_that_is_not_there(tmp_path, monkeypatch, name, harm, word):
    with monkeypatch.context() as patch:
        at_draw(patch, 7, lambda: harm(tmp_path / name))
        with pytest.raises(DataError, match=rf"{name} was {word}.*put back what is missing"):
            train_on_one(small_config(), tmp_path)
    assert locate(tmp_path).step == 4  # Nothing was saved whose lines are lost.


def test_lines_that_were_lost_are_missed(copy, caplog, whole):
    shutil.rmtree(copy / "checkpoints" / "12")
    delete(copy / "metrics.jsonl")
    run(copy)
    assert "ends at step None; it went to step 8" in caplog.text
    assert [line["step"] for line in read_jsonl(copy / "metrics.jsonl")] == [10, 12]
    assert_same_bits(arrays(copy, 12), arrays(whole, 12))


@pytest.mark.parametrize("resumed", [False, slow(True)])
def test_a_work_directory_that_is_moved_away_ends_the_run(tmp_path, monkeypatch, whole, resumed):
    moved = tmp_path / "moved"

    def move():
        while not (tmp_path / "run" / "checkpoints" / "4").exists():  # A save is under way.
            time.sleep(0.01)
        (tmp_path / "run").rename(moved)

    with monkeypatch.context() as patch:
        at_draw(patch, 7, move)
        with pytest.raises(DataError, match=r"metrics.jsonl was deleted"):
            train_on_one(small_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists() and locate(moved).step == 4
    if resumed:
        moved.rename(tmp_path / "run")
        run(tmp_path / "run")
        assert_same_run(tmp_path / "run", whole)


def test_a_line_is_not_written_through_a_link_to_elsewhere(tmp_path):
    elsewhere = tmp_path / "precious"
    elsewhere.write_text("mine")
    (tmp_path / "run").mkdir()
    for name in ("metrics.jsonl", "config.json"):
        (tmp_path / "run" / name).symlink_to(elsewhere)
    with pytest.raises(DataError, match=r"metrics.jsonl"):
        open_growing(tmp_path / "run" / "metrics.jsonl")
    workdirs.write_json(tmp_path / "run" / "config.json", {"replaced": "not followed"})
    assert elsewhere.read_text() == "mine"


# ----------------------------------------------------------------------------- the disk says no


def test_a_full_disk_is_said():
    file = open_growing("/dev/full")
    with pytest.raises(DataError, match=r"/dev/full cannot be written: No space left on device"):
        file.append(b"line\n")


def test_what_failed_first_is_what_the_user_hears(tmp_path, caplog):
    with (
        pytest.raises(KeyError, match="first"),
        MetricWriter(tmp_path, resume_step=None, tensorboard=True, wandb_project="", config={}),
    ):
        (tmp_path / "metrics.jsonl").unlink()
        raise KeyError("first")
    assert "metrics.jsonl was deleted" in caplog.text


def in_namespace(script):
    """Runs a shell script that may mount file systems, and whose mounts end with it."""
    command = ["unshare", "--mount", "--propagation=private", "sh", "-euc", script]
    xla_flags = "--xla_backend_optimization_level=0"
    env = {**os.environ, "XLA_FLAGS": xla_flags, "PYTHON": sys.executable}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def can_mount():
    if not shutil.which("unshare") or in_namespace("mount -t tmpfs none /mnt").returncode:
        pytest.skip("needs unshare and the right to mount")


TRAIN = (
    "$PYTHON -m vit_jax.train --config=configs/quickstart.py --config.total_steps=12 "
    "--config.model.depth=1 --config.checkpoint.every_steps=4 --config.log.every_steps=1 "
)


@pytest.mark.slow
def test_a_read_only_work_directory_is_said(tmp_path, can_mount):
    done = in_namespace(f"{TRAIN} --workdir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    read_only = f"mount --bind {tmp_path} {tmp_path}; mount -o remount,ro,bind {tmp_path}; "
    new = in_namespace(read_only + f"{TRAIN} --workdir={tmp_path}/new")
    assert new.returncode == 2 and "Traceback" not in new.stderr
    assert "cannot be made: Read-only file system." in new.stderr
    again = in_namespace(read_only + f"{TRAIN} --config.total_steps=12 --workdir={tmp_path}/run")
    assert again.returncode == 2 and "Traceback" not in again.stderr
    assert "run cannot be written: Read-only file system." in again.stderr
    evaluated = in_namespace(read_only + f"$PYTHON -m vit_jax.evaluate --workdir={tmp_path}/run")
    assert evaluated.returncode == 2 and "Traceback" not in evaluated.stderr
    assert "run cannot be written: Read-only file system." in evaluated.stderr
    predicted = in_namespace(
        read_only
        + f"$PYTHON -m vit_jax.predict --checkpoint={tmp_path}/run {tmp_path}/run/curves.png"
    )
    assert predicted.returncode == 0 and "Traceback" not in predicted.stderr
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("tensorboard", [campaign(False), True])
def test_a_disk_that_fills_up_under_the_lines_is_said_and_the_run_goes_on(
    tmp_path, can_mount, tensorboard
):
    """The checkpoints are on another disk; the lines' one is full after the first ones."""
    flags = f"--config.log.tensorboard={tensorboard} --config.total_steps=40"
    done = in_namespace(f"{TRAIN} {flags} --workdir={tmp_path}/whole")
    assert done.returncode == 0, done.stderr
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    small = (
        f"mount --bind {run_dir}/checkpoints /mnt; mount -t tmpfs -o size=32k none {run_dir}; "
        f"mkdir {run_dir}/checkpoints; mount --bind /mnt {run_dir}/checkpoints; "
    )
    full = in_namespace(
        small + f"set +e; {TRAIN} {flags} --workdir={run_dir}; echo code $?; "
        f"mount -o remount,size=10m {run_dir}; {TRAIN} {flags} --workdir={run_dir}; echo code $?; "
        f"cp {run_dir}/metrics.jsonl {tmp_path}/after.jsonl"
    )
    assert "code 2" in full.stdout and full.stdout.rstrip().endswith("code 0"), full.stderr
    assert (
        "cannot be written: No space left on device. What was saved before is kept" in full.stderr
    )
    assert "Traceback" not in full.stderr
    assert (tmp_path / "after.jsonl").read_bytes() == (
        tmp_path / "whole" / "metrics.jsonl"
    ).read_bytes()


@pytest.fixture
def copy(whole, tmp_path):
    """A work directory to make a mess of."""
    return pathlib.Path(shutil.copytree(whole, tmp_path / "run"))


# ------------------------------------------------------------------------------- what is evaluated


@pytest.mark.slow
def test_an_older_checkpoint_does_not_overwrite_the_results_of_the_newest(copy, monkeypatch):
    for drawing in ("confusion", "_draw_pictures"):
        monkeypatch.setattr(evaluate_module, drawing, lambda *arguments: None)
    evaluate(copy)
    newest = (copy / "evaluation.json").read_bytes()
    for path, split, folder in (
        (copy / "checkpoints" / "8", "", "evaluation-step-8"),
        (copy / "checkpoints" / "8", "test[50%:]", "evaluation-test_50pct_end-step-8"),
        (copy / "checkpoints" / "12", "test[:50%]", "evaluation-test_50pct"),
        (copy, "test[9:20]", "evaluation-test_9_20"),
    ):
        report = evaluate(path, split=split)
        written = json.loads((copy / folder / "evaluation.json").read_text())
        assert written["count"] == report.count
        assert written["step"] == (8 if "8" in folder else 12)
    assert (copy / "evaluation.json").read_bytes() == newest
    evaluate(copy / "checkpoints" / "12")  # The newest, by its name.
    assert (copy / "evaluation.json").read_bytes() == newest
