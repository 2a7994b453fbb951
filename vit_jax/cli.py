"""What the front doors share: flags, overrides, and errors without tracebacks."""

import re
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from vit_jax.config import DURATION_UNITS, freeze
from vit_jax.errors import ConfigError, VitJaxError

EXIT_ERROR = 2


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Parses the flags and runs `main`; an error that the user can mend is one message, no more.

    The process leaves with what `main` returns (None: 0), or with 2 after such an error.
    """

    def guarded(argv: Sequence[str]) -> int | None:
        try:
            return main(argv)
        except VitJaxError as error:
            return _fail(error)

    logging.set_verbosity(logging.WARNING)
    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:  # Absl's words are clear.
        sys.exit(_fail(f"{error}\nSee --help."))
    # ml_collections lets these through: a missing file, a mistyped key, a broken config file.
    except (VitJaxError, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        sys.exit(_fail(error.args[0] if isinstance(error, KeyError) else error))


def _fail(error: Exception | str) -> int:
    print(f"error: {error}", file=sys.stderr)
    return EXIT_ERROR


def define_config() -> flags.FlagHolder:
    """Defines --config; read it with `read_config`."""
    return config_flags.DEFINE_config_file(
        "config", None, "FILE.py or FILE.py:key=value,...; --config.KEY=VALUE overrides a key.",
        lock_config=True,
    )  # fmt: skip


def read_config(holder: flags.FlagHolder) -> FrozenConfigDict:
    """The config with its overrides, frozen.

    A duration that is overridden in one unit is unset in the others, so that
    `--config.total_steps=10` shortens a run that its file gives in epochs.
    """
    config: ConfigDict = holder.value
    overridden = config_flags.get_override_values(flags.FLAGS[holder.name])
    for key in overridden:
        match = re.fullmatch(rf"(?P<stem>.*)_({'|'.join(DURATION_UNITS)})", key)
        for unit in DURATION_UNITS if match else ():
            sibling = f"{match['stem']}_{unit}"
            if sibling not in overridden:
                parent, _, leaf = sibling.rpartition(".")
                section = config[parent] if parent else config
                if leaf in section:
                    section[leaf] = None
    return freeze(config)


def no_arguments(argv: Sequence[str]) -> None:
    """Raises ConfigError if there are words on the command line that are not flags."""
    if len(argv) > 1:
        raise ConfigError(f"What is {' '.join(argv[1:])!r}? Flags begin with --. See --help.")
