"""The local launcher with scripted runs: the outcome of each, however it ends."""

import os
import signal
import threading
import time

import pytest
from etils import epath

from tests import forked
from tests.sweep_runs import actors
from vit_jax.rundir.lock import lock
from vit_jax.sweeps import local
from vit_jax.sweeps import record as records
from vit_jax.sweeps.attempt import MAX_DEATHS

pytestmark = pytest.mark.medium

FINISH = "reach(10)"


@pytest.fixture(scope="module", autouse=True)
def forks():
    forked.ready()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(local, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(local, "_SCHEDULE_SECONDS", 0.05)


def launch(runs, max_parallel=2):
    seen = []
    whole = local.run_local(runs, max_parallel=max_parallel, changed=seen.append)
    assert whole
    return {run.name: records.read(run.workdir) for run in runs}


def test_a_failure_is_recorded_and_stops_no_other(tmp_path):
    message = "error: first\nerror: data.shots is 7.\nSecond line."
    acts = {
        "first": FINISH,
        "says": f"print({message!r}, file=sys.stderr)\nsys.exit(2)",
        "raises": "raise ValueError('in the middle')",
        "mute": "sys.exit(9)",
        "last": FINISH,
    }
    runs = actors(tmp_path, acts)
    outcomes = launch(runs)
    assert {name: record.status for name, record in outcomes.items()} == {
        "first": "finished",
        "says": "failed",
        "raises": "failed",
        "mute": "failed",
        "last": "finished",
    }
    assert outcomes["says"].error == "data.shots is 7.\nSecond line."
    assert outcomes["raises"].error == "ValueError: in the middle"
    assert "9" in outcomes["mute"].error
    assert all(record.attempts == 1 for record in outcomes.values())
    assert outcomes["first"].values == {"act": FINISH}


def test_finished_runs_are_skipped_and_failed_ones_tried_again(tmp_path):
    fails_once = "if len((workdir / 'notes').read_text().split()) == 1: sys.exit(2)\nreach(10)"
    runs = actors(tmp_path, {"good": FINISH, "bad": fails_once})
    assert launch(runs)["bad"].status == "failed"
    outcomes = launch(runs)
    assert {record.status for record in outcomes.values()} == {"finished"}
    assert (outcomes["good"].attempts, outcomes["bad"].attempts) == (1, 2)
    assert outcomes["bad"].error == ""


def test_a_run_that_finished_unrecorded_is_not_run_again(tmp_path):
    """The sweep was killed between the run's end and the record's writing."""
    (run,) = actors(tmp_path, {"run": FINISH})
    launch([run])
    records.change(run.workdir, status="running")
    assert launch([run])["run"].status == "finished"
    assert run.notes == ["begin"]


@pytest.mark.parametrize("code", [75, 76])
def test_a_stopped_or_lost_run_is_started_again(tmp_path, code):
    act = f"if reached() < 0:\n    reach(4)\n    sys.exit({code})\nreach(10)"
    (run,) = actors(tmp_path, {"run": act})
    record = launch([run])["run"]
    assert (record.status, record.attempts) == ("finished", 2)


def test_a_run_that_is_killed_repeatedly_fails(tmp_path):
    (run,) = actors(tmp_path, {"run": "os.kill(os.getpid(), signal.SIGKILL)"})
    record = launch([run])["run"]
    assert (record.status, record.attempts) == ("failed", MAX_DEATHS)
    assert "SIGKILL" in record.error


def test_a_run_that_makes_progress_is_always_restarted(tmp_path):
    act = (
        "step = max(reached(), 0) + 1\nreach(step)\n"
        "if step < 10: os.kill(os.getpid(), signal.SIGKILL)"
    )
    (run,) = actors(tmp_path, {"run": act})
    record = launch([run])["run"]
    assert (record.status, record.attempts) == ("finished", 10)


def test_a_branch_waits_for_its_state_not_for_the_end(tmp_path):
    trunk = (
        "reach(4)\n"
        "while not (workdir.parent / 'branch' / 'notes').exists(): time.sleep(.01)\n"
        "reach(10)"
    )
    branches = {"branch": ("trunk", 4)}
    runs = actors(tmp_path, {"trunk": trunk, "branch": FINISH}, branches)
    outcomes = launch(runs)  # Or it would wait for ever.
    assert {record.status for record in outcomes.values()} == {"finished"}


def test_runs_that_depend_on_a_failed_one_are_blocked(tmp_path):
    runs = actors(
        tmp_path,
        {"trunk": "reach(3)\nsys.exit(2)", "early": FINISH, "late": FINISH, "later": FINISH},
        {"early": ("trunk", 3), "late": ("trunk", 5), "later": ("late", 7)},
    )
    outcomes = launch(runs)
    assert {name: record.status for name, record in outcomes.items()} == {
        "trunk": "failed",
        "early": "finished",  # Its state is there.
        "late": "blocked",
        "later": "blocked",
    }
    assert "trunk" in outcomes["late"].error and "late" in outcomes["later"].error
    assert runs[2].notes == []


def test_a_trunk_that_is_left_out(tmp_path):
    runs = actors(tmp_path, {"branch": FINISH}, {"branch": ("trunk", 5)})
    record = launch(runs)["branch"]
    assert record.status == "blocked" and "--only" in record.error


def test_a_run_that_is_still_saving_is_waited_for(tmp_path):
    """What a killed sweep left behind holds the run's lock for a while."""
    (run,) = actors(tmp_path, {"run": FINISH})
    run.workdir.mkdir()
    held = threading.Event()

    def hold():
        with lock(epath.Path(run.workdir)):
            held.set()
            time.sleep(0.5)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    begun = time.monotonic()
    assert launch([run])["run"].status == "finished"
    assert time.monotonic() > begun + 0.4
    holder.join()
    assert run.notes == ["begin"]


# ---------------------------------------------------------------------------------- the machine


def test_shares_of_the_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert [share.cores for share in local.slots(0)] == [frozenset(range(8))]
    assert [sorted(share.cores) for share in local.slots(3)] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert [sorted(share.cores) for share in local.slots(9)][-2:] == [[7], [0]]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert [share.gpus for share in local.slots(0)] == [("4",), ("5",)]
    assert [share.gpus for share in local.slots(1)] == [("4", "5")]
    packed = local.slots(4)
    assert [share.gpus for share in packed] == [("4",), ("5",), ("4",), ("5",)]
    assert packed[0].environment == {
        "CUDA_VISIBLE_DEVICES": "4",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.450",
    }
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert local.slots(1)[0].gpus == ()


def test_a_process_keeps_to_its_cores(tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    act = "note(','.join(map(str, sorted(os.sched_getaffinity(0)))))\ntime.sleep(.2)\nreach(10)"
    runs = actors(tmp_path, {"a": act, "b": act})
    launch(runs, max_parallel=2)
    half = len(cores) // 2
    shares = {",".join(map(str, part)) for part in (cores[:half], cores[half:])}
    assert {run.notes[1] for run in runs} == shares


# ---------------------------------------------------------------------------------- being stopped

_SWEEP = """
import sys
from tests.sweep_runs import actors
from vit_jax.sweeps import local
import pathlib
runs = actors(pathlib.Path(sys.argv[1]), {"one": sys.argv[2], "two": "reach(10)"})
sys.exit(0 if local.run_local(runs, max_parallel=1, changed=lambda run: None) else 75)
"""
# Saves at SIGTERM, as training does, and ends by itself long after.
_SAVES = """
def save(number, frame):
    time.sleep(.3); note("saved"); reach(4); sys.exit(75)
signal.signal(signal.SIGTERM, save)
note("ready")
for _ in range(600): time.sleep(.1)
"""


def started(folder, act):
    process = forked.start("-c", _SWEEP, folder, act)
    wait_for(lambda: "ready" in notes(folder))
    return process


def notes(folder):
    path = folder / "one" / "notes"
    return path.read_text().split() if path.exists() else []


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_at_a_signal_the_sweep_lets_the_runs_save(tmp_path, number):
    with started(tmp_path, _SAVES) as process:
        process.send_signal(number)
        assert process.wait(30) == 75
    assert notes(tmp_path) == ["begin", "ready", "saved"]
    assert records.read(tmp_path / "one").status == "stopped"
    assert records.read(tmp_path / "two").status == "waiting"


def test_a_second_signal_ends_the_wait(tmp_path):
    act = _SAVES.replace("time.sleep(.3)", "note('signalled'); time.sleep(60)")
    with started(tmp_path, act) as process:
        process.send_signal(signal.SIGINT)
        wait_for(lambda: "signalled" in notes(tmp_path))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 75
    assert notes(tmp_path) == ["begin", "ready", "signalled"]


def test_a_killed_sweep_leaves_no_run_behind(tmp_path):
    with started(tmp_path, _SAVES) as process:
        process.kill()
    wait_for(lambda: "saved" in notes(tmp_path))


def test_one_sweep_at_a_time(tmp_path):
    from vit_jax.errors import ConfigError
    from vit_jax.sweeps.run import sweep

    runs = actors(tmp_path, {"run": FINISH})
    with lock(epath.Path(tmp_path)), pytest.raises(ConfigError, match="in use by process"):
        sweep(runs, tmp_path)
    assert runs[0].notes == []
