"""Work directories whose disk is full, or whose files were deleted or replaced during a run.

The full disk is real: a small file system, mounted in a namespace of the test's own.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT
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
    """An undisturbed run."""
    workdir = tmp_path_factory.mktemp("whole")
    finished_run(workdir)
    return workdir


def assert_same_run(workdir, whole):
    assert (workdir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert_same_bits(arrays(workdir, 12), arrays(whole, 12))


# ------------------------------------------------------------- deleted and replaced files of a run


def delete(path):
    path.unlink()


def replace(path):
    path.rename(path.with_suffix(".old"))
    path.write_bytes(path.with_suffix(".old").read_bytes())


@pytest.mark.parametrize(
    ("name", "damage", "verb"),
    [("metrics.jsonl", replace, "replaced"), ("timing.jsonl", delete, "deleted")],
)
def test_a_run_ends_when_a_file_of_lines_was_deleted(tmp_path, monkeypatch, name, damage, verb):
    with monkeypatch.context() as patch:
        at_draw(patch, 7, lambda: damage(tmp_path / name))
        with pytest.raises(DataError, match=rf"{name} was {verb}.*put back what is missing"):
            train_on_one(small_config(), tmp_path)
    assert locate(tmp_path).step == 4  # No checkpoint is ahead of its lines.


def test_a_resumed_run_reports_lost_lines(copy, caplog, whole):
    shutil.rmtree(copy / "checkpoints" / "12")
    delete(copy / "metrics.jsonl")
    run(copy)
    assert "ends at step None; it went to step 8" in caplog.text
    assert [line["step"] for line in read_jsonl(copy / "metrics.jsonl")] == [10, 12]
    assert_same_bits(arrays(copy, 12), arrays(whole, 12))


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


# -------------------------------------------------------------------------------------- full disks


def test_a_full_disk_is_named():
    file = open_growing("/dev/full")
    with pytest.raises(DataError, match=r"/dev/full cannot be written: No space left on device"):
        file.append(b"line\n")


def test_the_first_error_is_the_one_raised(tmp_path, caplog):
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
def test_a_run_goes_on_exactly_after_its_disk_was_full(tmp_path, can_mount):
    """The checkpoints are on another disk; that of the lines is full after the first ones."""
    flags = "--config.log.tensorboard=true --config.total_steps=40"
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
    """A work directory that a test may damage."""
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
