"""The clock against time that the test makes up; peaks; durations; the profiler's trace."""

import io
import json
import re
import sys

import jax
import jax.numpy as jnp
import pytest

from vit_jax.telemetry import Clock, Progress, StepProfiler, format_duration, peak_flops
from vit_jax.telemetry.progress import format_count


class FakeTime:
    """A clock that moves when it is told to."""

    def __init__(self, seconds: float = 1000.0):
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


def train(clock, now, *, steps, batch=32, data=0.25, step=0.75):
    for _ in range(steps):
        with clock.span("data"):
            now.seconds += data
        with clock.span("step"):
            now.seconds += step
        clock.count(batch)


def test_spans_rates_and_goodput():
    now = FakeTime()
    clock = Clock(num_devices=4, flops_per_example=1e9, peak_flops=1e10, now=now)
    now.seconds += 2.0  # In no span.
    with clock.span("compile"):
        now.seconds += 8.0
    train(clock, now, steps=10)
    assert clock.window() == pytest.approx(
        {
            "speed/img_per_s": 32.0,
            "speed/tflop_per_s": 0.032,
            "speed/mfu": 32e9 / 4e10,
            "time/data_wait": 0.25,
            "time/goodput": 7.5 / 20,
            "time/device_hours": 4 * 20 / 3600,
            "time/wall_s": 20.0,
        }
    )
    with clock.span("eval"):
        now.seconds += 5.0
    train(clock, now, steps=10, step=1.75)
    window, summary = clock.window(), clock.summary()
    assert window["speed/img_per_s"] == pytest.approx(16.0)  # The last ten steps, not the eval.
    assert summary["speed/img_per_s"] == pytest.approx(640 / 30)
    spans = {"compile": 8, "data": 5, "step": 25, "eval": 5, "other": 2, "init": 0, "save": 0}
    assert {name: summary[f"time/{name}_s"] for name in spans} == pytest.approx(spans)
    assert summary["time/wall_s"] == pytest.approx(sum(spans.values()))


def test_inner_span_is_not_counted_in_the_outer_and_a_raise_closes_both():
    now = FakeTime()
    clock = Clock(num_devices=1, now=now)
    with pytest.raises(RuntimeError), clock.span("eval"):
        now.seconds += 1.0
        with clock.span("compile"):
            now.seconds += 2.0
            raise RuntimeError
    now.seconds += 4.0
    summary = clock.summary()
    assert (summary["time/eval_s"], summary["time/compile_s"], summary["time/other_s"]) == (1, 2, 4)


def test_a_clock_that_jumps_back_loses_only_the_jump():
    now = FakeTime()
    clock = Clock(num_devices=1, now=now)
    with clock.span("step"):
        now.seconds += 1.0
    now.seconds -= 3600.0
    with clock.span("step"):
        now.seconds += 2.0
    assert clock.summary()["time/step_s"] == pytest.approx(3.0)
    assert clock.summary()["time/wall_s"] == pytest.approx(3.0)


@pytest.mark.medium
def test_totals_continue_after_resume_on_other_devices():
    now = FakeTime()
    first = Clock(num_devices=8, now=now)
    train(first, now, steps=3600)
    state = json.loads(json.dumps(first.state_dict()))
    now = FakeTime(5.0)
    second = Clock(num_devices=2, now=now)
    with second.span("init"):
        now.seconds += 100.0
    second.load_state_dict(state)
    train(second, now, steps=3500, batch=8)
    summary = second.summary()
    assert second.state_dict()["examples"] == 3600 * 32 + 3500 * 8
    assert summary["time/device_hours"] == pytest.approx(8 * 1.0 + 2 * 1.0)
    assert summary["time/wall_s"] == pytest.approx(7200.0)
    assert summary["speed/img_per_s"] == pytest.approx(8.0)  # This process's.
    assert summary["time/goodput"] == pytest.approx(0.75 * 7100 / 7200)
    own = second.process_seconds()
    assert (own["init"], own["step"], sum(own.values())) == pytest.approx((100, 2625, 3600))


def test_a_clock_of_the_last_release_is_restored():
    state = {"seconds": {"step": 5.0}, "core_seconds": 7200.0, "examples": 9}
    clock = Clock(num_devices=2, now=FakeTime())
    clock.load_state_dict(state)
    assert clock.summary()["time/device_hours"] == 2.0


def test_unknown_rates_are_omitted():
    now = FakeTime()
    clock = Clock(num_devices=1, flops_per_example=1.0, peak_flops=None, now=now)
    assert "speed/img_per_s" not in clock.window()
    train(clock, now, steps=1)
    assert "speed/mfu" not in clock.window()
    assert "speed/img_per_s" not in clock.window()  # Nothing since.
    with pytest.raises(ValueError, match='Did you mean "data"'), clock.span("dat"):
        pass


def test_peaks():
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("TPU v5 lite") == peak_flops("TPU v5e") == 197e12
    assert peak_flops("TPU v5") == peak_flops("TPU v5p") == 459e12
    assert peak_flops("TPU v6 lite") == 918e12
    assert peak_flops("NVIDIA H200 MIG 1g.18gb") is None
    assert peak_flops(jax.devices()[0].device_kind) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0s"),
        (59.6, "1m00s"),
        (187, "3m07s"),
        (7500, "2h05m"),
        (3 * 86400 + 4 * 3600, "3d04h"),
    ],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_plurals():
    texts = [format_count(count, noun) for count in (0, 1, 2000) for noun in ("step", "class")]
    assert texts == ["0 steps", "0 classes", "1 step", "1 class", "2,000 steps", "2,000 classes"]


def test_plain_lines_off_a_terminal():
    now, stream = FakeTime(), io.StringIO()
    progress = Progress(total_steps=1000, steps_per_epoch=250, stream=stream, now=now)
    with progress:
        for step in range(1, 101):
            now.seconds += 60.0 if step == 1 else 0.5  # The first step compiles.
            progress.update(step)
            if step % 50 == 0:
                progress.log(step, loss=2.0 / step, lr=1e-3, images_per_second=1234.5)
        progress.note("saved")
        with progress.compiling():
            now.seconds += 6.25
        values = {"top1": 0.5, "loss": 0.25, "ece": 0.1, "count": 1}
        progress.evaluation("test", values, seconds=1.5)
    assert stream.getvalue().splitlines() == [
        "step 50/1,000 | ETA 7m55s | epoch 0.20 | loss 0.0400 | lr 0.001 | 1,234 img/s",
        "step 100/1,000 | ETA 7m30s | epoch 0.40 | loss 0.0200 | lr 0.001 | 1,234 img/s",
        "saved",
        "step 100/1,000 | compiling",
        "step 100/1,000 | compiled in 6.2 s",
        "step 100/1,000 | test: top1 50.00% | loss 0.2500 | 1 example | 1.5 s",
    ]


class Terminal(io.StringIO):
    """A stream that a terminal shows."""

    def isatty(self):
        return True


def test_a_bar_on_a_terminal():
    stream = Terminal()
    with Progress(total_steps=100, start_step=40, steps_per_epoch=10, stream=stream) as progress:
        progress.log(50, loss=0.5, lr=0.1, images_per_second=None)
        progress.note("a message of its own")
        with progress.compiling():
            assert stream.getvalue().endswith("step 50/100 | compiling")
        progress.update(100)
    drawn = stream.getvalue()
    assert "\r" in drawn
    assert "a message of its own\n" in drawn
    assert "100%" in drawn
    assert " | epoch 10.00 | loss 0.5000 | lr 0.1" in drawn


def test_what_is_said_after_the_bar_and_during_it_is_not_drawn_over(monkeypatch):
    """Standard error is the same terminal: a warning goes above the bar, the summary below it."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(total_steps=2, steps_per_epoch=1, stream=stream) as progress:
        progress.update(1)
        print("a warning", file=sys.stderr)
        assert re.search(r"\x1b\[2Ka warning\n.*step 0/2", stream.getvalue())
        progress.update(2)
        progress.close()
        end = len(stream.getvalue())
        progress.note("Done")
    assert stream.getvalue()[end:] == "Done\n"
    assert sys.stderr is stream and "step 2/2" in stream.getvalue()[:end].splitlines()[-2]


def test_other_processes_show_nothing():
    stream = io.StringIO()
    with Progress(total_steps=9, steps_per_epoch=3, stream=stream, is_main=False) as progress:
        progress.log(1, loss=1.0, lr=1.0, images_per_second=1.0)
        progress.note("hello")
    assert stream.getvalue() == ""


class TraceCalls:
    """Stands in for jax.profiler's start and stop."""

    def __init__(self, monkeypatch):
        self.calls = []
        monkeypatch.setattr(jax.profiler, "start_trace", lambda path: self.calls.append("start"))
        monkeypatch.setattr(jax.profiler, "stop_trace", lambda: self.calls.append("stop"))


def profiled_loop(workdir, calls, *, steps, start=0, total=8, fail_at=None):
    with StepProfiler(workdir, steps=steps) as profiler:
        for t in range(start, total):
            with profiler.step(t):
                if t == fail_at:
                    raise RuntimeError
                calls.append(t)
            profiler.after(t, jnp.zeros(()))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"steps": (2, 3)}, [0, 1, "start", 2, 3, "stop", 4, 5, 6, 7]),
        ({"steps": ()}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"steps": (2, 4), "start": 3, "total": 6}, ["start", 3, 4, "stop", 5]),  # Resumed inside.
        ({"steps": (6, 99)}, [0, 1, 2, 3, 4, 5, "start", 6, 7, "stop"]),  # Ends with the run.
        ({"steps": (1, 2), "start": 5}, [5, 6, 7]),
    ],
)
def test_trace_starts_and_stops_at_its_steps(tmp_path, monkeypatch, arguments, expected):
    trace = TraceCalls(monkeypatch)
    profiled_loop(tmp_path, trace.calls, **arguments)
    assert trace.calls == expected


def test_trace_is_stopped_when_the_loop_raises(tmp_path, monkeypatch):
    trace = TraceCalls(monkeypatch)
    with pytest.raises(RuntimeError):
        profiled_loop(tmp_path, trace.calls, steps=(1, 5), fail_at=2)
    assert trace.calls == [0, "start", 1, "stop"]


@pytest.mark.slow
def test_a_real_trace_is_written(tmp_path):
    profiled_loop(tmp_path, [], steps=(1, 2), total=4)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
