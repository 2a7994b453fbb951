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
from vit_jax.parallel import launchers, rendezvous
from vit_jax.parallel.constraints import AXES

_exchanges = itertools.count()


def start() -> None:
    """Joins the run's other processes, if there are any. Call it before JAX has devices.

    Raises:
      ConfigError: the launcher's variables are wrong, process 0 cannot listen at its address, or
        the processes were started differently.
      LostError: a process has not arrived (vit_jax.parallel.rendezvous).
    """
    membership = launchers.find(int(rendezvous.TIMEOUT_SECONDS))
    if membership is None:
        return
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    rendezvous.meet(membership)
    jax.distributed.initialize(
        membership.address,
        membership.count,
        membership.index,
        local_device_ids=membership.gpus,
        cluster_detection_method="deactivate",  # Ours replaces it.
    )
    if membership.index == 0:
        print(
            f"joined  {membership.count} processes, found by {membership.launcher}, process 0 at "
            f"{membership.address}",
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
            f"This is process {jax.process_index()} of {jax.process_count()}, which the TPU "
            "runtime found and no launcher that vit_jax knows, so they have no coordination "
            "service. Set JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID for each, and start them again (docs/pods.md). In your own program, "
            "call vit_jax.parallel.processes.start() first."
        )
    return distributed.global_state.client


def check_alone(command: str) -> None:
    """Refuses several processes, for a command that runs in one.

    Raises:
      ConfigError: a Cloud TPU slice's runtime has joined the hosts: its devices are not all here.
    """
    if (count := jax.process_count()) > 1:
        raise ConfigError(
            f"`vit-jax {command}` runs in one process, and the TPU runtime has joined {count} "
            "hosts. Run it on a machine with one host, or with JAX_PLATFORMS=cpu."
        )


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
