"""Lists the runs in a folder and below it: state, step, best and last evaluation, last change.

    vit-jax runs runs
    vit-jax runs runs --json

State: running; finished; stopped (the same command resumes it); failed, with the error; waiting or
blocked in a sweep; model: a converted model; broken: a damaged folder. The table names runs by
their paths below the folder. --json prints a list with an object for each run, with the fields of
vit_jax.sweeps.listing.RunState, whose path begins with the folder: other commands accept it.
"""

from absl import flags

from vit_jax import cli, storage
from vit_jax.errors import ConfigError


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_bool("json", False, "Print JSON.", flag_values=values)


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Lists the runs."""
    import dataclasses
    import json

    from vit_jax.sweeps.listing import list_runs, runs_table
    from vit_jax.telemetry.progress import wide_console

    if len(arguments) != 1:
        raise ConfigError("Give one folder: vit-jax runs FOLDER.")
    folder = storage.as_path(arguments[0], name="FOLDER")
    if not storage.is_local(folder):
        raise ConfigError(f"{folder}: the folder must be local or mounted.")
    runs = list_runs(folder)
    if values.json:
        print(json.dumps([dataclasses.asdict(run) for run in runs], indent=2))
    elif runs:
        wide_console().print(runs_table(runs, folder))
    else:
        print(f"There is no run in {folder}.")


COMMAND = cli.Command(__doc__, define, main, takes_arguments=True)

if __name__ == "__main__":
    cli.run(COMMAND)
