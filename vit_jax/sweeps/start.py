"""The first lines of a process of a sweep: executed as a file, before Python imports anything.

    python start.py PARENT CORES COMMAND...

The process takes some of the machine's cores, sees to it that it ends with its parent, and becomes
the command. It is a file and no function that is called after a fork: the parent has threads, and
what such a child does before it executes something can wait for ever for a lock.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # Of Linux's prctl.


def main(parent: int, cores: set[int], command: list[str]) -> None:
    """Becomes `command`.

    Args:
      parent: the process that started this one. When it ends, however it ends, this one is told to
        stop, as by SIGTERM: it saves.
      cores: that it may use; none: as it is.
      command: what is executed.
    """
    # Slurm's warning before the end of time is for the job, not for the run in it.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if cores:
            os.sched_setaffinity(0, cores)
    if os.getppid() != parent:  # It has ended already.
        sys.exit(128 + signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execv(command[0], command)


if __name__ == "__main__":
    main(
        int(sys.argv[1]),
        {int(core) for core in sys.argv[2].split(",") if core},
        sys.argv[3:],
    )
