"""The errors that a user can cause and correct, and the exit codes of the commands.

Every error says what is wrong, where, and what to do next. The commands
(`python -m vit_jax.<verb>`) print these errors without a traceback.
"""

import difflib
import enum
from collections.abc import Iterable


class ExitCode(enum.IntEnum):
    """What a command's exit code means. After STOPPED and LOST the same command goes on.

    So it does after a signal: JAX aborts a process (SIGABRT) when it loses another one.
    """

    DONE = 0
    FAILED = 1  # Some inputs or runs failed, or a comparison found a difference.
    ERROR = 2  # An error that the message explains.
    STOPPED = 75  # EX_TEMPFAIL: told to stop (SIGTERM, SIGINT), and everything is saved.
    LOST = 76  # EX_PROTOCOL: another process is lost, or nothing happened for too long.


class VitJaxError(Exception):
    """Something the user can correct: the message says what, where and how."""


class ConfigError(VitJaxError, ValueError):
    """A config key, value or argument that makes no sense."""


class DataError(VitJaxError):
    """A data set, split, file or label that is missing or broken."""


class CheckpointError(VitJaxError):
    """A checkpoint that is missing, broken, or does not belong to this run."""


class LostError(VitJaxError):
    """A process that this one needs was killed or stalled: the same command goes on."""


class NonFiniteError(VitJaxError):
    """A loss or a gradient became NaN or infinite."""


def exit_code(error: BaseException) -> ExitCode:
    """Returns the exit code of a command that ends with this error."""
    return ExitCode.LOST if isinstance(error, LostError) else ExitCode.ERROR


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A hint that ends an error message: the nearest choice, and all the accepted ones.

    Args:
      name: what the user wrote.
      choices: what is accepted.

    Returns:
      E.g. `Did you mean "cosine"? Accepted: constant, cosine, linear, rsqrt.`
    """
    choices = list(choices)
    near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    guess = f'Did you mean "{near[0]}"? ' if near else ""
    return f"{guess}Accepted: {', '.join(choices)}."


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey: class names may come from a stranger."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}"
        for letter in text
    )
