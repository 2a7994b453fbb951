"""Prepares a process of a sweep; executed as a file, before Python imports anything.

    python start.py PARENT CORES COMMAND...

The process limits itself to some cores, arranges to be stopped when its parent ends, and executes
the command. This is a file rather than a function called after a fork, because the parent has
threads: in a forked child, code before exec can deadlock on a lock.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # Of Linux's prctl.


def main(parent: int, cores: set[int], command: list[str]) -> None:
    """Replaces this process by `command`.

    Args:
      parent: id of the parent process. When it ends, in any way, this process gets SIGTERM: it
        saves and ends.
      cores: the CPU cores that this process may use; empty: unchanged.
      command: the command line to execute.
    """
    # SIGUSR2, Slurm's warning before the time limit, is for the job and not for its child.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if cores:
            os.sched_setaffinity(0, cores)
    if os.getppid() != parent:  # The parent ended before prctl.
        sys.exit(128 + signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execv(command[0], command)


if __name__ == "__main__":
    main(
        int(sys.argv[1]),
        {int(core) for core in sys.argv[2].split(",") if core},
        sys.argv[3:],
    )
