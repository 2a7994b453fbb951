"""JSON Lines files: appended during a run, truncated on resume; a torn last line is dropped.

A process may be killed at any byte, so the last line of a file may be incomplete. The reader and
`cut_after` drop it; any other damage is an error.
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
    """A file to which JSON objects are appended, one per line.

    On a local disk an appended line survives the end of the process, and after `flush` also a crash
    of the machine. In an object store it survives either only after `flush`.
    """

    def __init__(self, path: epath.PathLike):
        self._file = open_growing(path)

    def append(self, record: Mapping[str, Any]) -> None:
        """Appends one line. Floats are written like `repr` and read back bit for bit.

        Raises:
          ValueError: a float is NaN or infinite, which JSON cannot represent.
          DataError: the file cannot be written.
        """
        self._file.append(json.dumps(dict(record), allow_nan=False).encode() + b"\n")

    def flush(self) -> None:
        """Writes all lines to the disk.

        Raises:
          DataError: the file cannot be written, or was deleted or replaced.
        """
        self._file.flush()

    def close(self) -> None:
        """Flushes and closes the file. May be called twice."""
        self._file.close()


def read_jsonl(path: epath.PathLike) -> list[dict[str, Any]]:
    """Returns all lines of a file, without an incomplete last one.

    Args:
      path: a metrics.jsonl or timing.jsonl; a run may be writing to it.

    Raises:
      DataError: there is no such file, or a line other than the last is invalid.
    """
    content = _read(path)
    if content is None:
        raise DataError(f"There is no file {path}: is this the work directory of a run?")
    return [record for _, record in _lines(content, path)]


def cut_after(path: epath.PathLike, *, last_step: int) -> int | None:
    """Removes the lines of steps after `last_step`, atomically; keeps the others byte for byte.

    Args:
      path: a file whose lines have a "step"; need not exist.
      last_step: the last step to keep; -1 removes everything.

    Returns:
      The largest step that is left, None if there is none.

    Raises:
      DataError: a line other than the last is invalid, or the file cannot be written.
    """
    before = _read(path)
    if before is None:
        return None
    lines_and_records = [
        (line, record) for line, record in _lines(before, path) if record["step"] <= last_step
    ]
    content = b"".join(line for line, _ in lines_and_records)
    if content != before:
        with storage.reported(DataError, f"{path} cannot be written"):
            storage.write_bytes(path, content)
    return max((record["step"] for _, record in lines_and_records), default=None)


def _read(path: epath.PathLike) -> bytes | None:
    """Returns the content of a file, None if it does not exist."""
    with storage.reported(DataError, f"{os.fspath(path)} cannot be read"):
        try:
            return storage.read_bytes(path)
        except FileNotFoundError:
            return None


def _lines(content: bytes, path: epath.PathLike) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields each complete line with its newline, and its record."""
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # Not JSON, not UTF-8, or nested too deeply.
            record = None
        if isinstance(record, dict) and type(record.get("step")) is int:
            # A last line that lacks only its newline is complete.
            yield line.rstrip(b"\r\n") + b"\n" if not line.endswith(b"\n") else line, record
        elif number < len(lines):
            raise DataError(
                f'{path}, line {number} is not a JSON object with a whole-numbered "step": '
                f"{line[:80]!r}. A kill can only truncate the last line, so something else "
                "changed the file: fix or remove that line, then run the command again."
            )
