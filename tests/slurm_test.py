"""The Slurm launcher, against a real Slurm of one node: its runs equal those of the local launcher.

One run fails on purpose, one is sent back into the queue in the middle, one runs out of time.
"""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import pytest

from tests import forked
from tests.conftest import ROOT
from tests.slurm_node import missing, slurm_node
from tests.sweep_runs import NAMES, REAL, actors, ended_sweep, run_sweep, sweep_command
from vit_jax.scaling.table import read_runs
from vit_jax.sweeps import record as records
from vit_jax.sweeps import slurm as launcher

# Runs of seconds on digits, and one that takes longer than its job may.
FILE = (
    REAL
    + """

_sweep = sweep


def sweep(arg=None):
    long = {"name": "long", "total_steps": 8_000, "evals.test.every_steps": 0}
    rarely = {"checkpoint.every_steps": 10**6, "log.every_steps": 500}
    return [{**long, **rarely}, *_sweep(arg)]
"""
)
REQUEUED = ("PENDING", "BeginTime")  # State and reason.


@pytest.fixture(scope="module")
def slurm():
    """The variables that lead to a Slurm."""
    if reason := missing():
        pytest.skip(f"no Slurm can be started: {reason}")
    if importlib.util.find_spec("submitit") is None:
        pytest.skip('needs submitit: pip install -e ".[slurm]"')
    folder = pathlib.Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # A socket's path is short.
    try:
        with slurm_node(folder, cores=2) as variables:
            yield {**os.environ, **variables}
    finally:
        shutil.rmtree(folder)


def answer(slurm, *command):
    return subprocess.run(command, env=slurm, capture_output=True, text=True, check=True).stdout


def queue(slurm):
    """State and reason of each job that is there."""
    lines = answer(slurm, "squeue", "--noheader", "--array", "--format=%i %T %r").splitlines()
    return {job: (state, reason) for job, state, reason in (line.split(" ", 2) for line in lines)}


def until(condition, seconds):
    end = time.monotonic() + seconds
    while not (outcomes := condition()):
        assert time.monotonic() < end
        time.sleep(0.5)
    return outcomes


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_jobs_give_the_same_runs_as_the_local_launcher(tmp_path, slurm):
    file = tmp_path / "tiny.py"
    file.write_text(FILE)
    here, there = tmp_path / "here", tmp_path / "there"
    command = sweep_command(file, there, "--launcher=slurm", "--slurm_time_min=2")
    command.append("--slurm_cpus=1")
    long, short = there / "long", there / NAMES[0]
    with subprocess.Popen(command, cwd=ROOT, env=slurm, text=True) as watch:
        # In the middle of one: it goes back into the queue, as if another had taken its place.
        job = until(lambda: (short / "metrics.jsonl").exists() and records.read_job(short), 120)
        answer(slurm, "scontrol", "requeue", job)
        until(lambda: records.read(short).status == "stopped", 120)

        # The watching ends; the jobs go on, and a second sweep submits none again.
        watch.terminate()
        assert watch.wait(60) == 75
    jobs = {path.parent.name: path.read_text() for path in there.glob("*/slurm_job.txt")}
    with subprocess.Popen(command, cwd=ROOT, env=slurm) as watch:
        since: dict[str, float] = {}
        while watch.poll() is None:
            # Requeued, they would wait for two minutes. A few seconds they must: the node refuses
            # a job whose last start ended in the same second.
            waiting = {job for job, state in queue(slurm).items() if state == REQUEUED}
            since = {job: since.get(job, time.monotonic()) for job in waiting}
            for job, begin in since.items():
                if time.monotonic() > begin + 5:
                    answer(slurm, "scontrol", "update", f"JobId={job}", "StartTime=now")
            time.sleep(1)
    assert watch.returncode == 1  # One failed, on purpose.
    assert jobs == {path.parent.name: path.read_text() for path in there.glob("*/slurm_job.txt")}

    outcomes = {path.parent.name: records.read(path.parent) for path in there.glob("*/sweep.json")}
    assert sorted(outcomes) == sorted(["long", *NAMES])
    assert outcomes.pop("fails").error.startswith("data.shots is 10000")
    assert {record.status for record in outcomes.values()} == {"finished"}
    assert outcomes["long"].attempts > 1 and outcomes[NAMES[0]].attempts == 2
    assert "Stopped and saved at step" in (long / "log.txt").read_text()
    logs = "".join(path.read_text() for path in (there / ".slurm").glob("*_log.out"))
    assert "this job is timed-out" in logs and "Requeued job" in logs

    done = run_sweep(*sweep_command(file, here, "--max_parallel=2", "--only=[!l]*"), cwd=ROOT)
    assert done.returncode == 1, done.stderr
    for name in set(outcomes) - {"long"}:
        lines = [(folder / name / "metrics.jsonl").read_bytes() for folder in (here, there)]
        assert lines[0] == lines[1], name
    tables = [read_runs(folder / "runs.parquet") for folder in (here, there)]
    for column in ("run", "config_hash"):
        rows = [table[column][table["run"] != "long"].tolist() for table in tables]
        assert rows[0] == rows[1], column


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cancelled_job_is_reported_and_submitted_again(tmp_path, slurm):
    file = tmp_path / "tiny.py"
    file.write_text(REAL)
    flags = ("--launcher=slurm", "--slurm_time_min=5", "--only=depth*")
    command = sweep_command(file, tmp_path / "S", *flags)
    workdir = tmp_path / "S" / NAMES[0]
    with subprocess.Popen(command, cwd=ROOT, env=slurm) as watch:
        job = until(lambda: records.read_job(workdir), 60)
        until(lambda: records.read(workdir).status == "running", 60)
        answer(slurm, "scancel", job)
        assert watch.wait(180) == 1
    assert f"Its Slurm job {job} is gone" in records.read(workdir).error
    assert run_sweep(*command, cwd=ROOT, env=slurm).returncode == 0
    assert records.read_job(workdir) != job


def test_a_branch_whose_trunk_state_is_gone_is_blocked(tmp_path, monkeypatch):
    """Its trunk has finished and was tidied up: there is no job that it could come after."""
    branches = {"branch": ("trunk", 5), "twig": ("branch", 7)}
    runs = actors(tmp_path, dict.fromkeys(("trunk", "branch", "twig"), ""), branches)
    records.change(runs[0].workdir, name="trunk", status="finished")
    monkeypatch.setattr(launcher, "_queue", set)
    launcher._JobMonitor(runs, lambda run: None).submit(None)
    outcomes = [records.read(run.workdir) for run in runs]
    assert [record.status for record in outcomes] == ["finished", "blocked", "blocked"]
    assert "has finished, and keeps no checkpoint" in outcomes[1].error
    assert "Its trunk branch could not start" in outcomes[2].error


def test_a_job_is_lost_after_two_queries_without_it(tmp_path, monkeypatch):
    (run,) = actors(tmp_path, {"run": ""})
    records.change(run.workdir, name="run", status="running")
    records.write_job(run.workdir, "12")
    watch = launcher._JobMonitor([run], lambda run: None)
    for queued, status in (
        ({"12"}, "running"), (set(), "running"), ({"12"}, "running"), (set(), "running"),
        (set(), "failed"),
    ):  # fmt: skip
        monkeypatch.setattr(launcher, "_queue", lambda queued=queued: queued)
        watch.poll()
        assert records.read(run.workdir).status == status


@pytest.fixture
def forks():
    forked.ready()


@pytest.mark.medium
@pytest.mark.usefixtures("forks")
def test_without_slurm(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(REAL)
    if importlib.util.find_spec("submitit") is None:
        pytest.skip('needs submitit: pip install -e ".[slurm]"')
    empty = tmp_path / "bin"
    empty.mkdir()
    done = ended_sweep(file, tmp_path / "S", "--launcher=slurm", env={"PATH": str(empty)})
    assert done.returncode == 2 and "no srun" in done.err
