"""The parts of the tests: each test is in one of them, by its markers, and has that part's time.

fast        no marker            make test-fast    a minute
medium      pytest.mark.medium   make test         fast and medium: six minutes
slow        pytest.mark.slow     CI                fast, medium and slow: half an hour
campaign    pytest.mark.campaign make campaign     a night
"""

import os
import resource
import time

import pytest

MARKERS = ("medium", "slow", "campaign")
# Of a test in `make test`. Write it for five. With cold caches and a busy host, tests of 2.8 and
# 4 s took 5.2 and 13 s of processor time: the limit finds what is in the wrong part.
LIMIT_SECONDS = 30.0
LOOP_SECONDS = 0.05  # What `_loop_seconds` takes on the machine that CONTRIBUTING.md names.


def part_of(markers: set[str]) -> str:
    """Returns the part of a test with these markers: the longest that one of them names."""
    return next((marker for marker in reversed(MARKERS) if marker in markers), "fast")


def cpu_seconds() -> float:
    """Returns the processor time of this process and of its children that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _loop_seconds() -> float:
    """Returns the processor time of a fixed loop in Python: the machine's speed now."""
    start = time.process_time()
    total = 0
    for i in range(1_000_000):
        total += i * i
    return time.process_time() - start


def _busy() -> float:
    """Returns how many processes want each processor, at least one."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class TimeLimit:
    """Fails a test of `make test` that takes more than thirty seconds, setup excluded.

    Processor time counts, so that a busy machine fails no test, and on a slower machine the limit
    grows with the time of a fixed loop. Waiting is limited too: to twice as long, times the load.
    """

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        """Times the call phase."""
        cpu, start = cpu_seconds(), time.monotonic()
        result = yield
        seconds = max(cpu_seconds() - cpu, (time.monotonic() - start) / (2 * _busy()))
        part = part_of({mark.name for mark in item.iter_markers()})
        if part in ("fast", "medium") and seconds > LIMIT_SECONDS:
            limit = LIMIT_SECONDS * max(1.0, _loop_seconds() / LOOP_SECONDS)
            if seconds > limit:
                pytest.fail(
                    f"took {seconds:.1f} s, of {limit:.1f} s for a test in `make test`: make it "
                    "faster, or mark it slow",
                    pytrace=False,
                )
        return result
