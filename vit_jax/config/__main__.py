"""Lists the configs that come with vit_jax, or describes one with its arguments.

    vit-jax config
    vit-jax config finetune

To see every key of a config with its value, meaning and origin: `vit-jax train --config=NAME
--show_config`.
"""

from absl import flags

from vit_jax import cli
from vit_jax.config.file import config_arguments
from vit_jax.config.shipped import docstring, shipped_configs
from vit_jax.errors import ConfigError, did_you_mean


def define(values: flags.FlagValues) -> None:
    """Defines no flags."""


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Prints the list or the description."""
    files = shipped_configs()
    if not arguments:
        width = max(map(len, files))
        for name, path in files.items():
            print(f"{name:{width}}  {docstring(path).splitlines()[0]}")
        print("\nvit-jax config NAME describes one. vit-jax train --config=NAME --workdir=FOLDER")
        return
    for name in arguments:
        if name not in files:
            raise ConfigError(
                f'There is no config "{name}". {did_you_mean(name, files, see="vit-jax config")}'
            )
        print(f"{files[name]}\n\n{docstring(files[name])}\n")
        defaults = config_arguments(name)
        print("Arguments and defaults:" if defaults else "It takes no arguments.")
        for key, value in defaults.items():
            print(f"  {key}={value}")


COMMAND = cli.Command(__doc__, define, main, takes_arguments=True, arguments=shipped_configs)

if __name__ == "__main__":
    cli.run(COMMAND)
