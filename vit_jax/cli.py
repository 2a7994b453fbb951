"""What the commands share: flags, overrides, exit codes, and errors without tracebacks."""

import errno
import io
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from logging import LogRecord
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from vit_jax.config import freeze, other_units
from vit_jax.config.file import make_config, make_points
from vit_jax.errors import (
    ConfigError,
    ExitCode,
    VitJaxError,
    did_you_mean,
    exit_code,
    printable,
)
from vit_jax.parallel.processes import give_threads_to_simulated_devices

_EXIT_UNREAD = 128 + signal.SIGPIPE  # What a shell says of a tool whose reader left.


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Parses the flags and runs `main`; an error that the user can correct is one message, no more.

    The process leaves with what `main` returns (None: 0), or with the error's exit code.
    """

    def guarded(argv: Sequence[str]) -> int | None:
        try:
            return main(argv)
        except VitJaxError as error:
            _fail(error)
            return exit_code(error)

    logging.set_verbosity(logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Neither closed, nor a notebook's.
            stream.reconfigure(errors="backslashreplace")  # A terminal may lack letters of a name.
    _keep_libraries_quiet()
    sys.excepthook = _say_interrupted
    give_threads_to_simulated_devices()
    try:
        app.run(guarded, flags_parser=_parse_flags)
    except BrokenPipeError:
        if not _reader_left():
            raise
        sys.exit(_EXIT_UNREAD)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename:  # A stream has no name.
            raise
        sys.exit(_fail(f"Standard output cannot be written: {error.strerror}."))
    finally:
        _flush()


def _say_interrupted(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Ctrl-C, where it does not mean "save and end", needs no traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("Interrupted.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _reader_left() -> bool:
    """Whether nobody reads standard output any more, as after `... | head -1`."""
    poll = select.poll()
    if sys.stdout:
        poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _flush() -> None:
    """Writes what is still to be written; if that fails, it is said now and without a traceback."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more.
        if isinstance(error, BrokenPipeError):
            sys.exit(_EXIT_UNREAD)
        sys.exit(_fail(f"Standard output cannot be written: {error.strerror}."))


def _keep_libraries_quiet() -> None:
    """Libraries that raise an error also print where: a save that fails would make pages of it."""

    def without_traceback(record: LogRecord) -> bool:
        record.exc_info = record.exc_text = None
        return True

    def unraisable(args: Any) -> None:
        # TensorStore's last words to an event loop that Orbax has closed after a failed save.
        if str(args.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(args)

    logging.get_absl_handler().addFilter(without_traceback)
    logging.get_absl_handler().setFormatter(_Printable())
    sys.unraisablehook = unraisable


class _Printable(logging.PythonFormatter):
    """Log lines that a terminal does not obey, whatever the names of files in them are."""

    def format(self, record: LogRecord) -> str:
        return printable(super().format(record))


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        return _parse(flags.FLAGS, argv)
    except VitJaxError as error:
        sys.exit(_fail(error))


def _parse(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parses a command line; whatever is wrong with it is an error that says so."""
    try:
        return values(argv)
    except VitJaxError:
        raise
    except flags.Error as error:
        # absl makes its own error of one that is a ValueError, such as ConfigError.
        if isinstance(error.__context__, VitJaxError):
            raise error.__context__ from None
        raise ConfigError(_explain_flag(values, str(error))) from error
    except Exception as error:  # ml_collections raises whatever looking up a key raises.
        raise ConfigError(
            _explain_key(values, argv) or f"A --config.KEY=VALUE is wrong: {error}"
        ) from error


def _fail(error: Exception | str) -> int:
    print(printable(f"error: {error}"), file=sys.stderr)
    return ExitCode.ERROR


# ------------------------------------------------------------------------------- overridden keys

_ACCEPTED = {
    int: "a whole number, such as 3",
    float: "a number, such as 0.1",
    bool: "true or false",
    tuple: "a tuple, such as '(1, 2)'",
    ConfigDict: "its keys one by one, --config.SECTION.KEY=VALUE",
}


def _explain_flag(values: flags.FlagValues, message: str) -> str:
    """What absl says of a flag, in words that help."""
    if missing := re.search(r"Flag (--\w+) must have a value other than None", message):
        return f"{missing[1]}=... is missing. See --help."
    if part := re.match(r"Type <class .*?> of field (config\.\S+) is not supported", message):
        return f"--{part[1]}: write its keys one by one, --{part[1]}.KEY=VALUE."
    match = re.match(r"flag (--config\.(?P<key>[^=]+)=.*?): ", message, flags=re.DOTALL)
    _, kind = _walk(values, match["key"]) if match else (None, None)
    if kind in _ACCEPTED:
        return f"{match[1]}: write {_ACCEPTED[kind]}."
    return f"{message}\nSee --help."


def _explain_key(values: flags.FlagValues, argv: Sequence[str]) -> str | None:
    """Which of the overrides names a key that is not there."""
    for flag in argv:
        match = re.match(r"--?(no)?config\.(?P<key>[^=]+)", flag)
        wrong, _ = _walk(values, match["key"]) if match else (None, None)
        if wrong:
            return f"{flag}: {wrong}"
    return None


def _walk(values: flags.FlagValues, key: str) -> tuple[str | None, type | None]:
    """Follows a key such as model.image_size[0] into the config: what is wrong, or its type."""
    node, kind = values["config"].parser.config, ConfigDict
    for part in filter(None, re.split(r"[.\[\]]", key)):
        part = part.strip("'\"")
        if isinstance(node, ConfigDict) and part in node:
            node, kind = node[part], node.get_type(part)
        elif isinstance(node, ConfigDict):
            return f'there is no config key "{part}". {did_you_mean(part, node)}', None
        elif isinstance(node, Mapping) and part in node:
            node = node[part]
            kind = type(node)
        elif isinstance(node, tuple) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
            kind = type(node)
        elif isinstance(node, tuple):
            return f"there is no [{part}]: it counts from [0] to [{len(node) - 1}].", None
        else:
            return f'there is no "{part}" in {node!r}.', None
    return None, kind


# ---------------------------------------------------------------------------- the config's flag


class _OrNone(flags.ArgumentParser):
    """What another parser takes, and None: so that a key which may be unset can be."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser

    def parse(self, argument: Any) -> Any:
        return None if argument in (None, "None") else self._parser.parse(argument)

    def flag_type(self) -> str:
        return self._parser.flag_type()


class _ConfigFile(flags.ArgumentParser):
    """Makes a config of a file, in place of ml_collections' parser, which hides what goes wrong.

    Attributes:
      config: the last one that was made; overrides change it.
    """

    config: ConfigDict | None = None

    def parse(self, argument: str) -> ConfigDict:
        """Runs FILE.py or FILE.py:ARGUMENT."""
        self.config = make_config(argument).lock()
        return self.config


def define_config(
    values: flags.FlagValues = flags.FLAGS, argv: Sequence[str] | None = None
) -> flags.FlagHolder:
    """Defines --config; read it with `read_config`.

    Args:
      values: where to.
      argv: the command line that overrides keys; None: that of the process.
    """
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "FILE.py or FILE.py:key=value,...; --config.KEY=VALUE overrides a key.",
        flag_values=values,
        sys_argv=argv,
    )
    values[holder.name].parser = _ConfigFile()
    for kind, parser in ((int, flags.IntegerParser()), (float, flags.FloatParser())):
        config_flags.register_flag_parser_for_type(kind, _OrNone(parser))
    return holder


def config_of(arguments: Sequence[str]) -> FrozenConfigDict:
    """The config that a command would read from these --config... flags.

    Raises:
      ConfigError: as the command would report.
    """
    argv = ["", *arguments]
    values = flags.FlagValues()
    holder = define_config(values, argv)
    _parse(values, argv)
    return read_config(holder, values)


def overridden(holder: flags.FlagHolder) -> dict[str, Any]:
    """What the command line of the process overrides: {"optim.lr": 0.001}."""
    return dict(config_flags.get_override_values(flags.FLAGS[holder.name]))


def read_config(
    holder: flags.FlagHolder, values: flags.FlagValues = flags.FLAGS
) -> FrozenConfigDict:
    """The config with its overrides, frozen.

    A duration that is overridden in one unit is unset in the others, so that
    `--config.total_steps=10` shortens a run that its file gives in epochs.
    """
    config = holder.value
    changed = config_flags.get_override_values(values[holder.name])
    for key, value in changed.items():
        if value is None:
            continue
        for sibling in other_units(key):
            if sibling not in changed:
                parent, _, leaf = sibling.rpartition(".")
                section = config[parent] if parent else config
                if leaf in section:
                    section[leaf] = None
    return freeze(config)


def read_sweep(holder: flags.FlagHolder) -> tuple[str, str, list[Any]]:
    """The file of --config, what follows its colon ("" if there is none), and its sweep's points.

    Raises:
      ConfigError: the file has no sweep(), or it went wrong.
    """
    return make_points(flags.FLAGS[holder.name].config_filename)


def no_arguments(argv: Sequence[str]) -> None:
    """Raises ConfigError if there are words on the command line that are not flags."""
    if len(argv) > 1:
        raise ConfigError(f"What is {' '.join(argv[1:])!r}? Flags begin with --. See --help.")
