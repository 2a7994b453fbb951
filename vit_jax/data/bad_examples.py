"""The report of bad examples that were skipped (`data.on_bad`).

Each skip is a line of bad_examples.jsonl in the work directory; process P > 0 of several writes
bad_examples.P.jsonl:

    {"step": 7, "split": "train", "row": 3, "example": 1203, "place": "...", "error": "..."}

The step is that of metrics.jsonl: of the update, for a training batch; of the evaluated state, for
an evaluation (whose lines have no row). As for the metrics, no line is duplicated or lost after a
kill.
"""

import re
from collections.abc import Callable

import jax
from etils import epath

from vit_jax import storage
from vit_jax.data.base import Source
from vit_jax.telemetry.jsonlines import JsonLines, cut_after, read_jsonl
from vit_jax.telemetry.progress import format_count

_NAME = re.compile(r"bad_examples(\.(?P<process>[1-9][0-9]*))?\.jsonl")


class BadExamples:
    """The part of the report that this process writes. A context manager."""

    def __init__(self, workdir: epath.PathLike, *, on_bad: str, resume_step: int | None):
        """Removes lines after `resume_step` of an earlier process; creates no file.

        Args:
          workdir: of the run.
          on_bad: `config.data.on_bad`: error or skip.
          resume_step: step of the state that the run continues from; None: from scratch.

        Raises:
          DataError: an existing file is damaged, or cannot be written.
        """
        process = jax.process_index()
        self._skip = on_bad == "skip"
        name = f"bad_examples.{process}.jsonl" if process else "bad_examples.jsonl"
        self._path = epath.Path(workdir) / name
        self._file: JsonLines | None = None
        last_step = -1 if resume_step is None else resume_step
        cut_after(self._path, last_step=last_step)
        if process == 0:  # Also the files of processes that the run no longer has.
            for index, path in _files(workdir):
                if index >= jax.process_count():
                    cut_after(path, last_step=last_step)

    def training_callback(self, source: Source) -> Callable[[int, int, int, str], None] | None:
        """Returns `on_bad` of `pipeline.train_batches`; None if a bad example is an error."""

        def report(step: int, row: int, example: int, message: str) -> None:
            self._append(source, example, message, step=step + 1, row=row)

        return report if self._skip else None

    def evaluation_callback(self, step: int) -> Callable[[Source, int, str], None] | None:
        """Returns the same for an evaluation after `step` updates: (source, example, message)."""

        def report(source: Source, example: int, message: str) -> None:
            self._append(source, example, message, step=step)

        return report if self._skip else None

    def flush(self) -> None:
        """Writes every line to the disk. Call it before saving a checkpoint."""
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
        location = source.describe(example)
        self._file.append(
            {"step": step, "split": source.split, **row, "example": example, "place": location}
            | {"error": message.removeprefix(f"{location}: ")}
        )


def summary(workdir: epath.PathLike) -> str:
    """Returns a line with the number of examples that a run skipped; "" if none."""
    files = {path: lines for _, path in _files(workdir) if (lines := read_jsonl(path))}
    lines = [line for lines_of_file in files.values() for line in lines_of_file]
    if not lines:
        return ""
    examples = {str(line.get("place")) for line in lines}
    return (
        f"Skipped: {format_count(len(examples), 'bad example')}, "
        f"{format_count(len(lines), 'time')} in all: see "
        f"{', '.join(map(str, files))}\n"
    )


def _files(workdir: epath.PathLike) -> list[tuple[int, epath.Path]]:
    """Returns the existing files of a report, each with the index of its process."""
    matches = (_NAME.fullmatch(name) for name in storage.names(workdir))
    return [(int(m["process"] or 0), epath.Path(workdir) / m[0]) for m in matches if m]
