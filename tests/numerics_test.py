"""What XLA compiles at its default optimisation level is right: a sample of `benchmarks.numerics`.

The other tests compile without optimisations (conftest.py), and would not see a compiler that
optimises wrongly. So this sample runs in a process of its own, once for all of its cases.
"""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.numerics import SAMPLE
from benchmarks.numerics_cases import CASES
from tests.conftest import ROOT

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def errors():
    """The results by operation and rows."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.numerics", "--sample", "--json"],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    results = {}
    for line in map(json.loads, done.stdout.splitlines()):
        results.setdefault((line["operation"], line["rows"]), []).append(line)
    return results


@pytest.mark.parametrize(("operation", "rows"), SAMPLE)
def test_compiled_programs_are_as_exact_as_numpy(errors, operation, rows):
    for result in errors[operation, rows]:
        assert not result["wrong"], result


def test_the_sample_has_every_operation():
    assert {operation for operation, _ in SAMPLE} == set(CASES)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_compiled_programs_are_as_exact_as_numpy_for_all_sizes():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.numerics"],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
