"""Launchers: finds the other processes of a run by the variables that a launcher sets.

JAX finds Open MPI 4, Slurm, Cloud TPU slices and Kubernetes jobs by itself. This file adds
torchrun, Open MPI 5 without mpi4py, and which GPUs of a host belong to a process. docs/pods.md has
the commands.
"""

import dataclasses
import glob
import importlib.util
import os
import re
import sys
from collections.abc import Callable

import jax
from jax._src import clusters

from vit_jax.errors import ConfigError, LostError

ADDRESS, COUNT, INDEX = EXPLICIT = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)
_PORT = "JAX_COORDINATOR_PORT"  # JAX's: replaces the port that a launcher's variables give.


@dataclasses.dataclass(frozen=True)
class Membership:
    """Where this process is among those of its run.

    Attributes:
      launcher: the program that has started the processes, for messages.
      address: HOST:PORT of process 0, where JAX's coordination service listens.
      count: the number of processes.
      index: the index of this process, from 0.
      gpus: the GPUs that this process uses, of those that it sees, by index; None: all.
    """

    launcher: str
    address: str
    count: int
    index: int
    gpus: tuple[int, ...] | None = None


def find(timeout_seconds: int) -> Membership | None:
    """Returns this process's place among those of its run; None if it runs alone.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID go before every launcher. The
    address alone replaces that of the launcher, and JAX_NUM_PROCESSES=1 alone makes this process
    run alone. Then torchrun and mpirun are asked, whose processes inherit the variables of a Slurm
    job around them, and then JAX.

    Args:
      timeout_seconds: how long to wait until the host of process 0 is known to the name server.

    Raises:
      ConfigError: the variables contradict each other or are incomplete, or a launcher has started
        several processes and does not say where process 0 is.
      LostError: the host of process 0 is not known.
    """
    address = os.environ.get(ADDRESS)
    numbers = {name: _number(name) for name in (COUNT, INDEX) if name in os.environ}
    if len(numbers) == 2 and not numbers[INDEX] < numbers[COUNT]:
        raise ConfigError(
            f"{INDEX}={numbers[INDEX]} of {COUNT}={numbers[COUNT]}: the processes are numbered "
            f"from 0 to {COUNT} - 1."
        )
    if numbers.get(COUNT) == 1:
        return None
    if address is not None and not re.fullmatch(r".+:\d+", address):
        raise ConfigError(f"{ADDRESS}={address!r}: write HOST:PORT of process 0.")
    if numbers:
        if missing := [name for name in EXPLICIT if name not in os.environ]:
            given = " and ".join(name for name in EXPLICIT if name in os.environ)
            raise ConfigError(f"{given} is set: set {' and '.join(missing)} as well.")
        return Membership(ADDRESS, str(address), numbers[COUNT], numbers[INDEX], _own_gpus())
    if _PORT in os.environ:
        _number(_PORT)  # Every launcher's address takes it.
    membership = _torchrun() or _open_mpi_5() or _detected_by_jax(timeout_seconds)
    if address is not None:
        if membership is None:
            raise ConfigError(f"{ADDRESS} is set: set {COUNT} and {INDEX} as well.")
        membership = dataclasses.replace(membership, address=address)
    if membership is None and (size := os.environ.get("PMI_SIZE", "1")) != "1":
        raise ConfigError(
            f"This is one of {size} processes that MPICH or a relative of it has started, which "
            f"does not say where process 0 is. Set {ADDRESS}=HOST:PORT and {COUNT}={size} for all, "
            f'and start `sh -c "{INDEX}=$PMI_RANK exec vit-jax ..."`. {COUNT}=1 for independent '
            "runs."
        )
    if membership is None:
        _check_torchrun()
    if membership is None or membership.count == 1:
        return None
    if membership.index >= membership.count:
        raise ConfigError(
            f"{membership.launcher} numbers this process {membership.index} of {membership.count}: "
            f"they are numbered from 0 to {membership.count - 1}."
        )
    return dataclasses.replace(membership, gpus=_own_gpus())


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    if not text.isdecimal():
        raise ConfigError(f"{variable}={text!r}: it must be a whole number, 0 or more.")
    return int(text)


# --------------------------------------------------------------------------- not known to JAX


_TORCHRUN = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")


def _torchrun() -> Membership | None:
    """Finds torchrun, or another launcher for PyTorch with its variables (Kubeflow)."""
    if not all(name in os.environ for name in _TORCHRUN):
        return None
    port = _number("MASTER_PORT")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        port += 1  # torchrun itself listens at MASTER_PORT.
    host = os.environ["MASTER_ADDR"]
    address = f"{host}:{os.environ.get(_PORT, port)}"
    return Membership("torchrun", address, _number("WORLD_SIZE"), _number("RANK"))


def _check_torchrun() -> None:
    """Refuses a part of torchrun's variables: the other processes would train alone as well."""
    given = [name for name in _TORCHRUN if name in os.environ]
    if {"RANK", "WORLD_SIZE"} & set(given) and os.environ.get("WORLD_SIZE") != "1":
        missing = " and ".join(name for name in _TORCHRUN if name not in given)
        raise ConfigError(
            f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} set, as torchrun sets "
            f"them: set {missing} as well, or WORLD_SIZE=1 for a run of one process."
        )


def _open_mpi_5() -> Membership | None:
    """Finds Open MPI 5. Its mpirun tells its own host and process id: "prterun-HOST-ID@1".

    So rank 0 must be on the host of mpirun, as JAX assumes of Open MPI 4.
    """
    name = re.match(r"prte(?:run)?-(.+)-(\d+)@", os.environ.get("PMIX_NAMESPACE", ""))
    if name is None or "OMPI_COMM_WORLD_SIZE" not in os.environ:
        return None
    count = _number("OMPI_COMM_WORLD_SIZE")
    one_host = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == str(count)
    host = "localhost" if one_host else name[1]
    # In the last 4096 ports, as JAX does it: of ids that follow each other none are equal.
    port = os.environ.get(_PORT, 65536 - 4096 + int(name[2]) % 4096)
    return Membership("Open MPI", f"{host}:{port}", count, _number("OMPI_COMM_WORLD_RANK"))


# ------------------------------------------------------------------------------ known to JAX

_NAMES = {
    "OmpiCluster": "Open MPI",
    "SlurmCluster": "Slurm",
    "GkeTpuCluster": "GKE",
    "GceTpuCluster": "the metadata of Cloud TPU",
    "K8sCluster": "Kubernetes",
}


def _detected_by_jax(timeout_seconds: int) -> Membership | None:
    """Asks JAX's detection: the methods that JAX documents for launchers of its users."""
    for cluster in clusters.ClusterEnv._cluster_types:
        if cluster.opt_in_only_method or _is_excluded(cluster.__name__):
            continue
        launcher = _NAMES.get(cluster.__name__, cluster.__name__)
        try:
            if not cluster.is_env_present():
                continue
        except Exception as error:  # No metadata server, no rights in the cluster.
            print(f"note: {launcher} did not answer ({error}).", file=sys.stderr, flush=True)
            continue
        try:
            if (count := cluster.get_process_count()) == 1:
                return None
            index = cluster.get_process_id()
            address = cluster.get_coordinator_address(
                timeout_secs=timeout_seconds, override_coordinator_port=os.environ.get(_PORT)
            )
        except Exception as error:
            is_late = "Failed to recognize coordinator address" in str(error)
            raise (LostError if is_late else ConfigError)(
                f"{launcher} has started this process, but does not give its place in the run: "
                f"{error}. Set {', '.join(EXPLICIT)} for each process (docs/pods.md), or {COUNT}=1 "
                "if it is to run alone."
            ) from error
        return Membership(launcher, address, count, index)
    return None


def _is_excluded(cluster: str) -> bool:
    """Returns whether one of JAX's detections is not to be asked.

    It would take a process that runs alone for one of several, or wait for a server's answer that
    is known.
    """
    if cluster == "GceTpuCluster" and _tpu_hosts() is not None:
        return True  # GKE's variables say it all; JAX would ask the metadata server for 3 s first.
    if cluster in ("GkeTpuCluster", "GceTpuCluster"):
        return not _may_use("tpu") or _is_single_tpu_host()
    if cluster == "K8sCluster":  # Every pod has Kubernetes' variables, those of a job an index.
        if "JOB_COMPLETION_INDEX" not in os.environ:
            return True
        if "KUBERNETES_SERVICE_HOST" in os.environ and not importlib.util.find_spec("kubernetes"):
            print(
                f"note: this pod of an indexed job runs alone. If the job's pods are one run, set "
                f"{', '.join(EXPLICIT)} (docs/pods.md), or install the package kubernetes.",
                file=sys.stderr,
                flush=True,
            )
            return True
    return False


def _may_use(*platforms: str) -> bool:
    """Returns whether JAX may use one of these platforms: JAX_PLATFORMS excludes others."""
    allowed = jax.config.values["jax_platforms"]
    return not allowed or not set(platforms).isdisjoint(allowed.split(","))


def _is_single_tpu_host() -> bool:
    """Returns whether GKE's variables say that there is one host of one slice."""
    hosts = _tpu_hosts()
    if hosts is None or "," in hosts or "TPU_PROCESS_ADDRESSES_PATH" in os.environ:
        return False
    return os.environ.get("MEGASCALE_NUM_SLICES", "1") == "1"


def _tpu_hosts() -> str | None:
    """Returns GKE's list of the hosts of a slice."""
    names = ("TPU_PROCESS_ADDRESSES_PATH", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
    return next((os.environ[name] for name in names if name in os.environ), None)


# ------------------------------------------------------------------------------------- GPUs


def _own_gpus() -> tuple[int, ...] | None:
    """Returns the GPUs of this process, if several processes of this host see the same ones.

    JAX alone would take the one with the number of the process on its host, which is wrong for one
    process with several GPUs (7 of 8 are idle) and for processes that see only their own (no such
    device).

    Raises:
      ConfigError: the GPUs cannot be divided among the processes, or the launcher's variables
        contradict each other.
    """
    if "JAX_LOCAL_DEVICE_IDS" in os.environ or not _may_use("cuda", "gpu"):
        return None
    visible = _visible_gpus()
    index, count = next(filter(None, (place() for place in _PLACES_ON_HOST)), (0, 1))
    if count == 1 or visible <= 1:
        return None
    if index >= count:
        raise ConfigError(
            f"The launcher's variables number this process {index} of {count} on its host, "
            "counted from 0: correct them, or set JAX_LOCAL_DEVICE_IDS for each process."
        )
    if visible % count:
        raise ConfigError(
            f"{count} processes of this host share {visible} GPUs: start one for each GPU or one "
            "for the host, or set JAX_LOCAL_DEVICE_IDS for each."
        )
    share = visible // count
    return tuple(range(index * share, (index + 1) * share))


def _visible_gpus() -> int:
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([name for name in named.split(",") if name])
    return len(glob.glob("/proc/driver/nvidia/gpus/*"))


def _place_by_torchrun() -> tuple[int, int] | None:
    if not {"LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= os.environ.keys():
        return None
    return _number("LOCAL_RANK"), _number("LOCAL_WORLD_SIZE")


def _place_by_mpirun() -> tuple[int, int] | None:
    if not {"OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"} <= os.environ.keys():
        return None
    return _number("OMPI_COMM_WORLD_LOCAL_RANK"), _number("OMPI_COMM_WORLD_LOCAL_SIZE")


def _place_by_srun() -> tuple[int, int] | None:
    """Slurm has the numbers of tasks of all nodes, as "8(x3),4"."""
    if not {"SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE"} <= os.environ.keys():
        return None
    if _visible_gpus() < int(os.environ.get("SLURM_GPUS_ON_NODE") or 0):
        return 0, 1  # --gpus-per-task or --gpu-bind: what it sees is its own.
    counts = []
    for count, times in re.findall(
        r"(\d+)(?:\(x(\d+)\))?", os.environ["SLURM_STEP_TASKS_PER_NODE"]
    ):
        counts += [int(count)] * int(times or 1)
    node = _number("SLURM_NODEID")
    return _number("SLURM_LOCALID"), counts[node] if node < len(counts) else 0


# (index, count) of this process among those of its host; the innermost launcher first.
_PLACES_ON_HOST: tuple[Callable[[], tuple[int, int] | None], ...] = (
    _place_by_torchrun,
    _place_by_mpirun,
    _place_by_srun,
)
