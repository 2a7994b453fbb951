"""Shared code of the commands: flags, overrides, help, exit codes, and errors without tracebacks.

Imports no JAX: `--help` answers at once.
"""

import contextlib
import dataclasses
import errno
import faulthandler
import inspect
import io
import math
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from logging import LogRecord
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

import vit_jax
from vit_jax.config import freeze
from vit_jax.config.command_line import ConfigFileParser, OptionalParser, parse
from vit_jax.config.file import (
    make_config,
    make_points,
    sizes_beside_variant,
    unset_other_units,
)
from vit_jax.config.listing import listing
from vit_jax.errors import (
    ConfigError,
    ExitCode,
    VitJaxError,
    exit_code,
    printable,
)
from vit_jax.parallel.simulated import give_threads_to_simulated_devices

_EXIT_SIGPIPE = 128 + signal.SIGPIPE  # A shell's exit code for a program with a closed pipe.


@dataclasses.dataclass(frozen=True)
class Command:
    """A command, `vit-jax VERB`, or `python -m` with the name of its module.

    Attributes:
      description: the docstring of its module; `--help` prints it.
      define: defines its flags.
      main: (flags, arguments) -> exit code, None for 0. It imports what it needs: JAX takes longer
        to import than `--help` may take.
      required: flags that must be given.
      takes_arguments: whether it takes arguments that are not flags.
      arguments: returns the accepted arguments, for a shell's completion; None: they are files.
    """

    description: str | None
    define: Callable[[flags.FlagValues], Any]
    main: Callable[[flags.FlagValues, list[str]], int | None]
    required: tuple[str, ...] = ()
    takes_arguments: bool = False
    arguments: Callable[[], Iterable[str]] | None = None


def run(command: Command, argv: Sequence[str] | None = None) -> None:
    """Parses the flags and runs the command; prints a VitJaxError as a message without traceback.

    The process exits with the result of `main` (None: 0), or with the error's exit code.

    Args:
      command: the command.
      argv: flags and arguments; None: those of the process.
    """
    logging.use_absl_handler()
    # Commands have flags of their own. Without this absl would report that its are not parsed.
    flags.FLAGS(["vit-jax", "--logtostderr"])
    logging.set_verbosity(logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Not if it is closed or a notebook's.
            # The terminal's encoding may lack characters of a name.
            stream.reconfigure(errors="backslashreplace")
    _silence_tracebacks()
    sys.excepthook = _print_interrupted
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # Standard error has no file.
        faulthandler.enable()
    give_threads_to_simulated_devices()
    try:
        sys.exit(_run(command, list(sys.argv[1:] if argv is None else argv)))
    except BrokenPipeError:
        if not _pipe_is_closed():
            raise
        sys.exit(_EXIT_SIGPIPE)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename:  # Errors of a stream have no file name.
            raise
        sys.exit(_fail(f"Standard output cannot be written: {error.strerror}."))
    finally:
        _flush()


def _run(command: Command, argv: list[str]) -> int:
    values = flags.FlagValues()
    try:
        command.define(values)
        if {"-h", "-help", "--help", "--version"} & set(argv[: _flags_end(argv)]):
            version = "--version" in argv
            print(f"vit_jax {vit_jax.__version__}" if version else usage(command, values))
            return ExitCode.DONE
        arguments = parse(values, ["", *argv])[1:]
        if arguments and not command.takes_arguments:
            raise ConfigError(
                f"Unexpected argument {' '.join(arguments)!r}: flags begin with --. See --help."
            )
        if "show_config" in values and values.show_config:
            print(printable(show_config(values)))
            return ExitCode.DONE
        if missing := [name for name in command.required if values[name].value is None]:
            raise ConfigError(f"--{missing[0]}=... is missing. See --help.")
        return command.main(values, arguments) or ExitCode.DONE
    except VitJaxError as error:
        _fail(error)
        return exit_code(error)


def _flags_end(argv: list[str]) -> int:
    return argv.index("--") if "--" in argv else len(argv)


def usage(command: Command, values: flags.FlagValues) -> str:
    """Returns the text of `--help`: the command's description and its flags."""
    lines = [inspect.cleandoc(command.description or ""), "", "Flags:"]
    for flag in sorted(values._flags().values(), key=lambda flag: flag.name):
        default = "" if flag.default in (None, "", [], False) else f" (default: {flag.default})"
        default = " (required)" if flag.name in command.required else default
        name = flag.name if flag.boolean else f"{flag.name}=..."
        text, repeated, _ = str(flag.help).partition(";\n")
        lines.append(f"  --{name}: {text}{' May be repeated.' if repeated else ''}{default}")
    lines += ["  --help, --version"]
    return "\n".join(lines)


def _print_interrupted(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Exception hook: prints no traceback for Ctrl-C."""
    if issubclass(kind, KeyboardInterrupt):
        print("Interrupted.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


class _StreamOrNothing(io.FileIO):
    """A standard stream that goes to nowhere once its reader, a pipe or a terminal, has ended."""

    def write(self, data: Any) -> int:
        """Writes the bytes; returns how many were written."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: a terminal that is closed.
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return super().write(data)


def continue_without_output() -> None:
    """Lets this process continue, without printing, when nobody reads its output any more.

    A log pipe or a pager that ends must not cost a long run. Other commands only make output: they
    end with a shell's exit code for a closed pipe, 141.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):  # Closed, or a notebook's.
            continue
        stream.flush()
        raw = _StreamOrNothing(stream.fileno(), "w", closefd=False)
        replacement = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering or stream.write_through,
        )
        setattr(sys, name, replacement)


def _pipe_is_closed() -> bool:
    """Returns whether the pipe of standard output is closed, as after `... | head -1`."""
    poll = select.poll()
    if sys.stdout:
        poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _flush() -> None:
    """Flushes standard output; reports a failure without a traceback."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError as error:
        # Python flushes again at exit: that must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(_EXIT_SIGPIPE)
        sys.exit(_fail(f"Standard output cannot be written: {error.strerror}."))


def _silence_tracebacks() -> None:
    """Removes tracebacks from the logs of libraries: a failed save would print pages of them."""

    def without_traceback(record: LogRecord) -> bool:
        record.exc_info = record.exc_text = None
        return True

    def unraisable(args: Any) -> None:
        # TensorStore raises this after a failed save, when Orbax has closed the event loop.
        if str(args.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(args)

    logging.get_absl_handler().addFilter(without_traceback)
    logging.get_absl_handler().setFormatter(_PrintableFormatter())
    warnings.formatwarning = lambda message, *location: f"{printable(str(message))}\n"
    sys.unraisablehook = unraisable


class _PrintableFormatter(logging.PythonFormatter):
    """Replaces control characters, which a foreign file name may contain, in logs of libraries."""

    def format(self, record: LogRecord) -> str:
        return printable(super().format(record))


def _fail(error: Exception | str) -> int:
    print(printable(f"error: {error}"), file=sys.stderr)
    return ExitCode.ERROR


# ---------------------------------------------------------------------------- the config's flag


def define_config(values: flags.FlagValues, argv: list[str] | None = None) -> None:
    """Defines --config and --show_config; read the first with `read_config`.

    `argv` is the command line with the overrides, by default that of the process.
    """
    config_flags.DEFINE_config_file(
        "config",
        None,
        "NAME or FILE.py, with :key=value,... for arguments; --config.KEY=VALUE overrides a key. "
        "`vit-jax config` lists names and arguments.",
        flag_values=values,
        sys_argv=argv,
    )
    values["config"].parser = ConfigFileParser()
    for kind, parser in ((int, flags.IntegerParser()), (float, flags.FloatParser())):
        config_flags.register_flag_parser_for_type(kind, OptionalParser(parser))
    flags.DEFINE_bool(
        "show_config",
        False,
        "Print every key with its value, meaning and origin, and end.",
        flag_values=values,
    )


def config_of(arguments: Sequence[str]) -> FrozenConfigDict:
    """Returns the config that a command reads from these --config... flags.

    Raises:
      ConfigError: a flag, the file or a key is wrong.
    """
    argv = ["", *arguments]
    values = flags.FlagValues()
    define_config(values, argv)
    parse(values, argv)
    return read_config(values)


def overridden(values: flags.FlagValues) -> dict[str, Any]:
    """Returns the overrides of the command line, such as {"optim.lr": 0.001}."""
    return dict(config_flags.get_override_values(values["config"]))


def define_model(values: flags.FlagValues) -> None:
    """Defines the flags of the commands that load a model to use it."""
    model = "WORKDIR, WORKDIR/checkpoints/STEP, or a published checkpoint."
    hints = "Settings missing in its file: NAME=VALUE,..."
    flags.DEFINE_string("checkpoint", None, model, flag_values=values)
    flags.DEFINE_list("hints", [], hints, flag_values=values)
    flags.DEFINE_string("image_size", "", "Pixels: 384, or HEIGHTxWIDTH.", flag_values=values)
    flags.DEFINE_integer("batch_size", None, "Images at a time.", 1, flag_values=values)


def define_dtype(values: flags.FlagValues) -> None:
    """Defines --dtype, of the commands whose outputs are not measured in float32 alone."""
    dtypes = ("float32", "bfloat16")
    flags.DEFINE_enum("dtype", None, dtypes, "Of the computation.", flag_values=values)


def check_price(values: flags.FlagValues) -> None:
    """Raises ConfigError unless --price is finite: the bounds of a flag let NaN and inf pass."""
    if not math.isfinite(values.price):
        raise ConfigError(f"--price={values.price}: give a number, or leave the flag out.")


def read_config(values: flags.FlagValues) -> FrozenConfigDict:
    """Returns the frozen config, with its overrides."""
    config = values["config"].value
    assert isinstance(config, ConfigDict)  # --config is a required flag.
    changed = overridden(values)
    unset_other_units(config, changed)
    if kept := sizes_beside_variant(config, changed):
        from vit_jax.telemetry.notes import note  # Imports JAX.

        note(
            f"model.variant={changed['model.variant']} leaves the sizes that the config sets: "
            f"{kept}. With a key of None the size is the variant's."
        )
    return freeze(config)


def show_config(values: flags.FlagValues) -> str:
    """Returns a line for each key of --config: value, meaning, and where it was set.

    Raises:
      ConfigError: there is no --config.
    """
    if values["config"].value is None:
        raise ConfigError("--show_config shows the config of --config=..., which is missing.")
    file = config_flags.get_config_filename(values["config"])
    return listing(
        read_config(values),
        file=file,
        from_file=make_config(file),
        overridden=overridden(values),
    )


def read_sweep(values: flags.FlagValues) -> tuple[str, str, list[Any]]:
    """Returns the file of --config, the argument after its colon (or ""), and its sweep() points.

    Raises:
      ConfigError: the file has no sweep(), or sweep() failed.
    """
    return make_points(config_flags.get_config_filename(values["config"]))
