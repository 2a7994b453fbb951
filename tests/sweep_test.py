"""The sweep command with real runs: after kills at any moment it gives the same table."""

import contextlib
import io
import os
import pathlib
import random
import re
import signal
import time

import numpy as np
import pytest

from tests import forked
from tests.conftest import campaign
from tests.sweep_runs import NAMES, REAL, actors, ended_sweep, start_sweep
from vit_jax.errors import ConfigError
from vit_jax.scaling.table import read_runs
from vit_jax.sweeps import record as records
from vit_jax.sweeps.board import Board
from vit_jax.sweeps.run import select

# What may differ between two sweeps of the same runs.
MACHINE = ("device_hours", "attempts", "code_version")


@pytest.fixture(scope="module")
def forks():
    forked.ready()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(REAL)
    return path


def test_a_pattern_chooses_runs_by_their_whole_names():
    runs = ["vit,seed=0", "vit,seed=1", "cnn,seed=0"]
    assert select(runs, "*seed=0") == ["vit,seed=0", "cnn,seed=0"]
    assert select(runs, "") == runs
    with pytest.raises(ConfigError, match=r"--only=vit matches no run.*vit,seed=0"):
        select(runs, "vit")


@pytest.mark.medium
@pytest.mark.usefixtures("forks")
def test_a_folder_that_is_a_file(tmp_path, file):
    for folder in (file, file / "below"):
        done = ended_sweep(file, folder)
        assert done.returncode == 2
        assert done.err == f"error: --workdir={folder}: {file} is a file. Choose another folder.\n"


# ------------------------------------------------------------------------------------ the board


class Terminal(io.StringIO):
    """A stream that a terminal shows."""

    def isatty(self):
        return True


def test_a_line_for_what_has_changed(tmp_path):
    runs = actors(tmp_path, {"one": "", "two": ""})
    stream = io.StringIO()
    board = Board(runs, stream=stream, now=lambda: 0.0)
    records.change(runs[0].workdir, status="running")
    board.changed(runs[0])
    records.change(runs[0].workdir, status="failed", error="Out of\x1b[2J luck.")
    board.changed(runs[0])
    text = stream.getvalue()
    assert re.search(r"one: running\n.*one: failed: Out of", text) and "\x1b" not in text


def test_a_table_shows_progress_and_remaining_time(tmp_path):
    runs = actors(tmp_path, dict.fromkeys(("one", "two", "three", "bad"), ""))
    now = [0.0]
    stream = Terminal()
    with Board(runs, stream=stream, now=lambda: now[0]) as board:

        def change(run, **changes):
            records.change(run.workdir, **changes)
            board.changed(run)

        change(runs[0], status="running")
        now[0] = 60.0
        change(runs[0], status="finished")
        change(runs[2], status="failed", error="")
        board.show()
        change(runs[2], status="waiting")
        change(runs[3], status="failed", error="No such model.\nAccepted: ...")
        change(runs[1], status="running")
        (runs[1].workdir / "run.json").write_text('{"total_steps": 100, "batch_size": 8}')
        (runs[1].workdir / "timing.jsonl").write_text(
            '{"step": 25, "speed/img_per_s": 20.0}\n{"step": 30, "spee'
        )
        stream.truncate(0)
        board.show()
    text = stream.getvalue()
    # 75 steps of 8 at 20 a second are 30 s; then one more run, if it takes 60 s as the first did.
    assert "4 runs: 1 waiting, 1 running, 1 finished, 1 failed; about 1m30s left" in text
    assert "25.0%  two: step 25 of 100, 20 img/s, 30s left" in text
    assert "failed   bad: No such model.\n" in text


def test_the_duration_of_a_run_is_estimated_from_its_flops(tmp_path):
    """Ten seconds to start, and a second for each FLOP."""
    work = {"small": 20.0, "large": 110.0, "larger": 1000.0, "unknown": None}
    runs = actors(tmp_path, dict.fromkeys(work, ""))
    now = [0.0]
    stream = io.StringIO()
    board = Board(runs, work=work, stream=stream, now=lambda: now[0])
    for run in runs[:2]:
        records.change(run.workdir, status="running")
        board.changed(run)
        now[0] += 10 + work[run.name]
        records.change(run.workdir, status="finished")
        board.changed(run)
    records.change(runs[3].workdir, status="running")
    (runs[3].workdir / "run.json").write_text('{"total_steps": 100, "batch_size": 8}')
    (runs[3].workdir / "timing.jsonl").write_text('{"step": 25, "speed/img_per_s": 20.0}\n')
    board.changed(runs[3])
    board.show()
    # 30 s of the one that runs, 1010 s of the one that waits.
    assert "about 17m20s left" in stream.getvalue()


# ------------------------------------------------------------------------------- the command


@pytest.mark.medium
@pytest.mark.usefixtures("forks")
def test_a_file_without_a_sweep(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text("from vit_jax.config import base_config\n\n\ndef get_config():\n"
                    "    return base_config()\n")  # fmt: skip
    done = ended_sweep(path, tmp_path / "S")
    assert done.returncode == 2 and "defines no sweep()" in done.err
    assert not (tmp_path / "S").exists()


@pytest.mark.medium
@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1 / 0]", "line {line}: ZeroDivisionError"),
        ("pass", "sweep() returned NoneType: it must return a list of points"),
        ("yield from iter(dict, 1)", "more than 100,000 points: does it end?"),
    ],
)
def test_a_sweep_without_points_is_an_error(tmp_path, file, body, message):
    file.write_text(f"{REAL}\n\ndef sweep(arg=None):\n    {body}\n")
    done = ended_sweep(file, tmp_path / "S")
    line = len(file.read_text().splitlines())
    assert done.returncode == 2 and message.format(line=line) in done.err, done.err


@pytest.mark.medium
@pytest.mark.usefixtures("forks")
def test_dry_run_prints_command_and_cost_of_each_run_and_names_the_invalid_ones(tmp_path, file):
    done = ended_sweep(file, tmp_path / "S", "--dry_run", "--config.optim.lr=0.5")
    assert done.returncode == 2
    assert done.err.startswith("error: 1 of 4 runs cannot start:\n  fails: data.shots is 10000")
    assert not (tmp_path / "S").exists()
    commands = re.findall(r"vit-jax train (.*)", done.out)
    assert len(commands) == 3 and all("--config.optim.lr=0.5" in c for c in commands)
    # The branch of 12 steps makes 3 itself: the trunk has kept its state of step 9.
    flops = [float(x) for x in re.findall(r"steps, (\S+) FLOPs", done.out)]
    assert flops[2] / flops[1] == pytest.approx(3 / 20, rel=0.01)
    assert "checkpoints/9" in commands[2]
    assert f"Total: 3 runs, {sum(flops):.3g} FLOPs" in done.out
    assert "Time:  unknown: no run of the sweep has logged its speed." in done.out


def metrics(folder):
    return {path.parent.name: path.read_bytes() for path in sorted(folder.glob("*/metrics.jsonl"))}


def kill_one(pids):
    """Kills one of these processes, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(random.choice(pids), signal.SIGKILL)


def children(pid):
    path = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rounds", [1, campaign(5)])
def test_killed_at_any_moment_it_comes_to_the_same_table(tmp_path, file, rounds):
    """The sweep is killed, its runs are killed; in the end nothing tells it from another one."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = ("--max_parallel=2",)
    done = ended_sweep(file, whole, *flags)
    assert done.returncode == 1, done.err  # One fails on purpose.

    kills = 0
    for seed in range(rounds):
        random.seed(seed)
        with start_sweep(file, killed, *flags) as process:
            until = time.monotonic() + random.uniform(6, 20)
            while process.poll() is None and time.monotonic() < until:
                time.sleep(random.uniform(1, 4))
                if runs := children(process.pid):
                    kill_one(runs)
                    kills += 1
            if process.poll() is None:
                process.send_signal(random.choice([signal.SIGKILL, signal.SIGTERM]))
                assert process.wait() in (75, -signal.SIGKILL)
        if process.returncode == 1:
            break
    done = ended_sweep(file, killed, *flags)
    assert done.returncode == 1 and kills, done.out
    assert re.search(r"fails failed: data.shots is 10000", done.out)

    assert metrics(killed) == metrics(whole) and len(metrics(whole)) == 3
    tables = [read_runs(folder / "runs.parquet") for folder in (whole, killed)]
    assert list(tables[0]) == list(tables[1])
    for name in tables[0]:
        if name not in MACHINE:
            np.testing.assert_array_equal(tables[0][name], tables[1][name], err_msg=name)
    assert sorted({*tables[0]["run"]}) == sorted(NAMES)

    # Once more: nothing is run, and what failed is tried again.
    before = {name: records.read(killed / name).attempts for name in NAMES}
    assert ended_sweep(file, killed, *flags).returncode == 1
    after = {name: records.read(killed / name).attempts for name in NAMES}
    assert after == before | {"fails": before["fails"] + 1}

    # Another config instead of the old: nothing is lost.
    done = ended_sweep(file, killed, *flags, "--config.optim.lr=0.5")
    assert done.returncode == 2 and "optim.lr: 0.003 -> 0.5" in done.err
    assert metrics(killed) == metrics(whole)
