"""Runs a sweep: each run by `vit-jax train`, on this machine or as a Slurm job.

    vit-jax sweep --config=scaling/data_x_params --workdir=runs/study --dry_run
    vit-jax sweep --config=scaling/data_x_params --workdir=runs/study --dry_run --topology=v5e:4x4
    vit-jax sweep --config=scaling/data_x_params --workdir=runs/study

Besides get_config(), the config file defines sweep(), which returns a dict of changed keys for each
run (vit_jax.sweeps.grids). Each run has a folder with its name in the sweep's folder. The same
command resumes a sweep: it skips finished runs, resumes interrupted ones and retries failed ones.
On Ctrl-C and SIGTERM the runs save and end. A failed run does not stop the others.

The results are in runs.parquet and runs.csv, with a row for each run and evaluation
(vit_jax.sweeps.table). --collect only writes these files, at any time.

Exit codes: 0 all runs are finished; 1 some failed; 2 an error that the message explains, such as
runs that cannot start or, with --dry_run, do not fit on --topology; 75 stopped by a signal: the
same command resumes the sweep.
"""

import pathlib

from absl import flags

from vit_jax import cli, storage
from vit_jax.errors import ConfigError


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    cli.define_config(values)
    flags.DEFINE_string(
        "workdir", None, "Folder of the sweep; created if missing.", flag_values=values
    )
    flags.DEFINE_integer(
        "max_parallel",
        0,
        "Concurrent runs; 0: one for each GPU, or one.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "launcher",
        "local",
        ["local", "slurm"],
        "Run on this machine, or as Slurm jobs.",
        flag_values=values,
    )
    flags.DEFINE_string("slurm_partition", None, "Slurm partition of the jobs.", flag_values=values)
    flags.DEFINE_integer(
        "slurm_time_min",
        60,
        "Minutes after which a job is requeued.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer("slurm_cpus", 1, "CPU cores per job.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("slurm_gpus", 0, "GPUs per job.", lower_bound=0, flag_values=values)
    flags.DEFINE_string(
        "only", "", "Only the runs whose names match, such as *seed=0*.", flag_values=values
    )
    flags.DEFINE_bool(
        "dry_run",
        False,
        "Run nothing: check all runs, and print each command and its cost.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "time_updates",
        0,
        "With --dry_run: time this many updates of each kind of run, to estimate hours.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "topology",
        "",
        "With --dry_run: memory and hours of each run on these devices, such as v5e:16x16.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "slices", 1, "With --topology: number of TPU slices.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_float(
        "price",
        0.0,
        "With --topology: price of one chip for one hour, in any currency.",
        lower_bound=0.0,
        flag_values=values,
    )
    flags.DEFINE_bool(
        "collect", False, "Run nothing: write the table of the runs.", flag_values=values
    )


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the sweep."""
    import jax

    from vit_jax.planning.topology import parse
    from vit_jax.sweeps.plan import plan_runs
    from vit_jax.sweeps.run import select, sweep
    from vit_jax.sweeps.table import collect

    path = storage.as_path(values.workdir, name="--workdir")
    if not storage.is_local(path):
        raise ConfigError(f"--workdir={path}: the folder of a sweep must be local or mounted.")
    folder = pathlib.Path(path).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir():
        raise ConfigError(f"--workdir={path}: {existing} is a file. Choose another folder.")
    if values.collect:
        print(f"Table: {collect(folder)}")
        return 0
    if values["config"].value is None:
        raise ConfigError("--config=... is missing. See --help.")
    if values.time_updates and not values.dry_run:
        raise ConfigError("--time_updates needs --dry_run: a sweep that runs shows its times.")
    if values.topology and not values.dry_run:
        raise ConfigError("--topology needs --dry_run: a sweep runs on the devices that are here.")
    if values.slices > 1 and not values.topology:
        raise ConfigError("--slices needs --topology, that of a slice, such as v5e:16x16.")
    cli.check_price(values)
    if values.price and not values.topology:
        raise ConfigError("--price needs --topology, the chips that it is for.")
    topology = parse(values.topology, slices=values.slices) if values.topology else None
    if values.dry_run and not values.time_updates:
        jax.config.update("jax_platforms", "cpu")  # Only shapes are computed.
    file, argument, points = cli.read_sweep(values)
    invalid: dict[str, str] = {}
    runs = plan_runs(
        points,
        file=file,
        argument=argument,
        overrides=cli.overridden(values),
        folder=folder,
        configure=cli.config_of,
        invalid=invalid if values.dry_run else None,
    )
    if values.dry_run:
        from vit_jax.sweeps.dry_run import dry_run

        names = select([*(run.name for run in runs), *invalid], values.only)
        dry_run(
            [run for run in runs if run.name in names],
            invalid={name: invalid[name] for name in names if name in invalid},
            time_updates=values.time_updates,
            topology=topology,
            price=values.price,
        )
        return 0
    names = select([run.name for run in runs], values.only)
    runs = [run for run in runs if run.name in names]
    slurm = None
    if values.launcher == "slurm":
        options = {"cpus_per_task": values.slurm_cpus}
        options |= {"partition": values.slurm_partition} if values.slurm_partition else {}
        options |= {"gpus_per_node": values.slurm_gpus} if values.slurm_gpus else {}
        slurm = {"minutes": values.slurm_time_min, "options": options}
    cli.continue_without_output()
    return sweep(runs, folder, max_parallel=values.max_parallel, slurm=slurm)


COMMAND = cli.Command(__doc__, define, main, required=("workdir",))

if __name__ == "__main__":
    cli.run(COMMAND)
