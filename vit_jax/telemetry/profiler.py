"""A profiler trace of chosen steps, for TensorBoard's profile tab or Perfetto."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from vit_jax.errors import ConfigError


class StepProfiler:
    """Traces the steps [first, last] of a run into workdir/profile.

    Use it as a context manager around the loop, so that a trace is closed when the loop raises,
    and `step` around each step:

        with StepProfiler(workdir, steps=config.log.profile_steps) as profiler:
            for t in range(start, total):
                with profiler.step(t):
                    state, metrics = train_step(state, batch)
                profiler.after(t, metrics)
    """

    def __init__(self, workdir: str | os.PathLike[str], *, steps: Sequence[int]):
        """Prepare; nothing starts yet.

        Args:
          workdir: of the run.
          steps: (first, last), both traced; (): no trace.

        Raises:
          ConfigError: `steps` is neither.
        """
        if len(steps) not in (0, 2) or (len(steps) == 2 and not 0 <= steps[0] <= steps[1]):
            raise ConfigError(
                f"log.profile_steps is {tuple(steps)}: give (first, last) with "
                "0 <= first <= last, or () for no trace."
            )
        self._folder = pathlib.Path(workdir) / "profile"
        self._first, self._last = steps or (0, -1)
        self._tracing = False

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Mark what is inside as step `step` of the trace; starts the trace when it is due."""
        if not self._tracing and self._first <= step <= self._last:
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        if not self._tracing:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def after(self, step: int, results: Any) -> None:
        """End the trace if `step` was its last.

        Args:
          step: that has been dispatched.
          results: arrays of that step, which are waited for, so that the trace has all of it.
        """
        if self._tracing and step >= self._last:
            jax.block_until_ready(results)
            self._stop()

    def __enter__(self) -> "StepProfiler":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._tracing:
            self._stop()

    def _stop(self) -> None:
        self._tracing = False
        jax.profiler.stop_trace()
