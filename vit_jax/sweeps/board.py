"""How far the runs of a sweep are: a table that is drawn over and over, or lines in a file."""

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

_DRAWN = 1.0  # Seconds between two drawings of the table,
_SAID = 60.0  # and between two lines of how far all is.
_TAIL = 2**14  # Bytes, that hold the last line of timing.jsonl.


class Board:
    """Shows a sweep; call `changed` when a run's record has changed, and now and then.

    A context manager: on a terminal, what is printed inside stands above the table.
    """

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        *,
        work: Mapping[str, float | None] | None = None,
        stream: io.TextIOBase | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        """Starts.

        Args:
          runs: of the sweep.
          work: FLOPs of each run, by which it is judged how long it will take.
          stream: where to; None: standard output.
          now: a clock, in seconds.
        """
        self._runs, self._work = runs, work or {}
        self._stream = sys.stdout if stream is None else stream
        self._now = now
        self._table = None
        if console := terminal(self._stream):
            self._table = Live(console=console, auto_refresh=False, redirect_stderr=False)
        self._records = {run.name: records.read(run.workdir) for run in runs}
        self._begun: dict[str, float] = {}
        self._took: dict[str, float] = {}  # Seconds that runs took which finished meanwhile.
        self._shown = now()

    def __enter__(self) -> "Board":
        if self._table is not None:
            self._table.start()
            self._table.console.show_cursor()  # A process that is killed could not do so.
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._table is not None:
            self._table.stop()

    def changed(self, run: PlannedRun | None) -> None:
        """Shows what is new.

        Args:
          run: whose record has changed; None: none, as far as one knows.
        """
        if run is not None:
            before, record = self._records[run.name], records.read(run.workdir)
            self._records[run.name] = record
            if record.status == "running":
                self._begun[run.name] = self._now()
            elif record.status == "finished" and run.name in self._begun:
                self._took[run.name] = self._now() - self._begun.pop(run.name)
            if record.status != before.status and self._table is None:
                error = f": {record.error}" if record.error else ""
                self._print(f"{run.name}: {record.status}{error}")
        if self._now() - self._shown > (_DRAWN if self._table else _SAID):
            self.show()

    def show(self) -> None:
        """Shows all, now."""
        self._shown = self._now()
        running = [run for run in self._runs if self._records[run.name].status == "running"]
        steps = {run.name: progress(run.workdir) for run in running}
        head = self._head(steps)
        if self._table is None:
            self._print(head)
            return
        lines = [head] + [_line(run.name, steps[run.name]) for run in running]
        for run in self._runs:
            record = self._records[run.name]
            if record.status in ("failed", "blocked"):
                first = record.error.partition("\n")[0]
                lines.append(f"  {record.status:8} {run.name}: {first}")
        text = Text(printable("\n".join(lines)), no_wrap=True, overflow="ellipsis")
        self._table.update(text, refresh=True)

    def _head(self, steps: Mapping[str, "RunProgress"]) -> str:
        counts = Counter(record.status for record in self._records.values())
        said = [f"{counts[status]} {status}" for status in records.STATUSES if counts[status]]
        left = self._seconds_left(steps)
        eta = "" if left is None else f"; about {format_duration(left)} left"
        return f"{len(self._runs)} runs: {', '.join(said)}{eta}"

    def _seconds_left(self, steps: Mapping[str, "RunProgress"]) -> float | None:
        """Until all are done, if as many run side by side as now."""
        running = [progress.seconds_left for progress in steps.values()]
        waiting = [
            self._seconds(run.name)
            for run in self._runs
            if self._records[run.name].status in ("waiting", "stopped")
        ]
        if None in running or None in waiting or not running:
            return None
        return max(*running, (sum(running) + sum(waiting)) / len(running))

    def _seconds(self, name: str) -> float | None:
        """What a run will take, by those that have finished meanwhile: so much, and more for FLOPs.

        It is the straight line of least squares; where it would fall, or where there is none, the
        mean. None: nothing has finished yet.
        """
        if not self._took:
            return None
        seconds = list(self._took.values())
        mean = statistics.fmean(seconds)
        works = [self._work.get(name) for name in self._took]
        if self._work.get(name) is None or None in works or len(set(works)) < 2:
            return mean
        slope, intercept = statistics.linear_regression(works, seconds)
        return mean if slope <= 0 else max(intercept + slope * self._work[name], min(seconds))

    def _print(self, line: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        print(f"{stamp} {printable(line)}", file=self._stream, flush=True)


class RunProgress:
    """How far a run is, by the last line of its timing.jsonl."""

    def __init__(self, line: Mapping[str, Any], summary: Mapping[str, Any]):
        """Takes what there is; a file may be half written, or of another release."""
        self.step = line.get("step", 0)
        self.total = summary.get("total_steps")
        self.images_per_second = line.get("speed/img_per_s")
        self.seconds_left = None
        if self.total and self.images_per_second:
            left = (self.total - self.step) * summary.get("batch_size", 0)
            self.seconds_left = left / self.images_per_second


def progress(workdir: pathlib.Path) -> RunProgress:
    """How far a run is; of one that has written nothing yet, step 0 of an unknown number."""
    return RunProgress(_last_line(workdir / "timing.jsonl"), records.read_summary(workdir))


def _last_line(path: pathlib.Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines[-2:]):
        try:
            record = json.loads(line)
        except ValueError:  # Half a line.
            continue
        if isinstance(record, dict) and type(record.get("step")) is int:
            return record
    return {}


def _line(name: str, progress: RunProgress) -> str:
    if not progress.total:
        return f"  starting {name}"
    share = progress.step / progress.total
    speed = f", {progress.images_per_second:,.0f} img/s" if progress.images_per_second else ""
    left = f", {format_duration(progress.seconds_left)} left" if progress.seconds_left else ""
    return f"  {share:7.1%}  {name}: step {progress.step:,} of {progress.total:,}{speed}{left}"
