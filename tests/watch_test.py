"""A process that is killed, stopped, hung or fails alone ends the run; the same command goes on."""

import signal
import subprocess
import sys
import time

import jax
import pytest

from tests.conftest import ROOT, campaign, slow
from tests.many_processes import ends, processes
from vit_jax.errors import CheckpointError, DataError
from vit_jax.parallel import processes as processes_module
from vit_jax.parallel import watch as watch_module
from vit_jax.parallel.watch import Watch
from vit_jax.telemetry.jsonlines import read_jsonl

FLAGS = (
    "--config=configs/quickstart.py", "--config.log.tensorboard=False", "--config.data.threads=1",
    "--config.log.every_steps=1", "--config.checkpoint.every_steps=4", "--config.batch_size=120",
    "--config.model.depth=1", "--config.model.width=16", "--config.model.mlp_dim=32",
)  # fmt: skip


def train(n, workdir, *flags, faults=None, quick=0):
    """The n processes of one run: `faults` by the process's number, see tests.faulty_train.

    `quick` is the time-out in seconds of a watch that has little patience; 0: as it is.
    """
    command = ["tests.faulty_train", *FLAGS, f"--workdir={workdir}", *flags]
    environments = {
        i: {"VIT_JAX_FAULT": (faults or {}).get(i, ""), "VIT_JAX_QUICK": str(quick)}
        for i in range(n)
    }
    return processes([command] * n, environments=environments)


def wait_for(path, run):
    for _ in range(1200):
        if path.exists():
            return
        assert all(process.poll() is None for process in run), ends(run[0])
        time.sleep(0.1)
    raise AssertionError(f"{path} never came")


RUN_AGAIN = (76, -signal.SIGABRT)  # Our exit code, and what JAX does when it misses a heartbeat.


@pytest.mark.parametrize(
    ("number", "quick"),
    [slow(signal.SIGKILL, 60), slow(signal.SIGSTOP, 60), campaign(signal.SIGSTOP, 0)],
)
def test_a_process_that_is_killed_or_stopped_ends_the_others_and_the_run_goes_on(
    tmp_path, number, quick
):
    flags = ("--config.total_steps=4000", "--config.timeout_seconds=600")
    with train(3, tmp_path / "run", *flags, quick=quick) as run:
        wait_for(tmp_path / "run" / "checkpoints" / "4", run)
        run[1].send_signal(number)
        for survivor in (run[0], run[2]):
            code, err = ends(survivor)
            assert code in RUN_AGAIN, err
            if code == 76:  # Its collective failed. Else JAX has said which task it lost.
                assert "of 3 (on " in err and "same command" in err, err
            else:
                assert "another task died" in err, err
    first_lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")[:4]
    with train(1, tmp_path / "run", "--config.total_steps=8", "--allow_config_change") as [one]:
        names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
        newest = max(int(name) for name in names if name.isdigit())  # Without unfinished saves.
        code, err = ends(one)
        # Beyond the shortened end there is nothing to do but say so.
        assert code == (0 if newest <= 8 else 2), err
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")[:4] == first_lines


@pytest.mark.parametrize(
    ("number", "quick"),
    [slow(signal.SIGKILL, 60), slow(signal.SIGSTOP, 60), campaign(signal.SIGSTOP, 0)],
)
def test_the_others_end_when_process_0_is_killed_or_stopped(tmp_path, number, quick):
    with train(2, tmp_path / "run", "--config.total_steps=4000", quick=quick) as run:
        wait_for(tmp_path / "run" / "checkpoints" / "4", run)
        run[0].send_signal(number)
        code, err = ends(run[1])
        assert code in RUN_AGAIN, err


@pytest.mark.parametrize("culprit", [campaign(0), slow(1)])
def test_a_process_that_fails_says_why_and_the_others_end(tmp_path, culprit):
    faults = {culprit: "batch-fails"}
    with train(2, tmp_path / "run", "--config.total_steps=50", faults=faults, quick=60) as run:
        code, err = ends(run[culprit])
        assert code == 2 and "at the batch of update 5: pear.jpg: rotten." in err, err
        assert "Traceback" not in err
        code, err = ends(run[1 - culprit])
        assert code in RUN_AGAIN and "Traceback" not in err, err


@pytest.mark.parametrize("quick", [slow(60), campaign(0)])
def test_a_process_that_breaks_shows_its_traceback_and_the_others_do_not_hang(tmp_path, quick):
    flags = ("--config.total_steps=50",)
    with train(2, tmp_path / "run", *flags, faults={1: "batch-breaks"}, quick=quick) as run:
        code, err = ends(run[1])
        assert code == 2 and "Traceback" in err and "OSError: pear" in err, err
        code, err = ends(run[0])
        assert code in RUN_AGAIN, err


@pytest.mark.parametrize(
    ("culprit", "timeout", "quick"), [slow(0, 60, 6), slow(1, 60, 6), campaign(1, 30, 0)]
)
def test_a_hung_process_says_where(tmp_path, culprit, timeout, quick):
    flags = ("--config.total_steps=50", f"--config.timeout_seconds={timeout}")
    with train(2, tmp_path / "run", *flags, faults={culprit: "batch-hangs"}, quick=quick) as run:
        code, err = ends(run[culprit])
        assert code == 76 and f"process {culprit} of 2" in err, err
        assert "at the batch of update 5: nothing has happened" in err, err
        assert f"timeout_seconds={quick or timeout}" in err and "in next_batch" in err, err
        assert ends(run[1 - culprit])[0] in RUN_AGAIN


@pytest.mark.parametrize(("timeout", "quick"), [slow(60, 4), campaign(30, 0)])
def test_a_run_that_hangs_alone_says_where(tmp_path, timeout, quick):
    flags = ("--config.total_steps=50", f"--config.timeout_seconds={timeout}")
    with train(1, tmp_path / "run", *flags, faults={0: "batch-hangs"}, quick=quick) as [one]:
        code, err = ends(one)
        assert code == 76 and "at the batch of update 5: nothing has happened" in err, err
    assert len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) >= 3


@pytest.mark.slow
def test_processes_agree_on_the_checkpoint_to_go_on_from(tmp_path):
    flags = ("--config.total_steps=8", "--config.checkpoint.keep_last=5")
    with train(2, tmp_path / "run", *flags) as run:
        assert [ends(process)[0] for process in run] == [0, 0]
    whole = (tmp_path / "run" / "metrics.jsonl").read_bytes()

    with train(2, tmp_path / "run", *flags, faults={1: "disk-busy"}, quick=60) as run:
        results = [ends(process) for process in run]
    assert any(code == 2 and "cannot be read now" in err for code, err in results), results
    assert all(code in (2, *RUN_AGAIN) for code, _ in results), results
    assert (tmp_path / "run" / "checkpoints" / "8").is_dir()

    with train(2, tmp_path / "run", *flags, faults={1: "hidden-bytes"}) as run:
        results = [ends(process) for process in run]
    assert [code for code, _ in results] == [0, 0], results
    assert (tmp_path / "run" / "checkpoints.broken.8").is_dir()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == whole


@pytest.mark.slow
def test_processes_that_were_started_differently_are_refused(tmp_path):
    command = ["vit_jax.train", *FLAGS, "--config.total_steps=4"]
    same = [*command, f"--workdir={tmp_path / 'run'}"]
    with processes([same, [*same, "--config.optim.lr=0.1", "--config.seed=5"]]) as run:
        for code, err in map(ends, run):
            assert code == 2 and "Process 1 of 2 was started with another config" in err, err
            assert "optim.lr: 0.002 -> 0.1\n" in err and "seed: 0 -> 5" in err, err
            assert "Traceback" not in err
    assert not (tmp_path / "run" / "config.json").exists()
    with processes([[*command, f"--workdir={tmp_path / name}"] for name in "ab"]) as run:
        for code, err in map(ends, run):
            assert code == 2 and "it must be one that all processes share" in err, err


@pytest.mark.parametrize(("n", "timeout", "quick"), [slow(1, 60, 5), campaign(2, 25, 0)])
def test_a_pause_of_all_processes_loses_none(tmp_path, n, timeout, quick):
    flags = ("--config.total_steps=60", f"--config.timeout_seconds={timeout}")
    with train(n, tmp_path / "run", *flags, quick=quick) as run:
        wait_for(tmp_path / "run" / "checkpoints" / "8", run)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for process in run:
                process.send_signal(number)
            time.sleep((quick or 30) + 2 if number == signal.SIGSTOP else 0)
        results = [ends(process) for process in run]
    assert [code for code, _ in results] == [0] * n, results


@pytest.mark.slow
def test_a_process_that_is_done_first_is_not_lost(tmp_path):
    flags = ("--config.total_steps=4",)
    with train(2, tmp_path / "run", *flags, faults={0: "curves-slow"}, quick=60) as run:
        results = [ends(process) for process in run]
    assert [code for code, _ in results] == [0, 0], results
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.slow
def test_an_evaluation_that_fails_in_one_process_ends_in_all(tmp_path):
    with train(1, tmp_path / "run", "--config.total_steps=4") as [one]:
        assert ends(one)[0] == 0
    command = ["tests.faulty_train", f"--workdir={tmp_path / 'run'}"]
    faults = {0: {"VIT_JAX_VERB": "evaluate"}}
    faults[1] = {**faults[0], "VIT_JAX_FAULT": "batch-fails"}
    with processes([command] * 2, environments=faults) as run:
        code, err = ends(run[1])
        assert code == 2 and "pear.jpg: rotten." in err and "Traceback" not in err, err
        code, err = ends(run[0])
        assert code in RUN_AGAIN, err


@pytest.mark.medium
def test_a_run_whose_output_nobody_reads_ends_all_the_same():
    program = (
        "import sys, time\n"
        "from vit_jax.parallel.watch import Watch\n"
        "with Watch(1):\n"
        "    sys.stdin.read()\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as run:
        for pipe in (run.stderr, run.stdout, run.stdin):
            pipe.close()
        assert run.wait(timeout=40) == 76


def test_a_save_that_a_lost_process_made_fail_is_that_loss(monkeypatch, capsys):
    # Whether a killed process's peers notice it in an update or in a save is a matter of luck.
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes_module, "coordination_client", lambda: None)
    monkeypatch.setattr(watch_module, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(watch_module.os, "_exit", sys.exit)
    gloo = jax.errors.JaxRuntimeError("Gloo AllGather failed")
    memory = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    own = jax.errors.JaxRuntimeError("INTERNAL: the program is invalid")
    named = DataError("Gloo images/1.jpg is broken")
    for cause, code in ((gloo, 76), (memory, 2), (own, 2), (named, 2), (OSError(28, "Full"), 2)):
        error = CheckpointError("A checkpoint could not be written")
        error.__cause__ = cause
        with pytest.raises(SystemExit) as ended:
            Watch(600).exit_on_error(CheckpointError, error, None)
        assert ended.value.code == code
        stderr = capsys.readouterr().err
        assert stderr.startswith("error: process 0 of 2 (on ") and str(error) in stderr, stderr
        assert ("The same command continues" in stderr) == (code == 76)
