"""The parts of the tests: each test is in one of them, by its markers, and has that part's time.

fast        no marker            make test-fast    a minute
medium      pytest.mark.medium   make test         fast and medium: six minutes
slow        pytest.mark.slow     CI                fast, medium and slow: half an hour
campaign    pytest.mark.campaign make campaign     a night
"""

import time

import pytest

MARKERS = ("medium", "slow", "campaign")
LIMIT_SECONDS = 5.0  # Of a test in `make test`.
LOOP_SECONDS = 0.05  # What `_loop_seconds` takes on the machine that CONTRIBUTING.md names.


def part_of(markers: set[str]) -> str:
    """Returns the part of a test with these markers: the longest that one of them names."""
    return next((marker for marker in reversed(MARKERS) if marker in markers), "fast")


def _loop_seconds() -> float:
    """Returns what a fixed loop in Python takes now: the machine's speed and load."""
    start = time.perf_counter()
    total = 0
    for i in range(1_000_000):
        total += i * i
    return time.perf_counter() - start


class TimeLimit:
    """Fails a test of `make test` that takes more than five seconds, setup excluded.

    On a slower or busier machine the limit grows with the time of a fixed loop. A test that fails
    belongs to the slow part, or can be made faster.
    """

    def __init__(self, clock=time.perf_counter, loop_seconds=_loop_seconds):
        self.clock, self.loop_seconds = clock, loop_seconds

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        """Times the call phase."""
        start = self.clock()
        result = yield
        seconds = self.clock() - start
        part = part_of({mark.name for mark in item.iter_markers()})
        if part in ("fast", "medium") and seconds > LIMIT_SECONDS:
            limit = LIMIT_SECONDS * max(1.0, self.loop_seconds() / LOOP_SECONDS)
            if seconds > limit:
                pytest.fail(
                    f"took {seconds:.1f} s, of {limit:.1f} s for a test in `make test`: make it "
                    "faster, or mark it slow",
                    pytrace=False,
                )
        return result
