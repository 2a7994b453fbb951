"""Runs all the runs of a sweep, each by `vit_jax.train`, here or as jobs of Slurm.

    python -m vit_jax.sweep --config=configs/scaling/data_x_params.py --workdir=runs/study --dry_run
    python -m vit_jax.sweep --config=configs/scaling/data_x_params.py --workdir=runs/study

The config file has beside get_config() a function sweep(), which yields a dict of changed keys for
each run (vit_jax.sweeps.grids). Each run has a folder of its name in the sweep's. The same command
goes on where it stopped: what is finished is skipped, what is broken is resumed, what failed is
tried again. Ctrl-C and SIGTERM let the runs save; a run that fails does not stop the others.

What came out is in runs.parquet and runs.csv, a row for each run and evaluation
(vit_jax.sweeps.table). --collect writes them again, at any time, and runs nothing.

Exit codes: 0 all runs are finished; 1 some failed; 2 an error that the message explains; 75 told to
stop: the same command goes on.
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

_COLLECTED = 60.0  # Seconds between two tables while the runs go on.


def select(runs: Sequence[PlannedRun], pattern: str) -> list[PlannedRun]:
    """The runs whose names match a pattern such as "*seed=0*"; "": all.

    Raises:
      ConfigError: none does.
    """
    chosen = [run for run in runs if fnmatch.fnmatchcase(run.name, pattern or "*")]
    if not chosen:
        raise ConfigError(
            f"--only={pattern} matches no run: it is a pattern of whole names, such as *seed=0*. "
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
    """Runs what is not finished.

    Args:
      runs: of the sweep, from `vit_jax.sweeps.plan.plan_runs`.
      folder: of the sweep.
      max_parallel: at a time; 0: one for each GPU, or one; as jobs: as many as Slurm likes.
      slurm: `minutes` and `options` of `vit_jax.sweeps.slurm.run_slurm`; None: on this machine.

    Returns:
      The exit code.

    Raises:
      VitJaxError: a run has begun with another config, or another sweep is at work in the folder.
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
            if run is not None and time.monotonic() - collected > _COLLECTED:
                collect(folder)
                collected = time.monotonic()

        with Board(runs, work=work) as board:
            if slurm is None:
                whole = run_local(runs, max_parallel=max_parallel, changed=changed)
            else:
                whole = run_slurm(runs, max_parallel=max_parallel, **slurm, changed=changed)
            board.show()
        collect(folder)
    return conclude(runs, folder, whole=whole)


def dry_run(runs: Sequence[PlannedRun]) -> None:
    """Prints the command of each run and what it will take, and the sum of all.

    Raises:
      ConfigError: a run could not begin.
    """
    flops, left, unknown, largest = 0, 0, 0, 0
    open_axes = any(-1 in run.config.mesh.values() for run in runs)
    for run in runs:
        told, record = cost(run), records.read(run.workdir)
        finished = records.is_finished(run.workdir, record)
        print(f"{run.name} ({'finished' if finished else record.status})")
        print(f"  {shlex.join(['python', *run.command[1:]])}")
        largest = max(largest, told.bytes_per_device)
        if told.total_train_flops is None:
            length = "a number of steps that is not known"
            unknown += 1
        else:
            length = f"{told.own_steps:,} steps, {told.total_train_flops:.3g} FLOPs"
            flops += told.total_train_flops
            left += 0 if finished else told.total_train_flops
        print(
            f"  {told.params:,} parameters ({told.params_non_embedding:,} non-embedding), {length}"
            f", about {_size(told.bytes_per_device)} on each device"
        )
        if told.unknown:
            print(f"  Not known is {told.unknown}")
    print(
        f"In all: {len(runs)} runs, {flops:.3g} FLOPs, of which {left:.3g} are still to be done"
        + (f" (without {unknown} runs of unknown length)" if unknown else "")
        + f"; the largest takes about {_size(largest)} on each device"
        + (", with axes of -1 in the mesh counted as 1." if open_axes else ".")
    )


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def conclude(runs: Sequence[PlannedRun], folder: pathlib.Path, *, whole: bool) -> int:
    """Says what became of the runs; gives the exit code."""
    found = {run.name: records.read(run.workdir) for run in runs}
    for run in runs:
        record = found[run.name]
        if record.status in ("failed", "blocked"):
            print(printable(f"{run.name} {record.status}: {record.error}"))
            if record.status == "failed":
                print(f"  Log: {run.workdir / records.LOG}")
    finished = sum(record.status == "finished" for record in found.values())
    print(f"{finished} of {len(runs)} runs are finished. Table: {folder / PARQUET}")
    if finished == len(runs):
        return 0
    if whole:
        return ExitCode.FAILED
    print("Stopped: the same command goes on.")
    return ExitCode.STOPPED


if __name__ == "__main__":
    _CONFIG = cli.define_config()
    flags.declare_key_flag("config")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep; made if it is not there.")
    _MAX_PARALLEL = flags.DEFINE_integer(
        "max_parallel", 0, "Runs at a time; 0: one for each GPU, or one.", lower_bound=0
    )
    _LAUNCHER = flags.DEFINE_enum(
        "launcher", "local", ["local", "slurm"], "Runs on this machine, or as jobs of Slurm."
    )
    _PARTITION = flags.DEFINE_string("slurm_partition", None, "Of the jobs.")
    _TIME = flags.DEFINE_integer(
        "slurm_time_min", 60, "Minutes after which a job is requeued.", lower_bound=1
    )
    _CORES = flags.DEFINE_integer("slurm_cpus", 1, "CPU cores of a job.", lower_bound=1)
    _GPUS = flags.DEFINE_integer("slurm_gpus", 0, "GPUs of a job.", lower_bound=0)
    _ONLY = flags.DEFINE_string("only", "", "Only the runs whose names match, such as *seed=0*.")
    _DRY_RUN = flags.DEFINE_bool(
        "dry_run", False, "Run nothing: print each command and what it will take."
    )
    _COLLECT = flags.DEFINE_bool("collect", False, "Run nothing: write the table of what is there.")
    flags.mark_flag_as_required("workdir")

    def main(argv: Sequence[str]) -> int:
        cli.no_arguments(argv)
        path = storage.as_path(_WORKDIR.value, name="--workdir")
        if not storage.is_local(path):
            raise ConfigError(
                f"--workdir={path}: a sweep's folder is one of this machine, or mounted."
            )
        folder = pathlib.Path(path).absolute()
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if not there.is_dir():
            raise ConfigError(f"--workdir={path}: {there} is a file. Choose another folder.")
        if _COLLECT.value:
            print(f"Table: {collect(folder)}")
            return 0
        if _CONFIG.value is None:
            raise ConfigError("Flag --config=... is missing. See --help.")
        if _DRY_RUN.value:
            jax.config.update("jax_platforms", "cpu")  # Shapes alone are computed.
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
