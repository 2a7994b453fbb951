"""Threads for simulated devices; imports no JAX."""

import os
import re


def give_threads_to_simulated_devices() -> None:
    """Gives XLA four threads for each simulated CPU device. Call it before XLA starts.

    By default XLA has as many threads as devices or cores. A device that waits in a collective
    blocks its thread; if another task (a copy, another program) takes one more, the last device has
    none, and all wait until XLA aborts after 40 s. XLA reads the number of threads from NPROC.
    """
    flag = re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if flag and int(flag[1]) > 1:
        os.environ.setdefault("NPROC", str(4 * int(flag[1])))
