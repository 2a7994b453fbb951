"""What a user should know about a run that is not an error: plain lines on standard error.

Every warning of ours goes through this file, in the commands, in a script and in a notebook. It
uses the standard logger `vit_jax`, so a program can silence the lines
(`logging.getLogger("vit_jax").setLevel("ERROR")`) or add a handler of its own.

The logger has a handler of its own and passes nothing to the root logger: JAX's libraries configure
that one while they are imported, which would print "WARNING:vit_jax:" before each note.
"""

import contextlib
import logging
import sys

from vit_jax.errors import printable

LOGGER = "vit_jax"

_shown: set[str] = set()
_left_to_others = False


def note(message: str) -> None:
    """Shows a fact about the inputs of a run, such as files that are not used, once.

    It is shown by the first of a run's processes only, since all of them find the same; and not
    again if the same data are opened again, for another split.
    """
    if message not in _shown and not _left_to_others and _process_index() == 0:
        _shown.add(message)
        _logger().warning("%s", message)


def leave_notes_to_others() -> None:
    """Makes `note` silent in this process, since another one of the same machine shows the same."""
    global _left_to_others
    _left_to_others = True


def warn(message: str) -> None:
    """Shows an event that may differ between processes and may occur again."""
    _logger().warning("%s", message)


class _PlainLines(logging.Handler):
    """Prints messages on the current standard error, which notebooks and progress bars replace."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            # A note must not end a run whose standard error is closed.
            with contextlib.suppress(OSError, ValueError):
                # A foreign file name may contain control characters.
                print(printable(record.getMessage()), file=sys.stderr, flush=True)


def _logger() -> logging.Logger:
    """Returns our logger, with a handler unless the program has given it one."""
    logger = logging.getLogger(LOGGER)
    if not logger.handlers:
        logger.addHandler(_PlainLines())
        logger.propagate = False
    return logger


def _process_index() -> int:
    """Returns this process's index without initialising JAX's devices, or importing JAX."""
    distributed = sys.modules.get("jax._src.distributed")  # JAX has no public API for it.
    return (distributed and distributed.global_state.process_id) or 0
