"""A wall clock that jumps back: durations, checkpoints and TensorBoard do not care."""

import time

import pytest

from tests.small_run import run, small_config, train_on_one
from tests.telemetry_writers_test import tensorboard_events
from tests.train_run_test import Killed, arrays, assert_same_bits, kill_at
from vit_jax.checkpoints.load import locate
from vit_jax.checkpoints.store import Store
from vit_jax.telemetry import read_jsonl
from vit_jax.telemetry.tensorboard import EventFile

DAY = 86_400


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
