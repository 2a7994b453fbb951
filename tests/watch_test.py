"""A process that is killed, stopped, hung or fails alone ends the run, and is named."""

import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, campaign, slow
from tests.many_processes import ends, processes
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


@pytest.mark.parametrize(
    ("number", "quick"),
    [slow(signal.SIGKILL, 60), slow(signal.SIGSTOP, 60), campaign(signal.SIGSTOP, 0)],
)
def test_a_process_that_is_killed_or_stopped_is_named_and_the_run_goes_on(tmp_path, number, quick):
    flags = ("--config.total_steps=4000", "--config.timeout_seconds=60")
    with train(3, tmp_path / "run", *flags, quick=quick) as run:
        wait_for(tmp_path / "run" / "checkpoints" / "4", run)
        run[1].send_signal(number)
        for survivor in (run[0], run[2]):
            code, err = ends(survivor)
            assert code == 76, err
            assert "process 1 of 3" in err and "lost" in err and "same command" in err, err
    kept = read_jsonl(tmp_path / "run" / "metrics.jsonl")[:4]
    with train(1, tmp_path / "run", "--config.total_steps=8", "--allow_config_change") as [one]:
        newest = max(int(p.name) for p in (tmp_path / "run" / "checkpoints").glob("[0-9]*"))
        code, err = ends(one)
        # Beyond the shortened end there is nothing to do but say so.
        assert code == (0 if newest <= 8 else 2), err
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")[:4] == kept


@pytest.mark.slow
def test_the_others_end_when_process_0_is_killed(tmp_path):
    with train(2, tmp_path / "run", "--config.total_steps=4000") as run:
        wait_for(tmp_path / "run" / "checkpoints" / "4", run)
        run[0].kill()
        code, err = ends(run[1])
        # The coordination service was in process 0: JAX itself ends the others.
        assert code in (76, -signal.SIGABRT) and ("leader" in err or "process 0" in err), err


@pytest.mark.parametrize("quick", [slow(8), campaign(0)])
def test_the_others_end_when_process_0_is_stopped(tmp_path, quick):
    flags = ("--config.total_steps=4000", "--config.timeout_seconds=60")
    with train(2, tmp_path / "run", *flags, quick=quick) as run:
        wait_for(tmp_path / "run" / "checkpoints" / "8", run)
        run[0].send_signal(signal.SIGSTOP)
        code, err = ends(run[1])
        assert code == 76 and "process 0 has not answered" in err, err


@pytest.mark.parametrize("culprit", [campaign(0), slow(1)])
def test_the_others_hear_why_one_process_failed(tmp_path, culprit):
    faults = {culprit: "batch-fails"}
    with train(2, tmp_path / "run", "--config.total_steps=50", faults=faults) as run:
        code, err = ends(run[culprit])
        assert code == 2 and "error: pear.jpg: rotten." in err and "Traceback" not in err, err
        code, err = ends(run[1 - culprit])
        assert code == 76 and f"process {culprit} of 2" in err and "pear.jpg" in err, err
        assert "Traceback" not in err


@pytest.mark.parametrize("quick", [slow(60), campaign(0)])
def test_a_process_that_breaks_shows_its_traceback_and_the_others_do_not_hang(tmp_path, quick):
    flags = ("--config.total_steps=50",)
    with train(2, tmp_path / "run", *flags, faults={1: "batch-breaks"}, quick=quick) as run:
        code, err = ends(run[1])
        assert code == 2 and "OSError: pear" in err, err
        code, err = ends(run[0])
        assert code == 76 and "process 1 of 2" in err and "pear" in err, err


@pytest.mark.parametrize(("timeout", "quick"), [slow(60, 6), campaign(30, 0)])
def test_a_hung_process_is_named_with_its_place(tmp_path, timeout, quick):
    flags = ("--config.total_steps=50", f"--config.timeout_seconds={timeout}")
    with train(2, tmp_path / "run", *flags, faults={1: "batch-hangs"}, quick=quick) as run:
        code, err = ends(run[0])
        assert code == 76 and "process 1 of 2" in err and "at the batch of update 5" in err, err
        assert f"timeout_seconds={quick or timeout}" in err
        assert ends(run[1])[0] == 76


@pytest.mark.parametrize(("timeout", "quick"), [slow(60, 4), campaign(30, 0)])
def test_a_run_that_hangs_alone_says_where(tmp_path, timeout, quick):
    flags = ("--config.total_steps=50", f"--config.timeout_seconds={timeout}")
    with train(1, tmp_path / "run", *flags, faults={0: "batch-hangs"}, quick=quick) as [one]:
        code, err = ends(one)
        assert code == 76 and "batch of update 5" in err and "got nowhere" in err, err
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
    assert all(code in (2, 76) for code, _ in results), results
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
    with processes([[*command, f"--workdir={tmp_path / place}"] for place in "ab"]) as run:
        for code, err in map(ends, run):
            assert code == 2 and "it must be one that all processes share" in err, err


@pytest.mark.parametrize(("timeout", "quick"), [slow(60, 10), campaign(25, 0)])
def test_a_pause_of_all_processes_loses_none(tmp_path, timeout, quick):
    flags = ("--config.total_steps=60", f"--config.timeout_seconds={timeout}")
    with train(2, tmp_path / "run", *flags, quick=quick) as run:
        wait_for(tmp_path / "run" / "checkpoints" / "8", run)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for process in run:
                process.send_signal(number)
            time.sleep((quick or 30) + 2 if number == signal.SIGSTOP else 0)
        results = [ends(process) for process in run]
    assert [code for code, _ in results] == [0, 0], results


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
        assert code == 2 and "error: pear.jpg: rotten." in err and "Traceback" not in err, err
        code, err = ends(run[0])
        assert code == 76 and "process 1 of 2" in err and "pear.jpg" in err, err


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


@pytest.mark.medium
def test_a_save_that_a_lost_process_made_fail_names_the_process():
    # Whether a killed process's peers notice it in an update or in a save is a matter of luck.
    program = (
        "import json, jax\n"
        "from vit_jax.errors import CheckpointError\n"
        "from vit_jax.parallel import processes, watch\n"
        "class Client:\n"
        "    def key_value_set(self, key, value, allow_overwrite=False): pass\n"
        "    def key_value_dir_get(self, prefix):\n"
        "        word = dict(host='b', place='update 5', count=5, error='', done=False)\n"
        "        return [(prefix + '1', json.dumps(word))]\n"
        "processes.coordination_client = Client\n"
        "watch.TICK, watch.SILENCE_AFTER_ERROR = 0.1, 0.3\n"
        "with watch.Watch(600):\n"
        "    try:\n"
        "        raise jax.errors.JaxRuntimeError('Gloo AllGather failed')\n"
        "    except Exception as error:\n"
        "        raise CheckpointError('A checkpoint could not be written') from error\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 76 and "process 1 of 1 (on b) is lost" in run.stderr, run.stderr
