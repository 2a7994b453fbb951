"""Measures the wall time of a run by span, and its training speed.

At every moment the clock is in one span: the innermost open one, or "other". A span measures the
time that Python spends in it, and JAX dispatches asynchronously. So the loop must wait for a step's
results (such as a logged loss) inside "step"; then "data" is the true wait for data.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from vit_jax.errors import CheckpointError, did_you_mean

SPANS = ("init", "compile", "data", "step", "eval", "save")


class Clock:
    """Sums wall time by span, and counts examples.

    Totals (wall time, spans, examples, device-hours, goodput) cover the whole run. Checkpoints save
    them, so they exclude what a killed process did after its last checkpoint. Rates (img/s, FLOP/s,
    MFU) cover this process only, since an earlier one may have had other devices; `process_seconds`
    are those of this process, too.
    """

    def __init__(
        self,
        *,
        num_devices: int,
        flops_per_example: float | int | None = None,
        peak_flops: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        """Starts the clock in the span "other".

        Args:
          num_devices: number of devices of all processes.
          flops_per_example: forward and backward FLOPs; None: FLOP/s and MFU are omitted.
          peak_flops: FLOP/s of one device (`chips.peak_flops`); None: MFU is omitted.
          now: returns the time in seconds. If it goes back, the elapsed time counts as 0.
        """
        self._num_devices = num_devices
        self._flops_per_example = flops_per_example
        self._peak_flops = peak_flops
        self._now = now
        self._last = now()
        self._open = ["other"]
        self._seconds: dict[str, float] = dict.fromkeys((*SPANS, "other"), 0.0)
        self._restored = dict(self._seconds)  # Seconds of earlier processes.
        self._device_seconds = 0.0
        self._examples = 0
        self._process_start = self._window_start = self._trained()

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Counts the time inside for the span `name` instead of the enclosing one.

        Raises:
          ValueError: `name` is not one of SPANS.
        """
        if name not in SPANS:
            raise ValueError(f'There is no span "{name}". {did_you_mean(name, SPANS)}')
        self._advance()
        self._open.append(name)
        try:
            yield
        finally:
            self._advance()
            self._open.pop()

    def count(self, examples: int) -> None:
        """Adds to the number of trained examples."""
        self._examples += examples

    def window(self) -> dict[str, float]:
        """Returns the rates since the last call and the totals, for one line of timing.jsonl.

        Returns:
          speed/img_per_s    examples per second of training: data and step, not eval or save;
          speed/tflop_per_s  model TFLOP/s over all devices, if `flops_per_example` was given;
          speed/mfu          share of the devices' peak, if `peak_flops` is known;
          time/data_wait     share of training time that waited for data;
          time/goodput       share of the run's wall time in steps, from its very start;
          time/device_hours  of the run: wall time x devices; time/wall_s  of the run.
          Rates are omitted if nothing was trained since the last call.
        """
        self._advance()
        since, self._window_start = self._window_start, self._trained()
        return self._rates(since) | self._totals()

    def summary(self) -> dict[str, float]:
        """Returns totals, rates of the whole process, and time/<span>_s of the run."""
        self._advance()
        spans = {f"time/{name}_s": seconds for name, seconds in self._seconds.items()}
        return self._rates(self._process_start) | self._totals() | spans

    def process_seconds(self) -> dict[str, float]:
        """Returns the wall time of this process by span, with "other"; the sum is its total."""
        self._advance()
        return {name: self._seconds[name] - before for name, before in self._restored.items()}

    def state_dict(self) -> dict[str, Any]:
        """Returns the totals for a checkpoint, as JSON values."""
        self._advance()
        return {
            "seconds": dict(self._seconds),
            "device_seconds": self._device_seconds,
            "examples": self._examples,
        }

    def load_state_dict(self, state: Any) -> None:
        """Adds the totals of a checkpoint to those of this process.

        Raises:
          CheckpointError: `state` does not have the form of `state_dict`'s result.
        """
        try:
            seconds = {name: float(value) for name, value in state["seconds"].items()}
            # Release 0.1.0 saved this as core_seconds.
            name = "device_seconds" if "device_seconds" in state else "core_seconds"
            device_seconds, examples = float(state[name]), int(state["examples"])
            totals = (device_seconds, examples, *seconds.values())
            if not all(0 <= value < 2**63 for value in totals):
                raise ValueError("a number is negative or too large")
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"The checkpoint's clock state is invalid: {type(error).__name__}: {error}"
            ) from error
        self._advance()
        for name, value in seconds.items():
            span = name if name in self._seconds else "other"  # Another release may have others.
            self._seconds[span] += value
            self._restored[span] += value
        self._device_seconds += device_seconds
        self._examples += examples
        self._process_start = self._window_start = self._trained()

    def _advance(self) -> None:
        """Adds the time since the last call to the innermost open span."""
        now = self._now()
        elapsed = max(0.0, now - self._last)
        self._last = now
        self._seconds[self._open[-1]] += elapsed
        self._device_seconds += elapsed * self._num_devices

    def _trained(self) -> tuple[int, float, float]:
        """Returns examples, seconds of waiting for data, and seconds of steps so far."""
        return self._examples, self._seconds["data"], self._seconds["step"]

    def _rates(self, since: tuple[int, float, float]) -> dict[str, float]:
        examples, data, step = (
            end - start for end, start in zip(self._trained(), since, strict=True)
        )
        if examples == 0 or data + step <= 0:
            return {}
        rates = {
            "speed/img_per_s": examples / (data + step),
            "time/data_wait": data / (data + step),
        }
        if self._flops_per_example is not None:
            flops = rates["speed/img_per_s"] * self._flops_per_example
            rates["speed/tflop_per_s"] = flops / 1e12
            if self._peak_flops is not None:
                rates["speed/mfu"] = flops / (self._peak_flops * self._num_devices)
        return rates

    def _totals(self) -> dict[str, float]:
        wall = sum(self._seconds.values())
        return {
            "time/goodput": self._seconds["step"] / wall if wall > 0 else 0.0,
            "time/device_hours": self._device_seconds / 3600,
            "time/wall_s": wall,
        }
