"""One run at a time in a work directory.

The file says who holds it. The package filelock (4.2) leaves it empty, and fails on a file system
without locks (ENOLCK, ENOTSUP), where a run goes on with a warning.
"""

import contextlib
import datetime
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator

from absl import logging
from etils import epath

from vit_jax import storage
from vit_jax.errors import ConfigError
from vit_jax.rundir.lease import lease

LOCK = "lock"
_NO_LOCKS = "there are no locks here; see to it that no second run is started in this directory."


@contextlib.contextmanager
def lock(workdir: epath.Path) -> Iterator[None]:
    """Holds a work directory for this process, for as long as the context or the process lasts.

    The operating system gives it back when the process ends, however it ends: a killed run leaves
    no lock behind, only the file, which stays. On a file system without locks nothing is held, and
    a warning says so. In an object store it is a `vit_jax.rundir.lease.lease`.

    Raises:
      ConfigError: another process holds it, or it cannot be written.
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
            logging.warning("%s: %s (%s)", workdir, _NO_LOCKS, error.strerror)
        started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        owner = f"process {os.getpid()} on {socket.gethostname()}, started {started}\n"
        with storage.reported(ConfigError, f"--workdir={workdir} cannot be written"):
            os.ftruncate(file, 0)
            os.pwrite(file, owner.encode(), 0)
        yield
    finally:
        os.close(file)


def is_held(path: pathlib.Path) -> bool:
    """Whether a process holds the lock of this local file; on a file system without locks, no.

    For some microseconds the one who asks holds it: a run that begins just then is refused, and
    starts when the same command is given again.

    Args:
      path: of a work directory's `LOCK`, or of another file that a process locks.
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
