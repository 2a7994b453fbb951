"""Lists the transforms of images, for data.train_transforms and data.eval_transforms.

vit-jax transforms
vit-jax transforms random_resized_crop
"""

import inspect

from absl import flags

from vit_jax import cli
from vit_jax.errors import ConfigError, did_you_mean


def define(values: flags.FlagValues) -> None:
    """Defines no flags."""


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Prints each transform with its arguments and their defaults; with a name, its whole text."""
    from vit_jax.data.transforms import OPS

    for name in arguments:
        if name not in OPS:
            hint = did_you_mean(name, OPS, see="vit-jax transforms")
            raise ConfigError(f'There is no transform "{name}". {hint}')
    for name in arguments or OPS:
        parameters = inspect.signature(OPS[name]).parameters.values()
        words = [f'"{parameter.name}": {_default(parameter)}' for parameter in parameters]
        print("{" + ", ".join([f'"op": "{name}"', *words]) + "}")
        text = inspect.getdoc(OPS[name]) or ""
        print("    " + (text if arguments else text.split("\n\n")[0]).replace("\n", "\n    "))


def _default(parameter: inspect.Parameter) -> str:
    return "REQUIRED" if parameter.default is parameter.empty else repr(parameter.default)


COMMAND = cli.Command(__doc__, define, main, takes_arguments=True)

if __name__ == "__main__":
    cli.run(COMMAND)
