"""The report of the examples that were bad and were skipped (`data.on_bad`).

A line each time, in the work directory's bad_examples.jsonl; of process P of several, in
bad_examples.P.jsonl from P = 1 on:

    {"step": 7, "split": "train", "row": 3, "example": 1203, "place": "...", "error": "..."}

The step is that of metrics.jsonl: for a training batch, of the update that it led to; for an
evaluation (whose lines have no row), of the state that was evaluated. The contract with the train
loop is that of the metrics: after a kill no line is duplicated or lost.
"""

import re
from collections.abc import Callable

import jax
from etils import epath

from vit_jax import storage
from vit_jax.data.base import Source
from vit_jax.telemetry.jsonlines import JsonLines, cut_after, read_jsonl

_NAME = re.compile(r"bad_examples(\.(?P<process>[1-9][0-9]*))?\.jsonl")


class BadExamples:
    """What this process adds to the report. A context manager."""

    def __init__(self, workdir: epath.PathLike, *, on_bad: str, resume_step: int | None):
        """Cuts what an earlier process wrote after `resume_step`; makes no file.

        Args:
          workdir: of the run.
          on_bad: `config.data.on_bad`: error or skip.
          resume_step: step of the state that the run continues from; None: from scratch.

        Raises:
          DataError: an existing file is damaged, or cannot be written.
        """
        mine = jax.process_index()
        self._skip = on_bad == "skip"
        name = f"bad_examples.{mine}.jsonl" if mine else "bad_examples.jsonl"
        self._path = epath.Path(workdir) / name
        self._file: JsonLines | None = None
        last_kept = -1 if resume_step is None else resume_step
        cut_after(self._path, last_step=last_kept)
        if mine == 0:  # And those of processes that there were when the run had more of them.
            for index, path in _files(workdir):
                if index >= jax.process_count():
                    cut_after(path, last_step=last_kept)

    def of_training(self, source: Source) -> Callable[[int, int, int, str], None] | None:
        """What `pipeline.train_batches` is to call, with (step, row, example, message).

        None if a bad example is an error.
        """

        def report(step: int, row: int, example: int, message: str) -> None:
            self._append(source, example, message, step=step + 1, row=row)

        return report if self._skip else None

    def of_evaluation(self, step: int) -> Callable[[Source, int, str], None] | None:
        """What an evaluation of the state after `step` updates is to call; None as above."""

        def report(source: Source, example: int, message: str) -> None:
            self._append(source, example, message, step=step)

        return report if self._skip else None

    def flush(self) -> None:
        """Returns when every line is on the disk: call it before saving a checkpoint."""
        if self._file:
            self._file.flush()

    def close(self) -> None:
        """Flushes and closes."""
        if self._file:
            self._file.close()

    def __enter__(self) -> "BadExamples":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _append(self, source: Source, example: int, message: str, *, step: int, **row: int) -> None:
        if self._file is None:
            self._file = JsonLines(self._path)
        place = source.describe(example)
        self._file.append(
            {"step": step, "split": source.split, **row, "example": example, "place": place}
            | {"error": message.removeprefix(f"{place}: ")}
        )


def summary(workdir: epath.PathLike) -> str:
    """A line that says how often examples were skipped in a run, by all processes; "" if never."""
    files = {path: lines for _, path in _files(workdir) if (lines := read_jsonl(path))}
    lines = [line for each in files.values() for line in each]
    if not lines:
        return ""
    places = {str(line.get("place")) for line in lines}
    return (
        f"Skipped: {len(places):,} bad examples, {len(lines):,} times in all: see "
        f"{', '.join(map(str, files))}\n"
    )


def _files(workdir: epath.PathLike) -> list[tuple[int, epath.Path]]:
    """The files of a report that there are, and the process of each."""
    matches = (_NAME.fullmatch(name) for name in storage.names(workdir))
    return [(int(m["process"] or 0), epath.Path(workdir) / m[0]) for m in matches if m]
