"""What the front doors share: flags, overrides, and errors without tracebacks."""

import pathlib
import re
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from vit_jax.config import DURATION_UNITS, freeze
from vit_jax.errors import ConfigError, VitJaxError, did_you_mean

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
        _check_config_file(argv)
        return flags.FLAGS(argv)
    except VitJaxError as error:
        sys.exit(_fail(error))
    # ml_collections puts a traceback into the text of what went wrong inside a config file, and
    # does not say where the key is that nobody declared.
    except flags.Error as error:
        sys.exit(_fail(_own_error(str(error))))
    except (AttributeError, KeyError, IndexError) as error:
        sys.exit(_fail(_unknown_key(argv, str(error)) or f"A --config.KEY=VALUE is wrong: {error}"))


def _check_config_file(argv: Sequence[str]) -> None:
    """Raises ConfigError if --config names a file that is not there."""
    joined = re.sub(r"(?<!\S)(--?config)\n", r"\1=", "\n".join(argv))  # `--config FILE`, too.
    for flag in joined.split("\n"):
        match = re.fullmatch(r"--?config=(?P<path>[^:]*)(:.*)?", flag)
        if match and not pathlib.Path(match["path"]).is_file():
            path = pathlib.Path(match["path"])
            others = sorted(str(other) for other in path.parent.glob("*.py"))
            hint = did_you_mean(str(path), others) if others else f"{path.parent} holds no configs."
            raise ConfigError(f"--config={path}: there is no such file. {hint}")


def _own_error(message: str) -> str:
    """The message of our own error, if it is at the end of a traceback that was made text."""
    match = re.search(r"\nvit_jax\.errors\.\w+: (?P<own>.*)", message, flags=re.DOTALL)
    return match["own"].strip() if match else f"{message}\nSee --help."


def _unknown_key(argv: Sequence[str], message: str) -> str | None:
    """What is wrong with the override that an error of ml_collections is about."""
    for flag in argv:
        match = re.match(r"--?config\.(?P<key>[^=]+)", flag)
        for part in re.split(r"[.\[]", match["key"]) if match else ():
            if re.match(rf"\W*{re.escape(part)}\W", message):
                near = re.search(r'Did you mean "(\w+)"', message)
                hint = f' Did you mean "{near[1]}"?' if near else ""
                return (
                    f'{flag}: there is no config key "{part}".{hint} All keys are in '
                    "vit_jax/config.py."
                )
    return None


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
    config = holder.value
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"get_config() in the config file gave {type(config).__name__}: it must return what "
            "vit_jax.config.base_config() gave it, changed."
        )
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


def local_path(path: str, *, flag: str) -> pathlib.Path:
    """A flag's value as a path; ~ is the home folder.

    Raises:
      ConfigError: it is an address, such as gs://..., which this release cannot write to.
    """
    if "://" in path:
        raise ConfigError(f"--{flag}={path}: only folders of this machine (or mounted) will do.")
    return pathlib.Path(path).expanduser()


def no_arguments(argv: Sequence[str]) -> None:
    """Raises ConfigError if there are words on the command line that are not flags."""
    if len(argv) > 1:
        raise ConfigError(f"What is {' '.join(argv[1:])!r}? Flags begin with --. See --help.")
