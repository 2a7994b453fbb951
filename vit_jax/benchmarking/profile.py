"""Profiles our train step in a process of its own, and reports it in words."""

import pathlib
import tempfile

from vit_jax.benchmarking.case import Case
from vit_jax.benchmarking.process import Worker
from vit_jax.benchmarking.profiled_step import Profile
from vit_jax.benchmarking.turns import Report


def profile(case: Case, *, report: Report = lambda line: None) -> Profile:
    """Profiles our train step of a case, in a process of its own.

    Raises:
      WorkerError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        report(f"profiling {case.describe_workload()}")
        with Worker("profile", case, pathlib.Path(folder)) as worker:
            fields = worker.do("profile", timeout_seconds=3600.0)
    operations = [tuple(each) for each in fields.pop("operations")]
    arrays = [tuple(each) for each in fields.pop("arrays")]
    return Profile(**fields, operations=operations, arrays=arrays)
