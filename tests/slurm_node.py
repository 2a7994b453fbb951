"""A Slurm of one node, for as long as a test takes: munged, slurmctld and slurmd in a folder.

The programs are Debian's packages slurmctld, slurmd, slurm-client and munge. Nothing of the machine
is touched: ports, keys, sockets and logs are the folder's own. slurmd wants to be root.
"""

import contextlib
import getpass
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "sinfo")
_CONFIG = """\
ClusterName=test
SlurmctldHost={host}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=1
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=60
MinJobAge=600
NodeName={host} CPUs={cores} RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no Slurm here; "" if there can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return (
            f"no {', '.join(absent)}: apt-get install slurmctld slurmd slurm-client munge, as root"
        )
    return "" if os.geteuid() == 0 else "slurmd must be started by root"


@contextlib.contextmanager
def slurm_node(folder: pathlib.Path, *, cores: int) -> Iterator[dict[str, str]]:
    """Starts it, and stops it at the end; gives the variables that lead Slurm's commands to it.

    Args:
      folder: for all that it writes; its path is short, for the socket in it.
      cores: that Slurm gives to jobs, whatever the machine has.
    """
    host = socket.gethostname().partition(".")[0]
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    environment = {**os.environ, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    (folder / "slurm.conf").write_text(
        _CONFIG.format(
            host=host, user=getpass.getuser(), folder=folder, ports=_ports(2), cores=cores
        )
    )
    with contextlib.ExitStack() as stack:
        options = {
            "socket": "munge.socket", "key-file": "munge.key", "log-file": "munged.log",
            "pid-file": "munged.pid", "seed-file": "munge.seed",
        }  # fmt: skip
        munged = [f"--{name}={folder / file}" for name, file in options.items()]
        # --force: the folder may be in one that others can write to.
        commands = (
            ["munged", "--foreground", "--force", *munged],
            ["slurmctld", "-D", "-i"],
            # What the node really has does not matter.
            ["slurmd", "-D", "-N", host],
        )
        for command in commands:
            log = stack.enter_context((folder / f"{command[0]}.out").open("wb"))
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            stack.callback(_stop, process)
            if command[0] == "munged":
                _until((folder / "munge.socket").exists, "munged did not start", folder)
        _until(lambda: _idle(environment), "the node did not come up", folder)
        stack.callback(_cancel, environment)
        yield {name: environment[name] for name in ("PATH", "SLURM_CONF")}


def _cancel(environment: dict[str, str]) -> None:
    """Ends the jobs that a failed test has left: they would outlive their Slurm."""
    subprocess.run(["scancel", "--me", "--full"], env=environment)
    end = time.monotonic() + 60
    while not _idle(environment) and time.monotonic() < end:
        time.sleep(0.5)


def _idle(environment: dict[str, str]) -> bool:
    answer = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"], env=environment, capture_output=True, text=True
    )
    return answer.stdout.strip() == "idle"


def _until(condition, what: str, folder: pathlib.Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            logs = [f"{log}:\n{log.read_text()[-2000:]}" for log in sorted(folder.glob("*.out"))]
            raise RuntimeError(f"{what} in {seconds} s.\n" + "\n".join(logs))
        time.sleep(0.2)


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("", 0))
        return [free.getsockname()[1] for free in sockets]
