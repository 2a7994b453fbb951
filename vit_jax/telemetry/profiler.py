"""A profiler trace of chosen steps, for TensorBoard's profile tab or Perfetto."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath

from vit_jax import storage
from vit_jax.errors import DataError


class StepProfiler:
    """Traces the steps [first, last] of a run into workdir/profile.

    Use it as a context manager around the loop, which closes the trace if the loop raises, and
    `step` around each step:

        with StepProfiler(workdir, steps=config.log.profile_steps) as profiler:
            for t in range(start, total):
                with profiler.step(t):
                    state, metrics = train_step(state, batch)
                profiler.after(t, metrics)
    """

    def __init__(self, workdir: epath.PathLike, *, steps: Sequence[int]):
        """Stores the settings; starts no trace yet.

        Args:
          workdir: the work directory of the run. The profiler writes to local folders only: a
            complete trace is copied to an object store.
          steps: (first, last), both traced; (): no trace.
        """
        self._folder = epath.Path(workdir) / "profile"
        self._temporary_folder: tempfile.TemporaryDirectory | None = None
        self._first, self._last = steps or (0, -1)
        self._tracing = False

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Marks the code inside as step `step` of the trace; starts the trace when it is due."""
        if not self._tracing and self._first <= step <= self._last:
            if not storage.is_local(self._folder):
                self._temporary_folder = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(
                self._temporary_folder.name if self._temporary_folder else str(self._folder)
            )
            self._tracing = True
        if not self._tracing:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def after(self, step: int, results: Any) -> None:
        """Ends the trace if `step` is its last.

        Args:
          step: a dispatched step.
          results: arrays of that step; the trace ends when they are computed.
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
        if self._temporary_folder is None:
            return
        with self._temporary_folder as folder:
            for source in pathlib.Path(folder).rglob("*"):
                if source.is_file():
                    target = self._folder / source.relative_to(folder).as_posix()
                    with storage.reported(DataError, f"{target} cannot be written"):
                        storage.write_bytes(target, source.read_bytes())
