"""Shows the progress of a sweep: a live table on a terminal, lines in a file."""

import io
import json
import os
import pathlib
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.live import Live
from rich.text import Text

from vit_jax.errors import printable
from vit_jax.sweeps import record as records
from vit_jax.sweeps.plan import PlannedRun
from vit_jax.telemetry.progress import format_duration, terminal

_TABLE_SECONDS = 1.0  # Between two updates of the table.
_LINE_SECONDS = 60.0  # Between two summary lines, without a table.
_TAIL_BYTES = 2**14  # Enough for the last two lines of timing.jsonl.


class Board:
    """Shows a sweep; call `changed` when a run's record has changed, and regularly.

    A context manager. On a terminal, other output inside is printed above the table.
    """

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        *,
        work: Mapping[str, float | None] | None = None,
        stream: io.TextIOBase | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        """Reads the records of the runs; shows nothing yet.

        Args:
          runs: the runs of the sweep.
          work: FLOPs of each run by name, to estimate its duration; None where unknown.
          stream: output stream; None: standard output.
          now: returns the time in seconds.
        """
        self._runs, self._work = runs, work or {}
        self._stream = sys.stdout if stream is None else stream
        self._now = now
        self._table = None
        if console := terminal(self._stream):
            self._table = Live(console=console, auto_refresh=False, redirect_stderr=False)
        self._records = {run.name: records.read(run.workdir) for run in runs}
        self._started: dict[str, float] = {}
        self._durations: dict[str, float] = {}  # Seconds of runs that this process saw finish.
        self._last_update = now()

    def __enter__(self) -> "Board":
        if self._table is not None:
            self._table.start()
            self._table.console.show_cursor()  # A killed process would leave it hidden.
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._table is not None:
            self._table.stop()

    def changed(self, run: PlannedRun | None) -> None:
        """Rereads the record of a run; updates the display if it is due.

        Args:
          run: the run whose record has changed; None: only update the display.
        """
        if run is not None:
            before, record = self._records[run.name], records.read(run.workdir)
            self._records[run.name] = record
            if record.status == "running":
                self._started[run.name] = self._now()
            elif record.status == "finished" and run.name in self._started:
                self._durations[run.name] = self._now() - self._started.pop(run.name)
            if record.status != before.status and self._table is None:
                error = f": {record.error}" if record.error else ""
                self._print(f"{run.name}: {record.status}{error}")
        if self._now() - self._last_update > (_TABLE_SECONDS if self._table else _LINE_SECONDS):
            self.show()

    def show(self) -> None:
        """Updates the display now."""
        self._last_update = self._now()
        running = [run for run in self._runs if self._records[run.name].status == "running"]
        steps = {run.name: progress(run.workdir) for run in running}
        summary = self._summary(steps)
        if self._table is None:
            self._print(summary)
            return
        lines = [summary] + [_format_run(run.name, steps[run.name]) for run in running]
        for run in self._runs:
            record = self._records[run.name]
            if record.status in ("failed", "blocked"):
                first = record.error.partition("\n")[0]
                lines.append(f"  {record.status:8} {run.name}: {first}")
        text = Text(printable("\n".join(lines)), no_wrap=True, overflow="ellipsis")
        self._table.update(text, refresh=True)

    def _summary(self, steps: Mapping[str, "RunProgress"]) -> str:
        counts = Counter(record.status for record in self._records.values())
        parts = [f"{counts[status]} {status}" for status in records.STATUSES if counts[status]]
        left = self._seconds_left(steps)
        eta = "" if left is None else f"; about {format_duration(left)} left"
        return f"{len(self._runs)} runs: {', '.join(parts)}{eta}"

    def _seconds_left(self, steps: Mapping[str, "RunProgress"]) -> float | None:
        """Estimates the time until all runs are done, with as many in parallel as now."""
        running = [progress.seconds_left for progress in steps.values()]
        waiting = [
            self._estimated_seconds(run.name)
            for run in self._runs
            if self._records[run.name].status in ("waiting", "stopped")
        ]
        known = [seconds for seconds in (*running, *waiting) if seconds is not None]
        if len(known) < len(running) + len(waiting) or not running:
            return None
        return max(*known[: len(running)], sum(known) / len(running))

    def _estimated_seconds(self, name: str) -> float | None:
        """Estimates the duration of a run from those of the finished ones.

        The estimate is a linear regression of seconds on FLOPs. If its slope is not positive, or it
        cannot be fitted, the estimate is the mean. None: no run has finished yet.
        """
        if not self._durations:
            return None
        seconds = list(self._durations.values())
        mean = statistics.fmean(seconds)
        work = self._work.get(name)
        works = [w for done in self._durations if (w := self._work.get(done)) is not None]
        if work is None or len(works) < len(seconds) or len(set(works)) < 2:
            return mean
        slope, intercept = statistics.linear_regression(works, seconds)
        return mean if slope <= 0 else max(intercept + slope * work, min(seconds))

    def _print(self, line: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        print(f"{stamp} {printable(line)}", file=self._stream, flush=True)


class RunProgress:
    """The progress of a run, from the last line of its timing.jsonl."""

    def __init__(self, line: Mapping[str, Any], summary: Mapping[str, Any]):
        """Missing keys are allowed: a file may be incomplete, or from another release."""
        self.step = line.get("step", 0)
        self.total = summary.get("total_steps")
        self.images_per_second = line.get("speed/img_per_s")
        self.seconds_left: float | None = None
        if self.total and self.images_per_second:
            left = (self.total - self.step) * summary.get("batch_size", 0)
            self.seconds_left = left / self.images_per_second


def progress(workdir: pathlib.Path) -> RunProgress:
    """Reads the progress of a run; step 0 of an unknown total if it has written nothing yet."""
    return RunProgress(_last_line(workdir / "timing.jsonl"), records.read_summary(workdir))


def _last_line(path: pathlib.Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines[-2:]):
        try:
            record = json.loads(line)
        except ValueError:  # An incomplete line.
            continue
        if isinstance(record, dict) and type(record.get("step")) is int:
            return record
    return {}


def _format_run(name: str, progress: RunProgress) -> str:
    if not progress.total:
        return f"  starting {name}"
    share = progress.step / progress.total
    speed = f", {progress.images_per_second:,.0f} img/s" if progress.images_per_second else ""
    left = f", {format_duration(progress.seconds_left)} left" if progress.seconds_left else ""
    return f"  {share:7.1%}  {name}: step {progress.step:,} of {progress.total:,}{speed}{left}"
