"""Starting the processes of a multi-host run, and agreeing among them."""

import itertools
import os
import re
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

# Seconds that a process waits at its start for the others, before it says so and before it ends.
REMINDER_SECONDS, PATIENCE_SECONDS = 30, 300

_exchanges = itertools.count()


def start() -> None:
    """Joins the run's other processes, if there are any. Call it before JAX has devices.

    Under Slurm's srun, Open MPI and GKE's TPU slices JAX finds the others by itself. Elsewhere set
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. With none of these the run must
    have one process: `coordination_client` refuses more, which only JAX knows of.

    Raises:
      ConfigError: the first of the three is set without the others, or one is no such number.
    """
    explicit = "JAX_COORDINATOR_ADDRESS" in os.environ
    # Only a step that srun started has its peers running; a batch script alone does not.
    slurm = "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    mpi = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    tpu_pod = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if not (explicit or slurm or mpi or tpu_pod):
        return
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    named = {}
    if explicit:
        if missing := {"JAX_NUM_PROCESSES", "JAX_PROCESS_ID"} - os.environ.keys():
            raise ConfigError(f"JAX_COORDINATOR_ADDRESS is set: set {sorted(missing)} as well.")
        named = {
            "num_processes": _number("JAX_NUM_PROCESSES"),
            "process_id": _number("JAX_PROCESS_ID"),
        }
        if not named["process_id"] < named["num_processes"]:
            raise ConfigError(
                "JAX_PROCESS_ID={process_id} of JAX_NUM_PROCESSES={num_processes}: the processes "
                "are numbered from 0 to one less than there are.".format(**named)
            )
    # Who has not come yet is not known here, and JAX ends a process that waits in vain.
    reminder = threading.Timer(REMINDER_SECONDS, _remind, kwargs=named)
    reminder.daemon = True
    reminder.start()
    try:
        jax.distributed.initialize(**named, initialization_timeout=PATIENCE_SECONDS)
    finally:
        reminder.cancel()


def give_threads_to_simulated_devices() -> None:
    """Lets XLA have several threads for each simulated CPU device, before it starts.

    It takes as many as there are devices or cores. A device that waits in a collective holds its
    thread; whatever else needs one then (a copy, another program) can leave the last device
    without, and all wait until XLA gives up after 40 s and aborts. XLA reads their number from
    the variable NPROC.
    """
    flag = re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if flag and int(flag[1]) > 1:
        os.environ.setdefault("NPROC", str(4 * int(flag[1])))


def _number(variable: str) -> int:
    text = os.environ[variable]
    if not text.isdecimal():
        raise ConfigError(f"{variable}={text!r}: it must be a whole number, 0 or more.")
    return int(text)


def _remind(num_processes: int | None = None, process_id: int | None = None) -> None:
    who = "This process" if process_id is None else f"Process {process_id} of {num_processes}"
    where = os.environ.get("JAX_COORDINATOR_ADDRESS", "the address that the scheduler gave")
    print(
        f"{who} has waited {REMINDER_SECONDS} s for the others at {where}, and ends after "
        f"{PATIENCE_SECONDS} s. Are they all started, with the same address and number of "
        "processes, each with its own JAX_PROCESS_ID? Can they reach process 0 there?",
        file=sys.stderr,
        flush=True,
    )


def coordination_client() -> Any:
    """The client of JAX's coordination service, None if there is one process.

    JAX has no public name for it; Orbax, too, takes it from here.

    Raises:
      ConfigError: there are several processes, as a Cloud TPU pod's runtime makes them by itself,
        and no service. They could not agree on a config, nor end when one of them is lost.
    """
    if jax.process_count() == 1:
        return None
    if distributed.global_state.client is None:
        raise ConfigError(
            f"This is process {jax.process_index()} of {jax.process_count()}, which JAX found "
            "without a launcher that vit_jax knows, so they have no coordination service. Set "
            "JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID for each, and start them again. In a program of your own, call "
            "jax.distributed.initialize() first."
        )
    return distributed.global_state.client


def exchange(word: str) -> list[str]:
    """What each process says, in their order; waits until all have spoken.

    Every process must come by here the same number of times. There is no time-out: a
    `vit_jax.parallel.watch.Watch` ends a wait that is in vain.
    """
    client = coordination_client()
    if client is None:
        return [word]
    key = f"vit_jax/exchange/{next(_exchanges)}/"
    client.key_value_set(f"{key}{jax.process_index()}", word)
    client.wait_at_barrier(key, timeout_in_ms=7 * 24 * 3600 * 1000)
    said = {int(name.rsplit("/", 1)[-1]): text for name, text in client.key_value_dir_get(key)}
    return [said[i] for i in range(jax.process_count())]


def flag_array(value: bool, mesh: Mesh) -> jax.Array:
    """A flag of each process, on its own devices: bool[devices], split over all of them.

    The train step takes the maximum, so that all processes learn in the same step that one of
    them was told to stop.
    """
    sharding = NamedSharding(mesh, PartitionSpec(AXES))
    return jax.make_array_from_callback(
        (mesh.size,),
        sharding,
        lambda index: np.full(len(range(*index[0].indices(mesh.size))), value),
    )


def any_flag(flags: jax.Array) -> jax.Array:
    """Whether any process's flag of `flag_array` is set; replicated. For use inside jit."""
    return jnp.any(flags)


@contextmanager
def stop_signals(*, second_interrupts: bool) -> Iterator[Callable[[], int]]:
    """Inside, SIGTERM and SIGINT are only counted; gives the function that returns the count.

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
