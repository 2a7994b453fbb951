"""Executes the runs of a sweep on this machine, in parallel, each with a share of the devices."""

import dataclasses
import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from vit_jax.errors import ConfigError
from vit_jax.parallel.processes import stop_signals
from vit_jax.rundir import lock
from vit_jax.sweeps import record as records
from vit_jax.sweeps.attempt import Attempt, RetryLimit
from vit_jax.sweeps.plan import PlannedRun

CACHE = ".compiled"  # Compilation cache: hundreds of runs share a few dozen programs.
_POLL_SECONDS = 0.1  # Between two checks for ended processes.
_SCHEDULE_SECONDS = 1.0  # Between two checks for runs that can start.
_GPU_MEMORY_SHARE = 0.9  # Share of a GPU's memory that all runs on it may use together.


@dataclasses.dataclass(frozen=True)
class Slot:
    """The share of the machine for one run at a time.

    Attributes:
      cores: ids of CPU cores.
      gpus: GPUs as in CUDA_VISIBLE_DEVICES; empty on a machine without.
      memory: share of each GPU's memory.
    """

    cores: frozenset[int]
    gpus: tuple[str, ...] = ()
    memory: float = 1.0

    @property
    def environment(self) -> dict[str, str]:
        """Returns the environment variables that limit a process to this slot."""
        if not self.gpus:
            return {}
        return {
            "CUDA_VISIBLE_DEVICES": ",".join(self.gpus),
            "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{self.memory:.3f}",
        }


def slots(max_parallel: int) -> list[Slot]:
    """Divides this machine into slots, one for each concurrent run.

    Cores and GPUs are divided evenly. If there are more runs than GPUs, runs share a GPU and its
    memory.

    Args:
      max_parallel: number of slots; 0: one for each GPU, or one with all cores if there is none.
    """
    cores, gpus = sorted(os.sched_getaffinity(0)), _gpus()
    count = max_parallel or len(gpus) or 1
    runs_per_gpu = -(-count // len(gpus)) if gpus else 1
    return [
        Slot(
            frozenset(_share(cores, i, count)),
            _share(gpus, i, count),
            _GPU_MEMORY_SHARE / runs_per_gpu,
        )
        for i in range(count)
    ]


def _share(things: Sequence, i: int, count: int) -> tuple:
    """Returns the i-th of `count` equal shares, or one thing if there are fewer than `count`."""
    if len(things) < count:
        return (things[i % len(things)],) if things else ()
    return tuple(things[i * len(things) // count : (i + 1) * len(things) // count])


def _gpus() -> tuple[str, ...]:
    """Returns the GPUs that JAX would find, without initialising JAX, which allocates memory."""
    if os.environ.get("JAX_PLATFORMS", "cuda").split(",")[0] not in ("cuda", "gpu", ""):
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name for name in visible.split(",") if name and name != "-1")
    if not shutil.which("nvidia-smi"):
        return ()
    try:
        output = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(re.findall(r"^GPU (\d+):", output, flags=re.MULTILINE))


def run_local(
    runs: Sequence[PlannedRun], *, max_parallel: int, changed: Callable[[PlannedRun | None], None]
) -> bool:
    """Executes the unfinished runs, in order; returns when no run is left that can start.

    On SIGINT or SIGTERM the runs save and end; a second signal kills them. If this process is
    killed, they save and end by themselves.

    Args:
      runs: the runs of the sweep, a branch after its trunk.
      max_parallel: number of concurrent runs, see `slots`.
      changed: called with each run whose record has changed, and regularly with None.

    Returns:
      True at the end; False if a signal stopped the sweep.
    """
    return _Scheduler(runs, slots(max_parallel), changed).run()


class _Scheduler:
    """Starts runs in free slots, and records how they end."""

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        free: list[Slot],
        changed: Callable[[PlannedRun | None], None],
    ):
        self._free, self._changed = free, changed
        self._running: dict[str, tuple[PlannedRun, Attempt, Slot]] = {}
        self._retry_limit = RetryLimit()
        self._by_name = {run.name: run for run in runs}
        self._waiting: list[PlannedRun] = []
        for run in runs:
            if not records.is_finished(run.workdir, record := records.read(run.workdir)):
                self._waiting.append(run)
                self._write(run, status="waiting", error="")
            elif record.status != "finished":
                self._write(run, status="finished", error="")

    def run(self) -> bool:
        with stop_signals(second_interrupts=False) as signal_count:
            stopping = False
            last_scheduled = -math.inf
            while self._waiting or self._running:
                if signal_count() and not stopping:
                    stopping = True
                    if self._running:
                        print(
                            "Stopping: the runs save and end. A second signal kills them.",
                            flush=True,
                        )
                    for _, attempt, _ in self._running.values():
                        attempt.stop()
                if signal_count() > 1:
                    for _, attempt, _ in self._running.values():
                        attempt.kill()
                any_ended = self._reap(stopping=stopping)
                if stopping and not self._running:
                    return False
                is_due = time.monotonic() - last_scheduled > _SCHEDULE_SECONDS
                if not stopping and (any_ended or is_due):
                    self._block()
                    self._start()
                    last_scheduled = time.monotonic()
                self._changed(None)
                time.sleep(_POLL_SECONDS)
        return True

    def _write(self, run: PlannedRun, **changes: object) -> None:
        records.change(
            run.workdir, name=run.name, values=run.values, branch_of=run.branch_of, **changes
        )
        self._changed(run)

    def _reap(self, *, stopping: bool) -> bool:
        """Records the processes that have ended; returns whether there are any."""
        any_ended = False
        for run, attempt, slot in list(self._running.values()):
            end = attempt.poll()
            if end is None:
                continue
            any_ended = True
            del self._running[run.name]
            self._free.append(slot)
            if not stopping:
                end = self._retry_limit.apply(run.workdir, end)
            if end.status == "stopped" and not stopping:
                self._waiting.insert(0, run)
            error = "" if end.status == "finished" else end.error
            self._write(run, status=end.status, error=error)
        return any_ended

    def _block(self) -> None:
        """Marks branches as blocked whose trunks have failed."""
        for run in list(self._waiting):
            if not can_start(run) and (error := blocked_reason(run, self._by_name)):
                self._waiting.remove(run)
                self._write(run, status="blocked", error=error)

    def _start(self) -> None:
        for run in list(self._waiting):
            if not self._free:
                return
            if not can_start(run) or _is_alive(run):
                continue
            slot = self._free.pop(0)
            attempts = records.read(run.workdir).attempts + 1
            self._waiting.remove(run)
            records.forget_job(run.workdir)
            self._write(run, status="running", error="", attempts=attempts)
            environment = {**cache_environment(run), **slot.environment}
            try:
                attempt = Attempt(
                    run.command, run.workdir, cores=slot.cores, environment=environment
                )
            except ConfigError as error:
                self._free.append(slot)
                self._write(run, status="failed", error=str(error))
                continue
            self._running[run.name] = run, attempt, slot


def _is_alive(run: PlannedRun) -> bool:
    """Returns whether a process of the run, left by a killed sweep, still starts or saves."""
    return any(lock.is_held(run.workdir / name) for name in (lock.LOCK, records.LOG))


_TRUNK_ENDS = {
    "failed": "failed",
    "blocked": "could not start",
    "finished": "has finished, and keeps no checkpoint of that step",
}


def can_start(run: PlannedRun) -> bool:
    """Returns whether a run is no branch, has a checkpoint, or its trunk has the state it needs."""
    if run.branch_of is None or records.newest_step(run.workdir) >= 0:
        return True
    name, step = run.branch_of
    return records.has_state(run.workdir.parent / name, step)


def blocked_reason(run: PlannedRun, by_name: Mapping[str, PlannedRun]) -> str:
    """Returns why a branch that cannot start now never can; "" if it can start later.

    Args:
      run: a branch.
      by_name: the runs that --only selects.
    """
    assert run.branch_of is not None
    trunk, _ = run.branch_of
    if trunk not in by_name:
        return f"Its trunk {trunk} has not reached that step, and --only excludes it."
    status = records.read(by_name[trunk].workdir).status
    if status in _TRUNK_ENDS:
        return f"Its trunk {trunk} {_TRUNK_ENDS[status]}."
    return ""


def cache_environment(run: PlannedRun) -> dict[str, str]:
    """Returns variables with which the runs of a sweep share a compilation cache.

    These are variables because the location of the cache is no part of a run's config. A folder
    that the config or the environment names takes precedence.
    """
    variables = {
        "JAX_COMPILATION_CACHE_DIR": str(run.workdir.parent / CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    return {name: value for name, value in variables.items() if name not in os.environ}
