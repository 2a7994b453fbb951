"""Runs the runs of a sweep."""

import fnmatch
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from vit_jax.errors import ConfigError, ExitCode, did_you_mean, printable
from vit_jax.rundir import workdir as workdirs
from vit_jax.rundir.lock import lock
from vit_jax.sweeps import record as records
from vit_jax.sweeps.board import Board
from vit_jax.sweeps.costs import total_train_flops
from vit_jax.sweeps.local import run_local
from vit_jax.sweeps.plan import PlannedRun, check_unchanged
from vit_jax.sweeps.slurm import run_slurm
from vit_jax.sweeps.table import PARQUET, collect

_COLLECT_SECONDS = 60.0  # Between two writes of the table while runs are active.


def select(names: Sequence[str], pattern: str) -> list[str]:
    """Returns the names of runs that match a pattern such as "*seed=0*"; "": all.

    Raises:
      ConfigError: no name matches.
    """
    chosen = [name for name in names if fnmatch.fnmatchcase(name, pattern or "*")]
    if not chosen:
        raise ConfigError(
            f"--only={pattern} matches no run: it must match a whole name, such as *seed=0*. "
            + did_you_mean(pattern, names[:20])
        )
    return chosen


def sweep(
    runs: Sequence[PlannedRun],
    folder: pathlib.Path,
    *,
    max_parallel: int = 0,
    slurm: Mapping[str, Any] | None = None,
) -> int:
    """Runs the unfinished runs of a sweep.

    Args:
      runs: the runs, from `vit_jax.sweeps.plan.plan_runs`.
      folder: the folder of the sweep.
      max_parallel: maximum number of concurrent runs. 0: locally one for each GPU, or one; with
        Slurm no limit.
      slurm: `minutes` and `options` of `vit_jax.sweeps.slurm.run_slurm`; None: on this machine.

    Returns:
      The exit code.

    Raises:
      VitJaxError: a run began with another config, or another sweep is active in the folder.
    """
    workdirs.make(folder)
    with lock(epath.Path(folder)):
        for run in runs:
            check_unchanged(run)
        work = {run.name: total_train_flops(run) for run in runs}
        collected = time.monotonic()

        def changed(run: PlannedRun | None) -> None:
            nonlocal collected
            board.changed(run)
            if run is not None and time.monotonic() - collected > _COLLECT_SECONDS:
                collect(folder)
                collected = time.monotonic()

        with Board(runs, work=work) as board:
            if slurm is None:
                completed = run_local(runs, max_parallel=max_parallel, changed=changed)
            else:
                completed = run_slurm(runs, max_parallel=max_parallel, **slurm, changed=changed)
            board.show()
        collect(folder)
    return conclude(runs, folder, completed=completed)


def conclude(runs: Sequence[PlannedRun], folder: pathlib.Path, *, completed: bool) -> int:
    """Prints the failed runs and a summary; returns the exit code."""
    run_records = {run.name: records.read(run.workdir) for run in runs}
    for run in runs:
        record = run_records[run.name]
        if record.status in ("failed", "blocked"):
            print(printable(f"{run.name} {record.status}: {record.error}"))
            if record.status == "failed":
                print(f"  Log: {run.workdir / records.LOG}")
    finished = sum(record.status == "finished" for record in run_records.values())
    print(f"{finished} of {len(runs)} runs are finished. Table: {folder / PARQUET}")
    if finished == len(runs):
        return 0
    if completed:
        return ExitCode.FAILED
    print("Stopped: the same command resumes the sweep.")
    return ExitCode.STOPPED
