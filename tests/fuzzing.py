"""Tests with random inputs: how many examples are tried, and bounds of their time and memory.

The number of examples is for a few seconds a test. For a long search, a hundred times as many:

    VIT_JAX_FUZZ_EXAMPLES=100 python -m pytest tests/checkpoints_*test.py --timeout=0
"""

import contextlib
import os
import resource
import time
import warnings

from hypothesis import HealthCheck, given, settings

from vit_jax.errors import VitJaxError

TIMES = float(os.environ.get("VIT_JAX_FUZZ_EXAMPLES", "1"))
SECONDS = 30  # For one example on a busy machine: more is work without bound.
MEMORY = 2**30  # Above the most that the process has needed before it.


def fuzz(examples, **strategies):
    """A test of `examples` examples, times VIT_JAX_FUZZ_EXAMPLES; each is bounded in time."""

    def decorate(test):
        quick = settings(
            max_examples=max(1, round(examples * TIMES)),
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=TIMES == 1,
            database=None,
        )
        return quick(given(**strategies)(test))

    return decorate


@contextlib.contextmanager
def bounded():
    """Only our errors leave what is inside, which ends soon and needs no memory to speak of."""
    start, high_water = time.monotonic(), peak_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # As users run it: a warning is no error.
        with contextlib.suppress(VitJaxError):
            yield
    assert time.monotonic() - start < SECONDS
    assert peak_bytes() - high_water < MEMORY


def peak_bytes():
    """The most memory that this process has had: other tests of the same worker are in it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
