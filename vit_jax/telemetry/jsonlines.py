"""Files of one JSON object a line: appended to, cut back on resume; a torn last line is dropped.

A process may be killed at any byte. What it leaves is a file of whole lines, the last one perhaps
cut short; both the reader and `cut_after` understand that, and nothing else is forgiven.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from vit_jax import storage
from vit_jax.errors import DataError
from vit_jax.telemetry.growing import open_growing


class JsonLines:
    """A file that grows by one JSON object a line.

    A line reaches the operating system when it is appended, so it outlives the process; `flush`
    brings it to the disk, so it outlives the machine. In an object store it takes `flush` for both.
    """

    def __init__(self, path: epath.PathLike):
        self._file = open_growing(path)

    def append(self, record: Mapping[str, Any]) -> None:
        """Append one line. Floats are written as `repr` does and read back to the same bits.

        Raises:
          ValueError: a float is NaN or infinite, which JSON cannot say.
          DataError: the file cannot be written.
        """
        self._file.append(json.dumps(dict(record), allow_nan=False).encode() + b"\n")

    def flush(self) -> None:
        """Return when all lines are on the disk.

        Raises:
          DataError: the file cannot be written, or is no longer there.
        """
        self._file.flush()

    def close(self) -> None:
        """Flush and close. Closing twice is allowed."""
        self._file.close()


def read_jsonl(path: epath.PathLike) -> list[dict[str, Any]]:
    """All lines of a file, without the last one if it is half written.

    Args:
      path: a metrics.jsonl or timing.jsonl; a run may be writing to it.

    Raises:
      DataError: there is no such file, or a line other than the last cannot be read.
    """
    content = _read(path)
    if content is None:
        raise DataError(f"There is no file {path}: is this the work directory of a run?")
    return [record for _, record in _lines(content, path)]


def cut_after(path: epath.PathLike, *, last_step: int) -> int | None:
    """Remove the lines of all steps after `last_step`, atomically; keep the others to the byte.

    Args:
      path: a file whose lines have a "step", or no file yet.
      last_step: the last step to keep; -1 removes everything.

    Returns:
      The greatest step that is left, None if there is none.

    Raises:
      DataError: a line other than the last cannot be read, or the file cannot be written.
    """
    before = _read(path)
    if before is None:
        return None
    kept = [(line, record) for line, record in _lines(before, path) if record["step"] <= last_step]
    content = b"".join(line for line, _ in kept)
    if content != before:
        with storage.reported(DataError, f"{path} cannot be written"):
            storage.write_bytes(path, content)
    return max((record["step"] for _, record in kept), default=None)


def _read(path: epath.PathLike) -> bytes | None:
    """All of a file, None if there is none."""
    with storage.reported(DataError, f"{os.fspath(path)} cannot be read"):
        try:
            return storage.read_bytes(path)
        except FileNotFoundError:
            return None


def _lines(content: bytes, path: epath.PathLike) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each whole line with its newline, and what it says."""
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            whole = isinstance(record, dict) and type(record.get("step")) is int
        except (ValueError, RecursionError):  # Neither JSON nor UTF-8; or a joke.
            whole = False
        if whole:
            # Cut short by nothing but its newline, the line is still whole.
            yield line.rstrip(b"\r\n") + b"\n" if not line.endswith(b"\n") else line, record
        elif number < len(lines):
            raise DataError(
                f'{path}, line {number} is not a JSON object with a whole-numbered "step": '
                f"{line[:80]!r}. Only the last line can have been cut short by a kill, so the "
                "file was changed by something else: mend or remove that line, then start again."
            )
