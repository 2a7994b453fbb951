"""The errors that a user can cause and correct, and the exit codes of the commands.

Every message says what is wrong, where, and what to do next. The commands
(`python -m vit_jax.<verb>`) print these errors without a traceback.
"""

import difflib
import enum
from collections.abc import Iterable


class ExitCode(enum.IntEnum):
    """Exit codes of the commands. After STOPPED and LOST the same command resumes the run.

    The same holds after an abort (SIGABRT): JAX aborts a process when it loses another one.
    """

    DONE = 0
    FAILED = 1  # Some inputs or runs failed, or a comparison found a difference.
    ERROR = 2  # An error that the message explains.
    STOPPED = 75  # EX_TEMPFAIL: stopped by SIGTERM or SIGINT, and saved.
    LOST = 76  # EX_PROTOCOL: another process is lost, or no progress until the timeout.


class VitJaxError(Exception):
    """An error that the user can correct; the message says what, where and how."""


class ConfigError(VitJaxError, ValueError):
    """A config key, value or argument is invalid."""


class DataError(VitJaxError):
    """A data set, split, file or label is missing or damaged."""


class CheckpointError(VitJaxError):
    """A checkpoint is missing, damaged, or does not belong to this run."""


class LostError(VitJaxError):
    """Another process of the run was killed or stalled; the same command resumes the run."""


class NonFiniteError(VitJaxError):
    """A loss or a gradient is NaN or infinite."""


def exit_code(error: BaseException) -> ExitCode:
    """Returns the exit code of a command that ends with this error."""
    return ExitCode.LOST if isinstance(error, LostError) else ExitCode.ERROR


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns a hint for an error message: the choice nearest to `name`, and all choices.

    Returns:
      E.g. `Did you mean "cosine"? Accepted: constant, cosine, linear, rsqrt.`
    """
    choices = list(choices)
    near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    guess = f'Did you mean "{near[0]}"? ' if near else ""
    return f"{guess}Accepted: {', '.join(choices)}."


def printable(text: str) -> str:
    """Replaces control characters: names from foreign files must not control the terminal."""
    return "".join(
        char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text
    )
