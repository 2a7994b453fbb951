"""Writes TensorBoard's event files: records of length, CRC, event, CRC.

The package tensorboard (2.21) writes them too, but with its dependencies (grpcio, a data server) it
takes 60 MB and .10 s at every start, and it names files by a clock that may go back.
"""

import re
import socket
import struct
import time
from collections.abc import Mapping

import google_crc32c
from etils import epath
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from vit_jax import storage
from vit_jax.errors import DataError
from vit_jax.telemetry.growing import open_growing

# The fields that we write of TensorFlow's event.proto and summary.proto.
_SCHEMA = """
  name: "vit_jax/event.proto"
  package: "vit_jax"
  message_type {
    name: "Event"
    field { name: "wall_time" number: 1 type: TYPE_DOUBLE }
    field { name: "step" number: 2 type: TYPE_INT64 }
    field { name: "file_version" number: 3 type: TYPE_STRING }
    field { name: "summary" number: 5 type: TYPE_MESSAGE type_name: ".vit_jax.Summary" }
    field { name: "session_log" number: 7 type: TYPE_MESSAGE type_name: ".vit_jax.SessionLog" }
  }
  message_type {
    name: "Summary"
    field {
      name: "value" number: 1 type: TYPE_MESSAGE type_name: ".vit_jax.Value" label: LABEL_REPEATED
    }
  }
  message_type {
    name: "Value"
    field { name: "tag" number: 1 type: TYPE_STRING }
    field { name: "simple_value" number: 2 type: TYPE_FLOAT }
  }
  message_type {
    name: "SessionLog"
    field { name: "status" number: 1 type: TYPE_INT32 }
  }
"""
_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(text_format.Parse(_SCHEMA, descriptor_pb2.FileDescriptorProto()))
_Event = message_factory.GetMessageClass(_POOL.FindMessageTypeByName("vit_jax.Event"))
_START = 1  # SessionLog.START.


class EventFile:
    """The event file of one process of a run."""

    def __init__(self, logdir: epath.PathLike, *, first_step: int):
        """Opens a new file.

        Args:
          logdir: folder of the event files of a run.
          first_step: TensorBoard hides values that earlier files have for this and later steps.

        Raises:
          DataError: the file cannot be written.
        """
        logdir = epath.Path(logdir)
        with storage.reported(DataError, f"{logdir} cannot be written"):
            storage.make_subfolder(logdir)
            timestamp = _next_timestamp(storage.names(logdir))
        self._file = open_growing(
            logdir / f"events.out.tfevents.{timestamp:010d}.{socket.gethostname()}"
        )
        self._write(file_version="brain.Event:2")
        self._write(step=first_step, session_log={"status": _START})

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Appends the values of a step."""
        scalars = [{"tag": tag, "simple_value": value} for tag, value in values.items()]
        self._write(step=step, summary={"value": scalars})

    def flush(self) -> None:
        """Writes all events to the disk."""
        self._file.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._file.close()

    def _write(self, **fields) -> None:
        event = _Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(event))
        self._file.append(b"".join((length, _masked_crc(length), event, _masked_crc(event))))


def _masked_crc(data: bytes) -> bytes:
    """Returns TFRecord's masked CRC: rotated and offset, since data may contain CRCs."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def _next_timestamp(names: list[str]) -> int:
    """Returns the time in seconds, at least one more than the newest file's: the order of names."""
    timestamps = [
        int(match[1]) for name in names if (match := re.match(r".*tfevents\.(\d+)\.", name))
    ]
    return max(int(time.time()), max(timestamps, default=-1) + 1)
