"""TensorBoard's event files, written without TensorFlow: records of length, crc, event, crc."""

import re
import socket
import struct
import time
from collections.abc import Mapping

from etils import epath

from vit_jax import storage
from vit_jax.errors import DataError
from vit_jax.telemetry.growing import open_growing


class EventFile:
    """The events of one process of a run: a new file in the folder `tb`.

    tensorboardX's own writer puts them into a queue, whose reader dies of a full disk and leaves
    the run waiting for ever; and it names files by the clock, which may have gone back. Its
    messages and its crc are used here, no more.
    """

    def __init__(self, logdir: epath.PathLike, *, first_step: int):
        """Opens the file.

        Args:
          logdir: folder that holds the event files of a run.
          first_step: TensorBoard hides what earlier files say of it and of later steps.

        Raises:
          DataError: the file cannot be written.
        """
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import masked_crc32c

        self._event, self._summary, self._crc = Event, Summary, masked_crc32c
        logdir = epath.Path(logdir)
        try:
            storage.make_subfolder(logdir)
            stamp = _next_stamp(storage.names(logdir))
        except OSError as error:
            raise DataError(f"{logdir} cannot be written: {storage.explain(error)}.") from error
        self._file = open_growing(
            logdir / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}"
        )
        self._write(file_version="brain.Event:2")
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Add the values of a step."""
        scalars = [self._summary.Value(tag=tag, simple_value=v) for tag, v in values.items()]
        self._write(step=step, summary=self._summary(value=scalars))

    def flush(self) -> None:
        """Return when all is on the disk."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()

    def _write(self, **fields) -> None:
        event = self._event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(event))
        crcs = (struct.pack("<I", self._crc(part)) for part in (length, event))
        self._file.append(b"".join((length, next(crcs), event, next(crcs))))


def _next_stamp(names: list[str]) -> int:
    """The time in seconds, or what comes after the newest file: they are read by name."""
    stamps = [int(match[1]) for name in names if (match := re.match(r".*tfevents\.(\d+)\.", name))]
    return max(int(time.time()), max(stamps, default=-1) + 1)
