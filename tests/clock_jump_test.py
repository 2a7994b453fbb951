"""A wall clock that jumps back: TensorBoard's files stay in order."""

import time

from tests.telemetry_writers_test import tensorboard_events
from vit_jax.telemetry.tensorboard import EventFile

DAY = 86_400


def test_event_files_are_in_order_whatever_the_clock_says(tmp_path, monkeypatch):
    for first_step, clock in enumerate([1e9, 1e9, 1e9 - DAY, 0.0, 2e9, 1e9]):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        EventFile(tmp_path, first_step=first_step).close()
    names = sorted(path.name for path in tmp_path.iterdir())
    starts = [event.step for event in tensorboard_events(tmp_path) if event.HasField("session_log")]
    assert len(names) == 6 and starts == list(range(6))
