"""`python -m vit_jax.train` with a fault planted in it: VIT_JAX_FAULT=WHERE, in one process.

(Or `vit_jax.VERB`: VIT_JAX_VERB.)

With VIT_JAX_QUICK=SECONDS a process counts as lost after 10 s without a heartbeat; and once the
update is compiled, the time-out is that many seconds.

batch-hangs    the data set never gives an example of the training batch of step 5
batch-fails    the fifth batch raises a DataError
batch-breaks   the fifth batch raises what no code of ours should
hidden-bytes   the newest checkpoint cannot be read here, and can everywhere else
disk-busy      a checkpoint cannot be read now, and may be whole
curves-slow    the curves of a complete run take 15 s to draw: longer than a process may be silent
"""

import functools
import os
import runpy
import time

import jax

from vit_jax.analysis import figures
from vit_jax.checkpoints.store import Store
from vit_jax.data.pipeline import Batches
from vit_jax.errors import DataError
from vit_jax.parallel import watch

FAULT = os.environ.get("VIT_JAX_FAULT", "")
VERB = os.environ.get("VIT_JAX_VERB", "train")
QUICK = float(os.environ.get("VIT_JAX_QUICK", "0"))
_taken = 0


def plant() -> None:
    if QUICK:
        _quicken()
    if FAULT.startswith("batch-"):
        give = Batches.__next__

        def next_batch(self):
            global _taken
            _taken += 1
            if _taken == (5 if VERB == "train" else 1):
                if FAULT == "batch-hangs":
                    time.sleep(3600)
                raise DataError("pear.jpg: rotten.") if FAULT == "batch-fails" else OSError("pear")
            return give(self)

        Batches.__next__ = next_batch
    if FAULT == "curves-slow":
        draw = figures.curves
        figures.curves = lambda *paths, **options: (time.sleep(15), draw(*paths, **options))
    if FAULT in ("hidden-bytes", "disk-busy"):
        read, tries = Store._read, []

        def fail(self, step, targets):
            if not tries:
                tries.append(step)
                error = PermissionError(13, "Permission denied")
                error = error if FAULT == "disk-busy" else FileNotFoundError("a shard is missing")
                targets = _Raises(error)
            return read(self, step, targets)

        Store._read = fail


def _quicken() -> None:
    initialize = functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=10)
    jax.distributed.initialize = initialize
    watch.POLL_SECONDS, watch.GRACE_SECONDS = 0.5, 3.0
    at = watch.Watch.at

    def at_with_timeout(self, location):
        at(self, location)
        if location == "the batch of update 5":
            self._timeout = QUICK

    watch.Watch.at = at_with_timeout


class _Raises(dict):
    """Items whose arrays cannot be read."""

    def __init__(self, error):
        self.error = error

    def items(self):
        from vit_jax.checkpoints.faults import reading

        with reading("the newest checkpoint"):
            raise self.error


if __name__ == "__main__":
    plant()
    runpy.run_module(f"vit_jax.{VERB}", run_name="__main__", alter_sys=True)
