"""A wall clock that jumps back: durations, checkpoints and TensorBoard do not care."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.small_run import run, small_config, train_on_one
from tests.telemetry_writers_test import tensorboard_events
from tests.train_run_test import Killed, arrays, assert_same_bits, kill_at
from vit_jax.checkpoints.load import locate
from vit_jax.checkpoints.store import Store
from vit_jax.telemetry import MetricWriter, read_jsonl
from vit_jax.telemetry.tensorboard import EventFile

DAY = 86_400
LIBFAKETIME = pathlib.Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


def set_back(patch, seconds):
    """From now on, the wall clock of this process is `seconds` slow."""
    now, now_ns = time.time, time.time_ns
    patch.setattr(time, "time", lambda: now() - seconds)
    patch.setattr(time, "time_ns", lambda: now_ns() - seconds * 10**9)


def assert_durations_make_sense(workdir):
    lines = read_jsonl(workdir / "timing.jsonl")
    assert lines
    for before, line in zip([{}, *lines], lines, strict=False):
        assert all(value >= 0 for value in line.values()), line
        assert line["time/wall_s"] >= before.get("time/wall_s", 0)
        assert line["time/wall_s"] < 600
        assert line["time/goodput"] <= 1


@pytest.mark.slow
def test_a_run_whose_clock_jumps_back_a_day(tmp_path, monkeypatch):
    changes = {"log__tensorboard": True, "checkpoint__keep_last": 3}
    run(tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        kill_at(patch, 9)  # After the save of step 4, before that of step 8.
        original = Store.save

        def save_and_jump(self, step, *args, **kwargs):
            original(self, step, *args, **kwargs)
            set_back(patch, DAY)

        patch.setattr(Store, "save", save_and_jump)
        with pytest.raises(Killed):
            train_on_one(small_config(**changes), tmp_path / "run")
    with monkeypatch.context() as patch:
        set_back(patch, 2 * DAY)  # And once more, between two processes; then it is put right.

        def save_and_mend(self, step, *args, **kwargs):
            original(self, step, *args, **kwargs)
            self.finish()  # Orbax's patience is measured by the wall clock.
            set_back(patch, -2 * DAY)

        patch.setattr(Store, "save", save_and_mend)
        run(tmp_path / "run", **changes)
    for name in ("whole", "run"):
        assert_durations_make_sense(tmp_path / name)
        assert locate(tmp_path / name).step == 12
    assert_same_bits(arrays(tmp_path / "run", 12), arrays(tmp_path / "whole", 12))
    files = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "run")]
    assert files[0] == files[1]
    # What TensorBoard shows: it reads files by name, and a start hides what was before.
    shown = {}
    for event in tensorboard_events(tmp_path / "run" / "tb"):
        if event.HasField("session_log"):
            shown = {step: value for step, value in shown.items() if step < event.step}
        for value in event.summary.value:
            if value.tag == "train/loss":
                assert event.step not in shown
                shown[event.step] = value.simple_value
    assert list(shown) == [2, 4, 6, 8, 10, 12]


def test_event_files_are_in_order_whatever_the_clock_says(tmp_path, monkeypatch):
    for first_step, clock in enumerate([1e9, 1e9, 1e9 - DAY, 0.0, 2e9, 1e9]):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        EventFile(tmp_path, first_step=first_step).close()
    names = sorted(path.name for path in tmp_path.iterdir())
    starts = [event.step for event in tensorboard_events(tmp_path) if event.HasField("session_log")]
    assert len(names) == 6 and starts == list(range(6))


def test_a_line_is_written_whatever_the_clock_says(tmp_path, monkeypatch):
    with MetricWriter(
        tmp_path, resume_step=None, tensorboard=True, wandb_project="", config={}
    ) as writer:
        for step, clock in enumerate([1e9, 5.0, -1.0]):
            monkeypatch.setattr(time, "time", lambda clock=clock: clock)
            writer.write(step, {"x": 1.0})
            writer.commit(step)
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.skipif(not LIBFAKETIME.exists(), reason="needs libfaketime")
def test_a_real_process_whose_clock_jumps_back_goes_on_after_a_kill(tmp_path):
    def start(name, *, offset):
        command = [
            sys.executable, "-m", "vit_jax.train", "--config=configs/quickstart.py",
            "--config.total_steps=20", "--config.checkpoint.every_steps=5",
            "--config.model.depth=1", "--config.log.every_steps=1", f"--workdir={tmp_path / name}",
        ]  # fmt: skip
        env = {**os.environ, "XLA_FLAGS": ""}
        if offset:
            (tmp_path / "clock").write_text(offset)
            env |= {
                "LD_PRELOAD": str(LIBFAKETIME), "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_TIMESTAMP_FILE": str(tmp_path / "clock"),
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }  # fmt: skip
        return subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def wait_for(name, step):
        while not (tmp_path / name / "checkpoints" / str(step)).exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)

    with start("whole", offset="") as process:
        assert process.wait() == 0, process.stderr.read()
    with start("run", offset="+0") as process:
        wait_for("run", 5)
        (tmp_path / "clock").write_text("-1d")
        wait_for("run", 15)
        process.kill()
    with start("run", offset="-2d") as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    files = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "run")]
    assert files[0] == files[1]
    assert_durations_make_sense(tmp_path / "run")
    # The clock did jump: the last line's event was written before the first's.
    times = [event.wall_time for event in tensorboard_events(tmp_path / "run" / "tb")]
    assert times[-1] < times[0] - DAY
    steps = [event.step for event in tensorboard_events(tmp_path / "run" / "tb")]
    assert steps[-1] == 20
