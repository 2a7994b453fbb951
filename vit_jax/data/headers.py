"""Finds broken image files before a run begins: by their headers and ends, without decoding them.

It takes about .1 ms a file, and decoding 2 to 8 ms (JPEG, PNG and WebP of 500x400 pixels in the
page cache, on one of 2 cores of an Intel Xeon). So a run checks what 2 seconds allow, about 20,000
files; a broken file beyond these is found when it is read, maybe hours into a run.
"""

import itertools
import time
from collections.abc import Iterator, Sequence

from vit_jax.data.base import Source
from vit_jax.data.batches import IF_FEW_ARE_BAD
from vit_jax.data.decode import decode_image, is_plausible_file
from vit_jax.errors import DataError
from vit_jax.telemetry.notes import note

MAX_SECONDS = 2.0
_MAX_LISTED = 50
_MAX_NOTED = 3


def check_headers(sources: Sequence[Source], *, skip_bad: bool) -> None:
    """Looks for broken files among examples that are a file each; others are not checked.

    A file whose header or end looks wrong is decoded, and is broken only if that fails. It stops
    after `MAX_SECONDS`. A file that cannot be read at present is left to the run.

    Args:
      sources: splits of a data set.
      skip_bad: whether broken files are skipped by the run, so that a note has their number.

    Raises:
      DataError: some are broken; the message lists them.
    """
    checked, broken = 0, []
    for message in _messages(sources):
        checked += 1
        if message:
            broken.append(message)
    if not broken:
        return
    count = f"{len(broken):,} of {checked:,} checked images"
    if skip_bad:
        verb, more = "is" if len(broken) == 1 else "are", len(broken) - _MAX_NOTED
        rest = f"; and {more:,} more" if more > 0 else ""
        note(f"{count} {verb} broken, and skipped: {'; '.join(broken[:_MAX_NOTED])}{rest}")
        return
    more = f"\n... and {len(broken) - _MAX_LISTED:,} more" if len(broken) > _MAX_LISTED else ""
    raise DataError(
        f"{count} cannot be read:\n" + "\n".join(broken[:_MAX_LISTED]) + more + IF_FEW_ARE_BAD
    )


def _messages(sources: Sequence[Source]) -> Iterator[str]:
    """Yields "" for each file that seems whole and a message for a broken one, until time is up."""
    start, seen = time.monotonic(), set()
    of_files = (source for source in sources if source.file(0) is not None)
    # Alternates between the splits: each is checked in part even if the time is too short.
    rounds = itertools.zip_longest(*(zip(itertools.repeat(s), range(len(s))) for s in of_files))
    for source, index in filter(None, itertools.chain.from_iterable(rounds)):
        if time.monotonic() - start > MAX_SECONDS:
            return
        file = source.file(index)
        if file is not None and file not in seen:  # Splits may overlap.
            seen.add(file)
            yield "" if is_plausible_file(file) else _error(source, index)


def _error(source: Source, index: int) -> str:
    try:
        decode_image(source[index]["image"])
    except DataError as error:
        return f"{source.describe(index)}: {error}"
    except OSError:  # A fault of the file system, see `vit_jax.data.reading.is_transient`.
        pass
    return ""
