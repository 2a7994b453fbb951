"""Executes the runs of a sweep as Slurm jobs, through submitit: pip install submitit.

Independent runs form one job array. The branches of a trunk form an array that starts when the
trunk has succeeded. A job that runs out of time or is preempted saves and requeues itself. This
process only submits and monitors: without it the jobs continue, and the same command monitors them
again.
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
from vit_jax.sweeps.attempt import Attempt, End, RetryLimit
from vit_jax.sweeps.local import blocked_reason, cache_environment, can_start
from vit_jax.sweeps.plan import PlannedRun

JOBS = ".slurm"  # Folder in the sweep's folder for submitit's files and the output of the jobs.
# A job gets a signal this many seconds before its time limit, or a third of the limit before it.
_WARNING_SECONDS = 120
_QUEUE_SECONDS = 5.0  # Between two queries of the queue.
_POLL_SECONDS = 0.2
_UNFINISHED = ("waiting", "running", "stopped")
_GRACE_SECONDS = 600.0  # Slurm may take this long to end a job after signalling it.


class RunFailed(Exception):
    """A run failed: its job fails too, and jobs that depend on it do not start."""


@dataclasses.dataclass(frozen=True)
class Job:
    """The callable of a job: executes one run to its end.

    Attributes:
      run: the run.
      environment: environment variables of the run's process.
      retry_limit: counts ends without progress, over all starts of the job.
    """

    run: PlannedRun
    environment: Mapping[str, str]
    retry_limit: RetryLimit
    _execution: "_Execution" = dataclasses.field(init=False, repr=False, compare=False)

    def __call__(self) -> None:
        """Executes the run in a child process.

        Raises:
          RunFailed: the run failed.
        """
        execution = _Execution(self)
        # A signal handler calls `checkpoint`, which needs it.
        object.__setattr__(self, "_execution", execution)
        execution.run()

    def checkpoint(self) -> Any:
        """Saves the run; submitit calls this shortly before the job's time limit.

        Returns:
          The job to requeue; None: the job fails.
        """
        import submitit

        self._execution.stop()
        end = self._execution.conclude()
        if end.status == "finished":
            sys.exit(0)
        requeued = submitit.helpers.DelayedSubmission(dataclasses.replace(self))
        return requeued if end.status == "stopped" else None


class _Execution:
    """The execution of a job, from one start to its end or to the next requeueing.

    A thread waits for the process. Signals interrupt the main thread at any moment, so it must hold
    no lock: it communicates through attributes only.
    """

    def __init__(self, job: Job):
        self._job, self._run = job, job.run
        self._attempt: Attempt | None = None
        self._end: End | None = None
        self._stop_time = 0.0  # When `stop` was called; 0: it was not.

    def run(self) -> None:
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
                raise RunFailed(end.error)
            # After a signal Slurm is about to end this job, and to requeue it if necessary.
            while self._stop_time and time.monotonic() < self._stop_time + _GRACE_SECONDS:
                time.sleep(_POLL_SECONDS)
            self._stop_time = 0.0

    def conclude(self) -> End:
        """Waits for the process to end, and records how it ended."""
        while self._end is None:
            time.sleep(_POLL_SECONDS)
        end = self._job.retry_limit.apply(self._run.workdir, self._end)
        error = "" if end.status == "finished" else end.error
        records.change(self._run.workdir, status=end.status, error=error)
        return end

    def stop(self) -> None:
        self._stop_time = time.monotonic()
        if self._attempt is not None:
            self._attempt.stop()

    def _wait(self) -> None:
        """Starts the process and waits; the process would be stopped if this thread ended."""
        try:
            self._attempt = Attempt(
                self._run.command, self._run.workdir, environment=self._job.environment
            )
            if self._stop_time:  # `stop` was called before the process existed.
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
    """Submits runs that are neither finished nor queued, and monitors them until all have ended.

    SIGINT or SIGTERM ends only the monitoring.

    Args:
      runs: the runs of the sweep, a branch after its trunk; all in one folder, shared by all nodes.
      max_parallel: concurrent jobs of an array; 0: no limit.
      minutes: time limit of a job, after which it is requeued.
      options: options of every job, by sbatch's names: partition, cpus_per_task, gpus_per_node.
      changed: called with each run whose record has changed, and regularly with None.

    Returns:
      True at the end; False if a signal ended the monitoring.

    Raises:
      ConfigError: submitit or Slurm is not installed, or Slurm refuses a job.
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
            "--launcher=slurm: Slurm is not installed here (no srun). Run this on a login node."
        ) from error
    executor.update_parameters(
        **options,
        time=minutes,
        signal_delay_s=min(_WARNING_SECONDS, 20 * minutes),
        array_parallelism=max_parallel or 1000,
        stderr_to_stdout=True,
    )
    monitor = _JobMonitor(runs, changed)
    with stop_signals(second_interrupts=False) as signal_count:
        monitor.submit(executor)
        while monitor.poll():
            for _ in range(int(_QUEUE_SECONDS / _POLL_SECONDS)):
                if signal_count():
                    print("The jobs continue: the same command monitors them; scancel ends them.")
                    return False
                time.sleep(_POLL_SECONDS)
    return True


class _JobMonitor:
    """Submits the runs of a sweep as jobs, and follows the jobs."""

    def __init__(self, runs: Sequence[PlannedRun], changed: Callable[[PlannedRun | None], None]):
        self._runs, self._changed = runs, changed
        self._by_name = {run.name: run for run in runs}
        self._missing: set[str] = set()  # Runs whose job was not in the last queue.
        self._last_records = {run.name: records.read(run.workdir) for run in runs}

    def submit(self, executor: Any) -> None:
        """Submits the runs that are neither finished nor queued; one array for each trunk."""
        queued = _queue()
        arrays: dict[str | None, list[PlannedRun]] = {}  # By trunk; None: independent runs.
        for run in self._runs:
            record = records.read(run.workdir)
            if records.is_finished(run.workdir, record):
                self._write(run, status="finished", error="")
            elif records.read_job(run.workdir) in queued:
                continue
            else:
                branch = None if can_start(run) else run.branch_of
                trunk = None if branch is None else branch[0]
                arrays.setdefault(trunk, []).append(run)
        for trunk, runs in arrays.items():
            if trunk is not None and (error := blocked_reason(runs[0], self._by_name)):
                for run in runs:
                    self._write(run, status="blocked", error=error)
                continue
            self._submit(executor, runs, trunk)

    def _submit(self, executor: Any, runs: Sequence[PlannedRun], trunk: str | None) -> None:
        parameters: dict[str, Any] = {"requeue": True}
        if trunk is not None:
            job = records.read_job(self._by_name[trunk].workdir)
            parameters |= {"dependency": f"afterok:{job}", "kill-on-invalid-dep": "yes"}
        name = runs[0].workdir.parent.name
        executor.update_parameters(job_name=name, additional_parameters=parameters)
        for run in runs:
            self._write(run, status="waiting", error="")
        jobs = [Job(run, cache_environment(run), RetryLimit()) for run in runs]
        try:
            with executor.batch():
                submitted = [executor.submit(job) for job in jobs]
        except Exception as error:  # An error of submitit or subprocess.
            raise ConfigError(f"Slurm did not accept the jobs: {error}") from error
        for run, job in zip(runs, submitted, strict=True):
            records.write_job(run.workdir, job.job_id)
            self._changed(run)

    def poll(self) -> bool:
        """Updates the records from the queue; returns whether a job has not ended."""
        queued = _queue()
        unfinished = 0
        for run in self._runs:
            if records.read(run.workdir).status in _UNFINISHED:
                if records.read_job(run.workdir) in queued:
                    unfinished += 1
                    self._missing.discard(run.name)
                elif run.name not in self._missing:
                    # The record that the job wrote at its end may not be visible yet.
                    self._missing.add(run.name)
                    unfinished += 1
                else:
                    self._record_lost_job(run)
            if records.read(run.workdir) != self._last_records[run.name]:
                self._last_records[run.name] = records.read(run.workdir)
                self._changed(run)
        self._changed(None)
        return unfinished > 0

    def _record_lost_job(self, run: PlannedRun) -> None:
        """Records the end of a job that left the queue without recording it."""
        trunk = run.branch_of and self._by_name.get(run.branch_of[0])
        if trunk and records.read(trunk.workdir).status in ("failed", "blocked"):
            error = f"Its trunk {trunk.name} failed or could not start."
            self._write(run, status="blocked", error=error)
        else:
            error = (
                f"Its Slurm job {records.read_job(run.workdir)} is gone: it was cancelled or "
                "killed. The same command submits the run again."
            )
            self._write(run, status="failed", error=error)

    def _write(self, run: PlannedRun, **changes: Any) -> None:
        records.change(
            run.workdir, name=run.name, values=run.values, branch_of=run.branch_of, **changes
        )


def _queue() -> set[str]:
    """Returns the ids of this user's pending and running jobs, as 12 or 12_3.

    Raises:
      ConfigError: Slurm does not respond.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"Slurm does not respond ({error}). The jobs are unaffected.") from error
    return set(result.stdout.split())
