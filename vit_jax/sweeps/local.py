"""The runs of a sweep on this machine: several at a time, each with its share of the devices."""

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
from vit_jax.sweeps.attempt import Attempt, Patience
from vit_jax.sweeps.plan import PlannedRun

COMPILED = ".compiled"  # Hundreds of runs have a few dozen programs: compiled once, kept here.
_PAUSE = 0.1  # Seconds between two looks at the processes,
_LOOK = 1.0  # and between two looks at what may begin.
_MEMORY = 0.9  # What the runs on a GPU may take of its memory together.


@dataclasses.dataclass(frozen=True)
class Place:
    """A share of the machine.

    Attributes:
      cores: numbers of CPU cores.
      gpus: names of GPUs, as CUDA_VISIBLE_DEVICES has them; none: of a machine without.
      memory: share of each GPU's memory.
    """

    cores: frozenset[int]
    gpus: tuple[str, ...] = ()
    memory: float = 1.0

    @property
    def environment(self) -> dict[str, str]:
        """The variables that hold a process to its share."""
        if not self.gpus:
            return {}
        return {
            "CUDA_VISIBLE_DEVICES": ",".join(self.gpus),
            "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{self.memory:.3f}",
        }


def places(max_parallel: int) -> list[Place]:
    """Returns shares of this machine, one for each run that may run at a time.

    Cores and GPUs are dealt out evenly; more runs than GPUs share them and their memory.

    Args:
      max_parallel: at a time; 0: one for each GPU, or one on all cores where there is none.
    """
    cores, gpus = sorted(os.sched_getaffinity(0)), _gpus()
    count = max_parallel or len(gpus) or 1
    together = -(-count // len(gpus)) if gpus else 1
    return [
        Place(frozenset(_share(cores, i, count)), _share(gpus, i, count), _MEMORY / together)
        for i in range(count)
    ]


def _share(things: Sequence, i: int, count: int) -> tuple:
    """The i-th of `count` equal shares; where there are fewer things, one of them."""
    if len(things) < count:
        return (things[i % len(things)],) if things else ()
    return tuple(things[i * len(things) // count : (i + 1) * len(things) // count])


def _gpus() -> tuple[str, ...]:
    """The GPUs that JAX would find, without asking JAX, which would take their memory."""
    if os.environ.get("JAX_PLATFORMS", "cuda").split(",")[0] not in ("cuda", "gpu", ""):
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name for name in visible.split(",") if name and name != "-1")
    if not shutil.which("nvidia-smi"):
        return ()
    try:
        said = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(re.findall(r"^GPU (\d+):", said, flags=re.MULTILINE))


def run_local(
    runs: Sequence[PlannedRun], *, max_parallel: int, changed: Callable[[PlannedRun | None], None]
) -> bool:
    """Runs what is not finished, in order; returns when nothing is left that can run.

    SIGINT or SIGTERM tells the runs to save and end, and is waited for; a second one kills them. If
    this process is killed, they save and end by themselves.

    Args:
      runs: of the sweep, a branch after its trunk.
      max_parallel: at a time; see `places`.
      changed: called with each run whose record has changed, and with None now and then.

    Returns:
      Whether it went to the end; False: it was told to stop.
    """
    return _Local(runs, places(max_parallel), changed).run()


class _Local:
    def __init__(
        self,
        runs: Sequence[PlannedRun],
        free: list[Place],
        changed: Callable[[PlannedRun | None], None],
    ):
        self._free, self._changed = free, changed
        self._running: dict[str, tuple[PlannedRun, Attempt, Place]] = {}
        self._patience = Patience()
        self._by_name = {run.name: run for run in runs}
        self._waiting: list[PlannedRun] = []
        for run in runs:
            if not records.is_finished(run.workdir, record := records.read(run.workdir)):
                self._waiting.append(run)
                self._write(run, status="waiting", error="")
            elif record.status != "finished":
                self._write(run, status="finished", error="")

    def run(self) -> bool:
        with stop_signals(second_interrupts=False) as asked:
            told = False
            looked = -math.inf
            while self._waiting or self._running:
                if asked() and not told:
                    told = True
                    if self._running:
                        print(
                            "Stopping: the runs save. Once more, and they are killed.", flush=True
                        )
                    for _, attempt, _ in self._running.values():
                        attempt.stop()
                if asked() > 1:
                    for _, attempt, _ in self._running.values():
                        attempt.kill()
                ended = self._collect(stopping=told)
                if told and not self._running:
                    return False
                if not told and (ended or time.monotonic() - looked > _LOOK):
                    self._block()
                    self._start()
                    looked = time.monotonic()
                self._changed(None)
                time.sleep(_PAUSE)
        return True

    def _write(self, run: PlannedRun, **changes: object) -> None:
        records.change(
            run.workdir, name=run.name, values=run.values, branch_of=run.branch_of, **changes
        )
        self._changed(run)

    def _collect(self, *, stopping: bool) -> bool:
        """Looks which processes have ended; has one?"""
        ended = False
        for run, attempt, place in list(self._running.values()):
            end = attempt.poll()
            if end is None:
                continue
            ended = True
            del self._running[run.name]
            self._free.append(place)
            if not stopping:
                end = self._patience.conclude(run.workdir, end)
            if end.status == "stopped" and not stopping:
                self._waiting.insert(0, run)
            error = "" if end.status == "finished" else end.error
            self._write(run, status=end.status, error=error)
        return ended

    def _block(self) -> None:
        """Gives up the branches whose trunks have failed."""
        for run in list(self._waiting):
            if not can_begin(run) and (error := never_begins(run, self._by_name)):
                self._waiting.remove(run)
                self._write(run, status="blocked", error=error)

    def _start(self) -> None:
        for run in list(self._waiting):
            if not self._free:
                return
            if not can_begin(run) or _goes_on(run):
                continue
            place = self._free.pop(0)
            attempts = records.read(run.workdir).attempts + 1
            self._waiting.remove(run)
            records.forget_job(run.workdir)
            self._write(run, status="running", error="", attempts=attempts)
            environment = {**compiled_once(run), **place.environment}
            try:
                attempt = Attempt(
                    run.command, run.workdir, cores=place.cores, environment=environment
                )
            except ConfigError as error:
                self._free.append(place)
                self._write(run, status="failed", error=str(error))
                continue
            self._running[run.name] = run, attempt, place


def _goes_on(run: PlannedRun) -> bool:
    """Whether there is still a process of it: what a killed sweep has left begins, or saves."""
    return any(lock.is_held(run.workdir / name) for name in (lock.LOCK, records.LOG))


_ENDED = {
    "failed": "failed",
    "blocked": "could not begin",
    "finished": "has finished, and keeps no checkpoint of that step",
}


def can_begin(run: PlannedRun) -> bool:
    """Whether a run has a checkpoint of its own, or needs none, or its trunk's is there."""
    if run.branch_of is None or records.newest_step(run.workdir) >= 0:
        return True
    name, step = run.branch_of
    return records.has_state(run.workdir.parent / name, step)


def never_begins(run: PlannedRun, by_name: Mapping[str, PlannedRun]) -> str:
    """Why a branch that cannot begin now never can; "" if it still may.

    Args:
      run: a branch.
      by_name: the runs that are not left out.
    """
    trunk, _ = run.branch_of
    if trunk not in by_name:
        return f"{trunk}, which it goes on from, has not got there, and is left out by --only."
    status = records.read(by_name[trunk].workdir).status
    if status in _ENDED:
        return f"{trunk}, which it goes on from, {_ENDED[status]}."
    return ""


def compiled_once(run: PlannedRun) -> dict[str, str]:
    """The variables by which the runs of a sweep share what is compiled.

    By variables and not by the config: where programs are kept is no part of what a run is. Where
    the config or the environment names a folder, that one is taken.
    """
    ours = {
        "JAX_COMPILATION_CACHE_DIR": str(run.workdir.parent / COMPILED),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    return {name: value for name, value in ours.items() if name not in os.environ}
