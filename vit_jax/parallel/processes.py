"""Joins the processes of a multi-host run, exchanges messages, and handles stop signals."""

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import ConfigError
from vit_jax.parallel.constraints import AXES

# At its start, a process that waits for the others prints a hint and later gives up.
HINT_SECONDS, START_TIMEOUT_SECONDS = 30, 300

_exchanges = itertools.count()


def start() -> None:
    """Joins the run's other processes, if there are any. Call it before JAX has devices.

    Under Slurm's srun, Open MPI and GKE's TPU slices JAX finds the others by itself. Elsewhere set
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Otherwise the run must have one
    process: `coordination_client` refuses several that only JAX's runtime has found.

    Raises:
      ConfigError: JAX_COORDINATOR_ADDRESS is set without the other two, or one of these is not a
        valid number.
    """
    explicit = "JAX_COORDINATOR_ADDRESS" in os.environ
    # srun starts all processes of a step; a batch script alone runs as one process.
    slurm = "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    mpi = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    tpu_pod = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if not (explicit or slurm or mpi or tpu_pod):
        return
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    numbers = {}
    if explicit:
        if missing := {"JAX_NUM_PROCESSES", "JAX_PROCESS_ID"} - os.environ.keys():
            raise ConfigError(f"JAX_COORDINATOR_ADDRESS is set: set {sorted(missing)} as well.")
        numbers = {
            "num_processes": _read_number("JAX_NUM_PROCESSES"),
            "process_id": _read_number("JAX_PROCESS_ID"),
        }
        if not numbers["process_id"] < numbers["num_processes"]:
            raise ConfigError(
                "JAX_PROCESS_ID={process_id} of JAX_NUM_PROCESSES={num_processes}: the processes "
                "are numbered from 0 to JAX_NUM_PROCESSES - 1.".format(**numbers)
            )
    # JAX aborts after its time-out without saying what to check.
    timer = threading.Timer(HINT_SECONDS, _print_hint, kwargs=numbers)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            num_processes=numbers.get("num_processes"),
            process_id=numbers.get("process_id"),
            initialization_timeout=START_TIMEOUT_SECONDS,
        )
    finally:
        timer.cancel()


def _read_number(variable: str) -> int:
    text = os.environ[variable]
    if not text.isdecimal():
        raise ConfigError(f"{variable}={text!r}: it must be a whole number, 0 or more.")
    return int(text)


def _print_hint(num_processes: int | None = None, process_id: int | None = None) -> None:
    process = "This process" if process_id is None else f"Process {process_id} of {num_processes}"
    address = os.environ.get("JAX_COORDINATOR_ADDRESS", "the address that the scheduler gave")
    print(
        f"{process} has waited {HINT_SECONDS} s for the others at {address}, and ends after "
        f"{START_TIMEOUT_SECONDS} s. Are they all started, with the same address and number of "
        "processes, each with its own JAX_PROCESS_ID? Can they reach process 0 there?",
        file=sys.stderr,
        flush=True,
    )


def coordination_client() -> Any:
    """Returns the client of JAX's coordination service; None if there is one process.

    JAX has no public API for it; Orbax reads the same private module.

    Raises:
      ConfigError: there are several processes (a Cloud TPU pod's runtime makes them by itself) and
        no service. They could not agree on a config, nor end when one of them is lost.
    """
    if jax.process_count() == 1:
        return None
    if distributed.global_state.client is None:
        raise ConfigError(
            f"This is process {jax.process_index()} of {jax.process_count()}, which JAX found "
            "without a launcher that vit_jax knows, so they have no coordination service. Set "
            "JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID for each, and start them again. In your own program, call "
            "jax.distributed.initialize() first."
        )
    return distributed.global_state.client


def exchange(message: str) -> list[str]:
    """Sends a message to all processes (all-gather); returns their messages, by process index.

    A collective: every process must call it the same number of times. There is no time-out here; a
    `vit_jax.parallel.watch.Watch` ends a stalled wait.
    """
    client = coordination_client()
    if client is None:
        return [message]
    key = f"vit_jax/exchange/{next(_exchanges)}/"
    client.key_value_set(f"{key}{jax.process_index()}", message)
    client.wait_at_barrier(key, timeout_in_ms=7 * 24 * 3600 * 1000)
    messages = {int(name.rsplit("/", 1)[-1]): text for name, text in client.key_value_dir_get(key)}
    return [messages[i] for i in range(jax.process_count())]


def flag_array(value: bool, mesh: Mesh) -> jax.Array:
    """Returns each process's flag on its own devices: bool[devices], split over all of them.

    The train step takes the maximum, so that all processes stop after the same step if one of them
    gets a stop signal.
    """
    flags = flag_shape(mesh)
    assert isinstance(flags.sharding, NamedSharding), flags

    def shard(index):
        return np.full(len(range(*index[0].indices(mesh.size))), value)

    return jax.make_array_from_callback(flags.shape, flags.sharding, shard)


def flag_shape(mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Returns shape, dtype and sharding of a `flag_array`, also for devices that are not here."""
    sharding = NamedSharding(mesh, PartitionSpec(AXES))
    return jax.ShapeDtypeStruct((mesh.size,), np.bool_, sharding=sharding)


def any_flag(flags: jax.Array) -> jax.Array:
    """Whether a flag of `flag_array` is set in any process; replicated. For use inside jit."""
    return jnp.any(flags)


@contextmanager
def stop_signals(*, second_interrupts: bool) -> Iterator[Callable[[], int]]:
    """Counts SIGTERM and SIGINT inside the context; yields a function that returns the count.

    Outside the main thread no signal is caught.

    Args:
      second_interrupts: whether a second SIGINT interrupts at once.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def count(number: int, frame: object) -> None:
        if second_interrupts and number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])
        caught.append(number)

    for number in before:
        signal.signal(number, count)
    try:
        yield lambda: len(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
