"""`vit_jax.train`, recording the rows of its batches: a process of a run that moves.

    python -m tests.recorded_train RECORD STOP_AT --config=FILE --workdir=DIR ...

Appends to RECORD a line of JSON for each training batch: its step and a digest of each row that
this process was given. When the batch of step STOP_AT is drawn, the process sends itself SIGTERM
(-1: never), as a scheduler would.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import runpy
import signal
import sys
from collections.abc import Iterator
from typing import Any

import jax

from vit_jax.data import pipeline

Rows = dict[tuple[int, int], str]  # (step, row): digest of its image, label and weight.


def digests(batch: dict[str, jax.Array]) -> dict[int, str]:
    """Of each row of a global batch that this process holds."""
    rows: dict[int, Any] = {}
    for key in sorted(batch):
        for shard in batch[key].addressable_shards:
            start = shard.index[0].start or 0
            for i, value in enumerate(jax.device_get(shard.data)):
                rows.setdefault(start + i, {})[key] = value.tobytes()
    return {row: hashlib.sha256(repr(rows[row]).encode()).hexdigest()[:16] for row in sorted(rows)}


@contextlib.contextmanager
def recording(path: pathlib.Path, *, stop_at: int = -1) -> Iterator[None]:
    """Records the batches that training draws, and sends SIGTERM at a step.

    Args:
      path: that the lines are appended to.
      stop_at: when this step's batch is drawn, the process sends itself SIGTERM; -1: never.
    """
    original = pipeline.train_batches

    @functools.wraps(original)
    def train_batches(*args, start_step, **kwargs):
        batches = original(*args, start_step=start_step, **kwargs)
        step = start_step

        class Recorded(type(batches)):
            def __next__(self):
                nonlocal step
                batch = super().__next__()
                with open(path, "a") as file:
                    file.write(json.dumps({"step": step, "rows": digests(batch)}) + "\n")
                if step == stop_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                step += 1
                return batch

        batches.__class__ = Recorded
        return batches

    pipeline.train_batches = train_batches
    try:
        yield
    finally:
        pipeline.train_batches = original


def read(*paths: pathlib.Path) -> Rows:
    """What the processes of a run, or of its parts, have written down.

    Raises:
      ValueError: a process was given the same step twice, or two were given different rows.
    """
    rows: Rows = {}
    for path in paths:
        seen = set()
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if record["step"] in seen:
                raise ValueError(f"{path}: step {record['step']} comes twice.")
            seen.add(record["step"])
            for row, digest in record["rows"].items():
                key = record["step"], int(row)
                if rows.setdefault(key, digest) != digest:
                    raise ValueError(f"{path}: row {row} of step {record['step']} is another.")
    return rows


if __name__ == "__main__":
    with recording(pathlib.Path(sys.argv.pop(1)), stop_at=int(sys.argv.pop(1))):
        runpy.run_module("vit_jax.train", run_name="__main__", alter_sys=True)
