"""Peak memory of this process (Linux) or of its device."""

import contextlib
import ctypes
import pathlib
import re
import resource
from typing import Any

_STATUS = pathlib.Path("/proc/self/status")
_CLEAR = pathlib.Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # Linux, proc(5): resets VmHWM to the present resident memory.


def reset_peak() -> bool:
    """Lets `peak_resident_bytes` begin anew; returns whether the system allows it.

    Memory that was freed, such as the compiler's, is first given back to the system (glibc keeps it
    otherwise, and it would count as that of the steps).
    """
    with contextlib.suppress(OSError, AttributeError):  # Another C library.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def peak_resident_bytes() -> int:
    """Returns the largest resident memory since the start, or since `reset_peak`."""
    try:
        match = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())
    except OSError:
        match = None
    if match:
        return int(match[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_device_bytes(device: Any) -> int | None:
    """Returns the peak of JAX's allocator on a device; None on a CPU, which has no such count."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")
