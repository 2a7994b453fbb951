"""What a user should know about a run that is not an error: plain lines on standard error.

Every warning of ours goes through this file. It uses the standard logger `vit_jax`, so a program
can filter or redirect the lines; the commands (`vit_jax.cli`) print each one without a prefix, as
Python does by default.
"""

import logging
import sys

LOGGER = "vit_jax"

_shown: set[str] = set()


def note(message: str) -> None:
    """Shows a fact about the inputs of a run, such as files that are not used, once.

    It is shown by the first of a run's processes only, since all of them find the same; and not
    again if the same data are opened again, for another split.
    """
    if message not in _shown and _process_index() == 0:
        _shown.add(message)
        logging.getLogger(LOGGER).warning("%s", message)


def warn(message: str) -> None:
    """Shows an event that may differ between processes and may occur again."""
    logging.getLogger(LOGGER).warning("%s", message)


def _process_index() -> int:
    """Returns this process's index without initialising JAX's devices, or importing JAX."""
    distributed = sys.modules.get("jax._src.distributed")  # JAX has no public API for it.
    return (distributed and distributed.global_state.process_id) or 0
