"""What the fuzz tests share: how much is tried, what is a bound, and values of every kind.

The number of examples is for a few seconds a target. For a long search, a hundred times as many:

    VIT_JAX_FUZZ_EXAMPLES=100 python -m pytest tests/fuzz_*test.py --timeout=0
"""

import contextlib
import os
import resource
import time
import warnings

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(-2, 2),
    st.floats(),
    st.sampled_from([2**31, 2**32, 2**63, 10**30, 1e-45, 1e300, 1e308, -0.0]),
)
WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "None", "nan", "-inf", "1e5", "true", "no", "B/16", "Ti/2", "mu/4", "22B/1", ".*", "(",
         "head/.*", "a" * 5000, "\ud800", "\x1b[31m", "../../etc/passwd", "gs://b/c", "train[:9%]",
         "cosine", "rsqrt", "adafactor", "muon", "lamb", "map", "sincos2d", "sigmoid_xent", "skip",
         "full", "test/top1", "fashion_mnist", "{'a': 1}", "((1, 2), 3)", "[" * 90, "1,2", "\0"]
    ),
)  # fmt: skip
