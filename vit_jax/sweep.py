"""Runs a sweep: each run by `vit_jax.train`, on this machine or as a Slurm job.

    python -m vit_jax.sweep --config=configs/scaling/data_x_params.py --workdir=runs/study --dry_run
    python -m vit_jax.sweep --config=configs/scaling/data_x_params.py --workdir=runs/study

Besides get_config(), the config file defines sweep(), which returns a dict of changed keys for each
run (vit_jax.sweeps.grids). Each run has a folder with its name in the sweep's folder. The same
command resumes a sweep: it skips finished runs, resumes interrupted ones and retries failed ones.
On Ctrl-C and SIGTERM the runs save and end. A failed run does not stop the others.

The results are in runs.parquet and runs.csv, with a row for each run and evaluation
(vit_jax.sweeps.table). --collect only writes these files, at any time.

Exit codes: 0 all runs are finished; 1 some failed; 2 an error that the message explains; 75 stopped
by a signal: the same command resumes the sweep.
"""

import fnmatch
import pathlib
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from etils import epath

from vit_jax import cli, storage
from vit_jax.errors import ConfigError, ExitCode, did_you_mean, printable
from vit_jax.rundir import workdir as workdirs
from vit_jax.rundir.lock import lock
from vit_jax.sweeps import record as records
from vit_jax.sweeps.board import Board
from vit_jax.sweeps.costs import cost, total_train_flops
from vit_jax.sweeps.local import run_local
from vit_jax.sweeps.plan import PlannedRun, check_unchanged, plan_runs
from vit_jax.sweeps.slurm import run_slurm
from vit_jax.sweeps.table import PARQUET, collect

_COLLECT_SECONDS = 60.0  # Between two writes of the table while runs are active.


def select(runs: Sequence[PlannedRun], pattern: str) -> list[PlannedRun]:
    """Returns the runs whose names match a pattern such as "*seed=0*"; "": all.

    Raises:
      ConfigError: no name matches.
    """
    chosen = [run for run in runs if fnmatch.fnmatchcase(run.name, pattern or "*")]
    if not chosen:
        raise ConfigError(
            f"--only={pattern} matches no run: it must match a whole name, such as *seed=0*. "
            + did_you_mean(pattern, [run.name for run in runs[:20]])
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


def dry_run(runs: Sequence[PlannedRun]) -> None:
    """Prints the command and the cost of each run, and the total cost.

    Raises:
      ConfigError: the config of a run is invalid.
    """
    flops, left, unknown, largest = 0, 0, 0, 0
    open_axes = any(-1 in run.config.mesh.values() for run in runs)
    for run in runs:
        run_cost, record = cost(run), records.read(run.workdir)
        finished = records.is_finished(run.workdir, record)
        print(f"{run.name} ({'finished' if finished else record.status})")
        print(f"  {shlex.join(['python', *run.command[1:]])}")
        largest = max(largest, run_cost.bytes_per_device)
        if run_cost.total_train_flops is None:
            length = "unknown number of steps"
            unknown += 1
        else:
            length = f"{run_cost.own_steps:,} steps, {run_cost.total_train_flops:.3g} FLOPs"
            flops += run_cost.total_train_flops
            left += 0 if finished else run_cost.total_train_flops
        print(
            f"  {run_cost.params:,} parameters ({run_cost.params_non_embedding:,} non-embedding), "
            f"{length}, about {_size(run_cost.bytes_per_device)} per device"
        )
        if run_cost.unknown:
            print(f"  Unknown: {run_cost.unknown}")
    print(
        f"Total: {len(runs)} runs, {flops:.3g} FLOPs, of which {left:.3g} remain"
        + (f" (without {unknown} runs of unknown length)" if unknown else "")
        + f"; the largest run needs about {_size(largest)} per device"
        + (", with mesh axes of -1 counted as 1." if open_axes else ".")
    )


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


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


if __name__ == "__main__":
    _CONFIG = cli.define_config()
    flags.declare_key_flag("config")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep; created if missing.")
    _MAX_PARALLEL = flags.DEFINE_integer(
        "max_parallel", 0, "Concurrent runs; 0: one for each GPU, or one.", lower_bound=0
    )
    _LAUNCHER = flags.DEFINE_enum(
        "launcher", "local", ["local", "slurm"], "Run on this machine, or as Slurm jobs."
    )
    _PARTITION = flags.DEFINE_string("slurm_partition", None, "Slurm partition of the jobs.")
    _TIME = flags.DEFINE_integer(
        "slurm_time_min", 60, "Minutes after which a job is requeued.", lower_bound=1
    )
    _CORES = flags.DEFINE_integer("slurm_cpus", 1, "CPU cores per job.", lower_bound=1)
    _GPUS = flags.DEFINE_integer("slurm_gpus", 0, "GPUs per job.", lower_bound=0)
    _ONLY = flags.DEFINE_string("only", "", "Only the runs whose names match, such as *seed=0*.")
    _DRY_RUN = flags.DEFINE_bool("dry_run", False, "Run nothing: print each command and its cost.")
    _COLLECT = flags.DEFINE_bool("collect", False, "Run nothing: write the table of the runs.")
    flags.mark_flag_as_required("workdir")

    def main(argv: Sequence[str]) -> int:
        cli.no_arguments(argv)
        path = storage.as_path(_WORKDIR.value, name="--workdir")
        if not storage.is_local(path):
            raise ConfigError(f"--workdir={path}: the folder of a sweep must be local or mounted.")
        folder = pathlib.Path(path).absolute()
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not existing.is_dir():
            raise ConfigError(f"--workdir={path}: {existing} is a file. Choose another folder.")
        if _COLLECT.value:
            print(f"Table: {collect(folder)}")
            return 0
        if _CONFIG.value is None:
            raise ConfigError("Flag --config=... is missing. See --help.")
        if _DRY_RUN.value:
            jax.config.update("jax_platforms", "cpu")  # Only shapes are computed.
        file, argument, points = cli.read_sweep(_CONFIG)
        runs = plan_runs(
            points,
            file=file,
            argument=argument,
            overrides=cli.overridden(_CONFIG),
            folder=folder,
            configure=cli.config_of,
        )
        runs = select(runs, _ONLY.value)
        if _DRY_RUN.value:
            dry_run(runs)
            return 0
        slurm = None
        if _LAUNCHER.value == "slurm":
            options = {"cpus_per_task": _CORES.value}
            options |= {"partition": _PARTITION.value} if _PARTITION.value else {}
            options |= {"gpus_per_node": _GPUS.value} if _GPUS.value else {}
            slurm = {"minutes": _TIME.value, "options": options}
        return sweep(runs, folder, max_parallel=_MAX_PARALLEL.value, slurm=slurm)

    cli.run(main)
