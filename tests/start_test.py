"""Real processes that find each other by the variables of a launcher, or do not."""

import os
import shutil
import socket
import subprocess
import sys

import pytest

from tests import forked
from tests.conftest import ROOT, campaign, slow
from tests.many_processes import ends
from tests.watch_test import FLAGS

# Prints what each process has told the others, so all have joined.
JOIN = """
import jax
from vit_jax.parallel import processes
processes.start()
heard = processes.exchange(f"process {jax.process_index()}")
print(heard, jax.device_count(), flush=True)
"""
# A command whose processes wait for at most two seconds.
IMPATIENT = """
import runpy, sys
from vit_jax.parallel import rendezvous
rendezvous.TIMEOUT_SECONDS = 2.0
sys.argv[0] = sys.argv.pop(1)
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


# The variables of process i of n.
LAUNCHERS = {
    "explicit": lambda i, n: {"JAX_NUM_PROCESSES": str(n), "JAX_PROCESS_ID": str(i)},
    "torchrun": lambda i, n: {
        "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "RANK": str(i), "WORLD_SIZE": str(n),
        "LOCAL_RANK": str(i), "LOCAL_WORLD_SIZE": str(n),
    },
    "Open MPI": lambda i, n: {
        "OMPI_COMM_WORLD_SIZE": str(n), "OMPI_COMM_WORLD_RANK": str(i),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(n), "OMPI_COMM_WORLD_LOCAL_RANK": str(i),
        "PMIX_NAMESPACE": "prterun-host-4221@1",
    },
    "Slurm": lambda i, n: {
        "SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(n),
        "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "SLURM_NODEID": "0",
        "SLURM_STEP_TASKS_PER_NODE": str(n),
    },
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def server():
    forked.ready()


def started(code, *arguments, launcher, count, indices):
    """Starts processes of a run; those that are not in `indices` are missing."""
    free = port()
    where = (
        {"JAX_COORDINATOR_ADDRESS": f"localhost:{free}"}
        if launcher == "explicit"
        else {"JAX_COORDINATOR_PORT": free}
    )
    return [
        forked.start("-c", code, *arguments, env=where | LAUNCHERS[launcher](i, count))
        for i in indices
    ]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("launcher", "count"),
    [
        *(pytest.param(name, 2, id=f"{name}-2") for name in LAUNCHERS),
        campaign("explicit", 4), slow("torchrun", 4), slow("Slurm", 4),
    ],
)  # fmt: skip
def test_processes_join(launcher, count):
    for process in started(JOIN, launcher=launcher, count=count, indices=range(count)):
        code, err = ends(process)
        assert code == 0, err
        assert process.out == f"{[f'process {i}' for i in range(count)]} {count}\n"
        assert ("joined" in err) <= (f"joined  {count} processes, found by" in err), err


@pytest.mark.medium
@pytest.mark.parametrize("launcher", ["explicit", slow("torchrun")])
def test_a_process_that_never_arrives_ends_all_with_code_76(tmp_path, launcher):
    command = ("vit_jax.train", *FLAGS, f"--workdir={tmp_path / 'run'}")
    run = started(IMPATIENT, *command, launcher=launcher, count=3, indices=(0, 2))
    for process in run:
        code, err = ends(process)
        assert code == 76 and "process 1 of 3 has not arrived at localhost:" in err, err
        assert "Start all 3 again" in err and "Traceback" not in err, err
        assert len(err.splitlines()) == 1, err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_without_process_0_the_others_end_with_code_76(tmp_path):
    command = ("vit_jax.evaluate", f"--workdir={tmp_path / 'run'}")
    (process,) = started(IMPATIENT, *command, launcher="Slurm", count=2, indices=[1])
    code, err = ends(process)
    assert code == 76 and "process 0 has not been reached at localhost:" in err, err


REAL = {
    "torchrun": ("torchrun", "--standalone", "--nproc-per-node=2"),
    "mpirun": ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", REAL)
def test_a_real_launcher(tmp_path, launcher):
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    program, *options = REAL[launcher]
    if (program := shutil.which(program, path=path)) is None:
        pytest.skip(f"{launcher} is not installed")
    (tmp_path / "join.py").write_text(JOIN)
    answer = subprocess.run(
        [program, *options, tmp_path / "join.py"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("['process 0', 'process 1'] 2\n") == 2, answer.stdout
    assert "joined  2 processes, found by" in answer.stderr
