"""Starting the processes of a multi-host run, and agreeing among them."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import ConfigError
from vit_jax.parallel.constraints import AXES


def start() -> None:
    """Joins the run's other processes, if there are any.

    Under Slurm's srun, Open MPI and GKE's TPU slices JAX finds the others by itself. Elsewhere set
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. With none of these the run has
    one process.

    Raises:
      ConfigError: the first of the three is set without the others.
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
            "num_processes": int(os.environ["JAX_NUM_PROCESSES"]),
            "process_id": int(os.environ["JAX_PROCESS_ID"]),
        }
    jax.distributed.initialize(**named)


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
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM and SIGINT only raise a flag; gives the function that reads it.

    A second SIGINT interrupts at once. Outside the main thread no signal is caught.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, frame: object) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])
        asked.set()

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
