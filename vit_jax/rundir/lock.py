"""One run at a time in a work directory.

The lock file names its owner. The package filelock (4.2) would leave it empty, and would fail on a
file system without locks (ENOLCK, ENOTSUP), where this module only warns.
"""

import contextlib
import datetime
import fcntl
import os
import pathlib
import re
import socket
from collections.abc import Iterator

from etils import epath

from vit_jax import storage
from vit_jax.errors import ConfigError
from vit_jax.rundir.lease import lease
from vit_jax.telemetry import notes

LOCK = "lock"
_NO_LOCKS = "the file system has no locks; do not start a second run in this directory."


@contextlib.contextmanager
def lock(workdir: epath.Path) -> Iterator[None]:
    """Locks a work directory for this process while the context lasts.

    The operating system releases the lock when the process ends, even if it is killed; the file
    stays. On a file system without locks nothing is locked, with a warning. In an object store this
    is a `vit_jax.rundir.lease.lease`.

    Raises:
      ConfigError: another process holds the lock, or the file cannot be written.
    """
    if not storage.is_local(workdir):
        with lease(workdir / LOCK):
            yield
        return
    with storage.reported(ConfigError, f"--workdir={workdir} cannot be written"):
        file = os.open(workdir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(file, 1000, 0).decode(errors="replace").strip()
            raise ConfigError(
                f"--workdir={workdir} is in use by {owner or 'another process'}: two runs cannot "
                "write to one work directory. Wait until it is done, stop it (SIGTERM lets it "
                "save), or choose another --workdir."
            ) from None
        except OSError as error:
            notes.warn(f"{workdir}: {_NO_LOCKS} ({error.strerror})")
        started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        owner = f"process {os.getpid()} on {socket.gethostname()}, started {started}\n"
        with storage.reported(ConfigError, f"--workdir={workdir} cannot be written"):
            os.ftruncate(file, 0)
            os.pwrite(file, owner.encode(), 0)
        yield
    finally:
        os.close(file)


def is_elsewhere(path: pathlib.Path) -> bool:
    """Returns whether the last holder of this local file's lock was on another machine.

    Its lock may be invisible here: not every network file system shares locks between machines.
    """
    try:
        owner = path.read_text(errors="replace")
    except OSError:
        return False
    match = re.match(r"process \d+ on (\S+), started", owner)
    return bool(match) and match[1] != socket.gethostname()


def is_held(path: pathlib.Path) -> bool:
    """Returns whether a process holds the lock of a local file; False without lock support.

    The caller holds the lock for some microseconds: a run that starts just then is refused, and
    starts when the same command is given again.
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False
