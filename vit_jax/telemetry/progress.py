"""Shows the progress of a run: a bar on a terminal, plain lines in a log file."""

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO, cast

from rich import progress as bars
from rich.console import Console
from rich.table import Column

from vit_jax.config import CLASSIFICATION_METRICS


def terminal(stream: io.TextIOBase | TextIO) -> Console | None:
    """Returns a console for an interactive terminal; None if the stream is not one."""
    console = Console(
        file=cast(TextIO, stream),  # Rich only writes text to it.
        force_terminal=stream.isatty(),
        highlight=False,
        emoji=False,
    )
    return console if console.is_interactive else None


def wide_console() -> Console:
    """Returns a console for tables on standard output, which wraps lines only on a terminal."""
    console = Console(highlight=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, emoji=False, width=10_000)


class Progress:
    """Shows steps, epoch, loss, learning rate, speed and remaining time.

    On a terminal this is one line that is redrawn; elsewhere (a file, a scheduler's log) each call
    of `log` prints a line. Evaluations and compilations have lines of their own in both.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        start_step: int = 0,
        steps_per_epoch: float | int,
        is_main: bool = True,
        stream: io.TextIOBase | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        """Shows the bar, if the stream is a terminal.

        Args:
          total_steps: steps of the whole run.
          start_step: steps made before this process started.
          steps_per_epoch: need not be whole.
          is_main: whether this process shows anything: `jax.process_index() == 0`.
          stream: output stream; None: standard output.
          now: returns the time in seconds.
        """
        self._stream = sys.stdout if stream is None else stream
        self._total = total_steps
        self._step = start_step
        self._steps_per_epoch = steps_per_epoch
        self._is_main = is_main
        self._now = now
        self._first: tuple[int, float] | None = None  # Step and time of the first update.
        self._metrics_text = ""
        self._activity = ""
        self._bar = None
        if is_main and (console := terminal(self._stream)):
            self._bar = bars.Progress(
                bars.TaskProgressColumn(table_column=Column(min_width=4)),
                bars.BarColumn(bar_width=20),
                bars.TextColumn("{task.description}", table_column=Column(no_wrap=True)),
                console=console,
                redirect_stdout=False,
                # A warning on the same terminal is printed above the bar.
                redirect_stderr=sys.stderr is not None and sys.stderr.isatty(),
            )
            self._bar.add_task(self._status(), total=total_steps, completed=start_step)
            self._bar.start()
            console.show_cursor()  # A killed process would leave it hidden.

    def update(self, step: int) -> None:
        """Records that `step` steps of the run are done."""
        # The pace is measured from the end of the first step, after the compilation.
        if self._first is None:
            self._first = (step, self._now())
        self._step = step
        self._update_bar()

    def log(self, step: int, *, loss: float, lr: float, images_per_second: float | None) -> None:
        """Shows the metrics of a step; prints a line if there is no bar."""
        self._metrics_text = f" | loss {loss:.4f} | lr {lr:.3g}"
        if images_per_second is not None:
            self._metrics_text += f" | {_format_number(images_per_second)} img/s"
        self.update(step)
        if self._is_main and self._bar is None:
            print(self._status(), file=self._stream, flush=True)

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Says inside that a program is compiled, and afterwards how long that took."""
        if self._bar is None:
            self.note(f"{self._step_text()} | compiling")
        before = self._now()
        with self.activity("compiling"):
            yield
        self.note(f"{self._step_text()} | compiled in {self._now() - before:.1f} s")

    @contextlib.contextmanager
    def activity(self, name: str) -> Iterator[None]:
        """Shows in the bar what the run does instead of updates, such as "evaluating test"."""
        self._activity = name
        self._update_bar()
        if self._bar is not None:
            self._bar.refresh()  # At once: a compilation may hold the interpreter for seconds.
        try:
            yield
        finally:
            self._activity = ""
            self._update_bar()

    def evaluation(self, name: str, values: Mapping[str, float | int], *, seconds: float) -> None:
        """Prints the line of an evaluation.

        Args:
          name: of the evaluation, such as "test".
          values: its metrics; top1 and top5 are shown in percent, others as they are, without ece.
          seconds: how long it took.
        """
        parts = [f"{key} {values[key]:.2%}" for key in ("top1", "top5") if key in values]
        parts += [f"loss {values['loss']:.4f}"] if "loss" in values else []
        others = (key for key in values if key not in CLASSIFICATION_METRICS)
        parts += [f"{key} {_format_number(values[key])}" for key in others]
        parts += [format_count(int(values["count"]), "example")] if "count" in values else []
        self.note(f"{self._step_text()} | {name}: {' | '.join((*parts, f'{seconds:.1f} s'))}")

    def note(self, message: str) -> None:
        """Prints a message on its own line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, emoji=False, soft_wrap=True)
        elif self._is_main:
            print(message, file=self._stream, flush=True)

    def close(self) -> None:
        """Stops redrawing the bar and ends its line; later notes are printed below it."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _update_bar(self) -> None:
        if self._bar is not None:
            [task] = self._bar.task_ids
            self._bar.update(task, completed=self._step, description=self._status())

    def _step_text(self) -> str:
        return f"step {self._step:,}/{self._total:,}"

    def _status(self) -> str:
        if self._activity:
            return f"{self._step_text()} | {self._activity}"
        # The most important values come first: a narrow terminal cuts off the end.
        left = self.seconds_left()
        eta = f" | ETA {format_duration(left)}" if left else ""
        epoch = f" | epoch {self._step / self._steps_per_epoch:.2f}"
        return f"{self._step_text()}{eta}{epoch}{self._metrics_text}"

    def seconds_left(self) -> float | None:
        """Estimates the time to the end from the mean pace, including evaluations and saves."""
        if self._first is None or self._step <= self._first[0]:
            return None
        first_step, first_time = self._first
        pace = max(0.0, self._now() - first_time) / (self._step - first_step)
        return pace * (self._total - self._step)


def format_duration(seconds: float | int) -> str:
    """Formats a duration in seconds: 42s, 3m07s, 2h05m, 3d04h."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{seconds:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02d}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}h"


def format_count(count: int, noun: str) -> str:
    """Returns a number with its noun in singular or plural: "1 image", "2,000 images".

    Args:
      count: the number.
      noun: in singular, with a regular plural.
    """
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
