"""Tests with random inputs: number of examples, and bounds of their time and memory.

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
SECONDS = 30  # For one example on a busy machine; more means unbounded work.
MEMORY = 2**30  # Bytes above the previous peak of the process.


def fuzz(examples, **strategies):
    """Runs a test with `examples` * VIT_JAX_FUZZ_EXAMPLES examples, each bounded in time."""

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
    """Checks that the block raises only VitJaxErrors, in bounded time and memory."""
    start, high_water = time.monotonic(), peak_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # As for users, a warning is not an error.
        with contextlib.suppress(VitJaxError):
            yield
    assert time.monotonic() - start < SECONDS
    assert peak_bytes() - high_water < MEMORY


def peak_bytes():
    """Returns the peak memory of this process, including other tests of the same worker."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
