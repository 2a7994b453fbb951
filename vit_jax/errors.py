"""The errors that a user can cause and correct, and the exit codes of the commands.

Every error says what is wrong, where, and what to do next. The commands
(`python -m vit_jax.<verb>`) print these errors without a traceback.
"""

import difflib
import enum
from collections.abc import Iterable


class ExitCode(enum.IntEnum):
    """What a command's exit code means.

    After STOPPED and LOST, the same command continues the run. The same holds after a signal: JAX
    aborts a process (SIGABRT) when it loses another one.
    """

    DONE = 0
    FAILED = 1  # Some inputs or runs failed, or a comparison found a difference.
    ERROR = 2  # An error that the message explains.
    STOPPED = 75  # EX_TEMPFAIL: stopped by SIGTERM or SIGINT after everything was saved.
    LOST = 76  # EX_PROTOCOL: another process was lost, or the run stalled for too long.


class VitJaxError(Exception):
    """An error that the user can correct; the message says what is wrong, where, and how.

    Example:
      >>> try:
      ...     create("B16")
      ... except VitJaxError as error:
      ...     print(error)
      "B16" is no model size and no file. Did you mean "B/16"? ...
    """


class ConfigError(VitJaxError, ValueError):
    """A config key, value or argument that is invalid."""


class DataError(VitJaxError):
    """A data set, split, file or label that is missing or broken."""


class CheckpointError(VitJaxError):
    """A checkpoint that is missing, broken, or does not belong to this run."""


class LostError(VitJaxError):
    """A process that this one needs was killed or stalled; the same command continues the run."""


class NonFiniteError(VitJaxError):
    """A loss, a gradient or an output became NaN or infinite."""


def exit_code(error: BaseException) -> ExitCode:
    """Returns the exit code of a command that ends with this error."""
    return ExitCode.LOST if isinstance(error, LostError) else ExitCode.ERROR


_LONGEST_LIST = 200  # Characters; a longer list hides the suggestion.
_NEAREST = 5


def did_you_mean(name: str, choices: Iterable[str], *, see: str = "") -> str:
    """Returns the end of an error message: the choice nearest to `name`, and all choices.

    For example `Did you mean "cosine"? Accepted: constant, cosine, linear, rsqrt.` Of a long list
    it names the nearest five choices, the number of the others, and `see`: what lists all.
    """
    choices, name = list(choices), str(name)
    longer = [choice for choice in choices if len(name) > 2 and choice.startswith(name)]
    matches = longer or difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    suggestion = f'Did you mean "{matches[0]}"? ' if matches else ""
    if len(accepted := ", ".join(choices)) <= _LONGEST_LIST or len(choices) <= _NEAREST:
        return f"{suggestion}Accepted: {accepted}."
    nearest = difflib.get_close_matches(name, choices, n=_NEAREST, cutoff=0.0)
    rest = f"and {len(choices) - len(nearest)} more" + (f" (see {see})" if see else "")
    return f"{suggestion}Accepted: {', '.join(nearest)} {rest}."


def printable(text: str) -> str:
    """Replaces control characters, which a terminal would obey, in text from untrusted files."""
    return "".join(
        char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text
    )
