"""Shows how many images are done: a bar on a terminal, lines in a log."""

import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich import progress as bars

from vit_jax.telemetry.progress import format_duration, terminal

LINE_SECONDS = 30.0  # Between lines, where there is no terminal.

# (images that are done, all images)
OnProgress = Callable[[int, int], None]
T = TypeVar("T")


class ProgressBar:
    """Shows the progress on standard error; call it with the images that are done, and all."""

    def __init__(self, stream: io.TextIOBase | None = None):
        """Shows nothing yet; `stream` is standard error by default."""
        self._stream = sys.stderr if stream is None else stream
        self._bar: bars.Progress | None = None
        self._start = self._shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if (console := terminal(self._stream)) is None:
            if now - self._shown >= LINE_SECONDS:
                self._shown = now
                left = (now - self._start) / done * (total - done)
                print(
                    f"{done:,} of {total:,} images, {format_duration(left)} left",
                    file=self._stream,
                    flush=True,
                )
            return
        if self._bar is None:
            self._bar = bars.Progress(
                bars.MofNCompleteColumn(),
                bars.BarColumn(bar_width=20),
                bars.TextColumn("images"),
                bars.TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._bar.add_task("", total=total)
            self._bar.start()
            console.show_cursor()  # A killed process would leave it hidden.
        [task] = self._bar.task_ids
        self._bar.update(task, completed=done, total=total)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def counted(
    batches: Iterable[T], report: OnProgress | None, *, rows: int, total: int
) -> Iterator[T]:
    """Yields batches; reports the images of each when the next is asked for.

    Args:
      batches: of `rows` images, the last one padded.
      report: called with the images that are done, and all; None: nothing is reported.
      rows: of a batch.
      total: number of images.
    """
    done = 0
    for batch in batches:
        yield batch
        done = min(done + rows, total)
        if report is not None:
            report(done, total)
