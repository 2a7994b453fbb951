"""Trains a Vision Transformer, or resumes its training.

    vit-jax train --config=quickstart --workdir=runs/quickstart

The same command resumes a run that was killed. A run starts from the first of these that exists:
the newest readable checkpoint in the work directory; the checkpoint `config.resume` (the whole
state, step included); the model and the parameters of `config.init_from`, one of our checkpoints or
a published one; random parameters. `vit-jax config` lists the configs, and --show_config every key.

Exit codes: 0 finished; 2 an error that the message explains; 75 stopped by SIGTERM or SIGINT, and
saved; 76 no progress for `config.timeout_seconds`, or another process of the run is lost or never
arrived; an abort (SIGABRT, in a shell 134) by JAX also means a lost process. After 75, 76 and an
abort the same command resumes the run.
"""

from absl import flags

from vit_jax import cli


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    cli.define_config(values)
    flags.DEFINE_string(
        "workdir", None, "Folder of the run; created if missing.", flag_values=values
    )
    flags.DEFINE_bool(
        "allow_config_change",
        False,
        "Continue a run that was started with another config.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "extend",
        False,
        "Continue a run, finished or not, up to a larger length, and nothing else changed.",
        flag_values=values,
    )


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Trains."""
    from vit_jax.parallel import processes
    from vit_jax.training.run import train

    cli.continue_without_output()
    processes.start()
    return train(
        cli.read_config(values),
        values.workdir,
        allow_config_change=values.allow_config_change,
        extend=values.extend,
    )


COMMAND = cli.Command(__doc__, define, main, required=("config", "workdir"))

if __name__ == "__main__":
    cli.run(COMMAND)
