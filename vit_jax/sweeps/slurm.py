"""The runs of a sweep as jobs of Slurm, through submitit: pip install submitit.

Runs that depend on nothing are one job array; the branches of a trunk are an array that begins when
the trunk has ended well. A job that runs out of time, or makes room for another, saves, and goes
back into the queue by itself. This process only submits and watches: without it the jobs go on, and
the same command watches them again.
"""

import dataclasses
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vit_jax.errors import ConfigError, VitJaxError
from vit_jax.parallel.processes import stop_signals
from vit_jax.sweeps import record as records
from vit_jax.sweeps.attempt import Attempt, End, Patience
from vit_jax.sweeps.local import can_begin, compiled_once, never_begins
from vit_jax.sweeps.plan import PlannedRun

JOBS = ".slurm"  # In the sweep's folder: what submitit keeps, and what the jobs print.
# A job is told to save this many seconds before its time limit, or a third of the limit before.
_WARNED = 120
_LOOK = 5.0  # Seconds between two looks at the queue.
_PAUSE = 0.2
_OPEN = ("waiting", "running", "stopped")
_GRACE = 600.0  # Seconds that Slurm may take to end a job that it has told to end.


class Ended(Exception):
    """A run failed: so does its job, and what depends on it does not begin."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a job executes: one run, to its end.

    Attributes:
      run: that it is.
      environment: variables of the run's process.
      patience: how often it was stopped without getting further, over all starts of the job.
    """

    run: PlannedRun
    environment: Mapping[str, str]
    patience: Patience

    def __call__(self) -> None:
        """Runs it, in a process of its own.

        Raises:
          Ended: it failed.
        """
        turn = _Turn(self)
        object.__setattr__(self, "_turn", turn)  # For `checkpoint`, which comes as a signal.
        turn.play()

    def checkpoint(self) -> Any:
        """Called by submitit shortly before the job's time is over: saves, to go on later."""
        import submitit

        self._turn.stop()
        end = self._turn.conclude()
        if end.status == "finished":  # At that very moment.
            sys.exit(0)
        # With None submitit gives up, and the job fails.
        again = submitit.helpers.DelayedSubmission(dataclasses.replace(self))
        return again if end.status == "stopped" else None


class _Turn:
    """A job, from one start to the end or to the next requeueing.

    Its thread waits for the process. Signals come to the main thread, at any moment: it must not
    hold a lock then, so it only looks at attributes.
    """

    def __init__(self, job: Job):
        self._job, self._run = job, job.run
        self._attempt: Attempt | None = None
        self._end: End | None = None
        self._told = 0.0  # When to stop.

    def play(self) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: self.stop())
        while True:
            self._end, self._attempt = None, None
            attempts = records.read(self._run.workdir).attempts + 1
            records.change(self._run.workdir, status="running", error="", attempts=attempts)
            threading.Thread(target=self._wait).start()
            end = self.conclude()
            if end.status == "finished":
                return
            if end.status == "failed":
                raise Ended(end.error)
            # Told by Slurm, which is about to end this job and to requeue it, if it is to.
            while self._told and time.monotonic() < self._told + _GRACE:
                time.sleep(_PAUSE)
            self._told = 0.0

    def conclude(self) -> End:
        """Waits for the process to end, and writes down what became of the run."""
        while self._end is None:
            time.sleep(_PAUSE)
        end = self._job.patience.conclude(self._run.workdir, self._end)
        error = "" if end.status == "finished" else end.error
        records.change(self._run.workdir, status=end.status, error=error)
        return end

    def stop(self) -> None:
        self._told = time.monotonic()
        if self._attempt is not None:
            self._attempt.stop()

    def _wait(self) -> None:
        """Starts the process and waits for it: it ends with the thread that started it."""
        try:
            self._attempt = Attempt(
                self._run.command, self._run.workdir, environment=self._job.environment
            )
            if self._told:  # While it was started.
                self._attempt.stop()
            self._end = self._attempt.wait()
        except VitJaxError as error:
            self._end = End("failed", str(error))


def run_slurm(
    runs: Sequence[PlannedRun],
    *,
    max_parallel: int,
    minutes: int,
    options: Mapping[str, Any],
    changed: Callable[[PlannedRun | None], None],
) -> bool:
    """Submits what is neither finished nor queued, and watches until all have ended.

    SIGINT or SIGTERM ends the watching alone.

    Args:
      runs: of the sweep, a branch after its trunk; all in one folder, which all nodes see.
      max_parallel: jobs of an array that run at a time; 0: as Slurm likes.
      minutes: after which a job is requeued.
      options: more of every job, by sbatch's names: partition, cpus_per_task, gpus_per_node.
      changed: called with each run whose record has changed, and with None now and then.

    Returns:
      Whether it went to the end; False: it was told to stop watching.

    Raises:
      ConfigError: submitit or Slurm is not there, or Slurm refuses a job.
    """
    try:
        import submitit
    except ImportError as error:
        raise ConfigError(
            '--launcher=slurm needs submitit. Install it with: pip install -e ".[slurm]".'
        ) from error
    folder = runs[0].workdir.parent
    try:
        executor = submitit.SlurmExecutor(folder / JOBS, max_num_timeout=10**6)
    except RuntimeError as error:
        raise ConfigError(
            "--launcher=slurm: there is no Slurm here (no srun). Call it where you call sbatch."
        ) from error
    executor.update_parameters(
        **options,
        time=minutes,
        signal_delay_s=min(_WARNED, 20 * minutes),
        array_parallelism=max_parallel or 1000,
        stderr_to_stdout=True,
    )
    watch = _Watch(runs, changed)
    with stop_signals(second_interrupts=False) as asked:
        watch.submit(executor)
        while watch.look():
            for _ in range(int(_LOOK / _PAUSE)):
                if asked():
                    print("The jobs go on: the same command watches them again; scancel ends them.")
                    return False
                time.sleep(_PAUSE)
    return True


class _Watch:
    """The runs of a sweep, and the jobs that they are."""

    def __init__(self, runs: Sequence[PlannedRun], changed: Callable[[PlannedRun | None], None]):
        self._runs, self._changed = runs, changed
        self._by_name = {run.name: run for run in runs}
        self._missed: set[str] = set()
        self._seen = {run.name: records.read(run.workdir) for run in runs}

    def submit(self, executor: Any) -> None:
        """Submits the runs that are neither finished nor in the queue; each trunk's together."""
        queued = _queue()
        arrays: dict[str | None, list[PlannedRun]] = {}  # By the run that they depend on.
        for run in self._runs:
            record = records.read(run.workdir)
            if records.is_finished(run.workdir, record):
                self._write(run, status="finished", error="")
            elif records.read_job(run.workdir) in queued:
                continue
            else:
                trunk = None if can_begin(run) else run.branch_of[0]
                arrays.setdefault(trunk, []).append(run)
        for trunk, runs in arrays.items():
            if trunk is not None and (error := never_begins(runs[0], self._by_name)):
                for run in runs:
                    self._write(run, status="blocked", error=error)
                continue
            self._submit(executor, runs, trunk)

    def _submit(self, executor: Any, runs: Sequence[PlannedRun], trunk: str | None) -> None:
        more: dict[str, Any] = {"requeue": True}
        if trunk is not None:
            job = records.read_job(self._by_name[trunk].workdir)
            more |= {"dependency": f"afterok:{job}", "kill-on-invalid-dep": "yes"}
        name = f"{runs[0].workdir.parent.name}"
        executor.update_parameters(job_name=name, additional_parameters=more)
        for run in runs:
            self._write(run, status="waiting", error="")
        jobs = [Job(run, compiled_once(run), Patience()) for run in runs]
        try:
            with executor.batch():
                submitted = [executor.submit(job) for job in jobs]
        except Exception as error:  # submitit's own and subprocess's.
            raise ConfigError(f"Slurm did not take the jobs: {error}") from error
        for run, job in zip(runs, submitted, strict=True):
            records.write_job(run.workdir, job.job_id)
            self._changed(run)

    def look(self) -> bool:
        """Looks what has become of the jobs; is there one that has not ended?"""
        queued = _queue()
        open_runs = 0
        for run in self._runs:
            if records.read(run.workdir).status in _OPEN:
                if records.read_job(run.workdir) in queued:
                    open_runs += 1
                    self._missed.discard(run.name)
                elif run.name not in self._missed:
                    self._missed.add(run.name)  # What the job wrote at its end may be under way.
                    open_runs += 1
                else:
                    self._gone(run)
            if records.read(run.workdir) != self._seen[run.name]:
                self._seen[run.name] = records.read(run.workdir)
                self._changed(run)
        self._changed(None)
        return open_runs > 0

    def _gone(self, run: PlannedRun) -> None:
        """A job is no longer in the queue, and did not say why."""
        trunk = run.branch_of and self._by_name.get(run.branch_of[0])
        if trunk and records.read(trunk.workdir).status in ("failed", "blocked"):
            error = f"{trunk.name}, which it goes on from, failed or could not begin."
            self._write(run, status="blocked", error=error)
        else:
            error = (
                f"Its Slurm job {records.read_job(run.workdir)} is gone: it was cancelled or "
                "killed. The same command submits it again."
            )
            self._write(run, status="failed", error=error)

    def _write(self, run: PlannedRun, **changes: Any) -> None:
        records.change(
            run.workdir, name=run.name, values=run.values, branch_of=run.branch_of, **changes
        )


def _queue() -> set[str]:
    """The jobs of this user that wait or run, as 12 or 12_3.

    Raises:
      ConfigError: Slurm does not answer.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"Slurm does not answer ({error}). The jobs are as they were.") from error
    return set(said.stdout.split())
