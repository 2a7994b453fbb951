"""Where the time of a run went, and how fast it was while it trained.

At every moment the clock is in one span: the innermost that is open, or "other". JAX runs ahead of
Python, so a span holds the time that Python spent in it: let the loop wait for a step's results
(a logged loss, say) inside "step", and what is left in "data" is the true wait for data.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from vit_jax.errors import CheckpointError, did_you_mean

SPANS = ("init", "compile", "data", "step", "eval", "save")


class Clock:
    """Adds up wall time by span, and examples.

    Totals (wall time, spans, examples, device-hours, goodput) are of the whole run: they travel
    with the checkpoint, so what a killed process did after its last one is not in them. Rates
    (img/s, FLOP/s, MFU) are of this process: the one before may have had other devices.
    """

    def __init__(
        self,
        *,
        num_devices: int,
        flops_per_example: float | int | None = None,
        peak_flops: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        """Start, in the span "other".

        Args:
          num_devices: over all processes.
          flops_per_example: of training: forward and backward; None: no FLOP/s, no MFU.
          peak_flops: FLOP/s of one device (`devices.peak_flops`); None: no MFU.
          now: a clock, in seconds. When it goes back, no time has passed.
        """
        self._num_devices = num_devices
        self._flops_per_example = flops_per_example
        self._peak_flops = peak_flops
        self._now = now
        self._last = now()
        self._open = ["other"]
        self._seconds = dict.fromkeys((*SPANS, "other"), 0.0)
        self._device_seconds = 0.0
        self._examples = 0
        self._process_start = self._window_start = self._trained()

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Count the time inside as `name`'s, and not as that of the span around it.

        Args:
          name: one of SPANS.

        Raises:
          ValueError: it is not.
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
        """Say that `examples` more examples have been trained on."""
        self._examples += examples

    def window(self) -> dict[str, float]:
        """Timings since the last call, for one line of timing.jsonl.

        Returns:
          speed/img_per_s    examples per second of training: data and step, not eval or save;
          speed/tflop_per_s  model TFLOP/s over all devices, if FLOPs were given;
          speed/mfu          share of the devices' peak, if that is known;
          time/data_wait     share of training that waited for data;
          time/goodput       share of the run's wall time in steps, from its very start;
          time/device_hours  of the run: wall time x devices; time/wall_s  of the run.
          What cannot be said, for want of any training in the window, is left out.
        """
        self._advance()
        since, self._window_start = self._window_start, self._trained()
        return self._rates(since) | self._totals()

    def summary(self) -> dict[str, float]:
        """The keys of window() with rates over this process, and time/<span>_s of the run."""
        self._advance()
        spans = {f"time/{name}_s": seconds for name, seconds in self._seconds.items()}
        return self._rates(self._process_start) | self._totals() | spans

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain numbers, JSON as they stand."""
        self._advance()
        return {
            "seconds": dict(self._seconds),
            "device_seconds": self._device_seconds,
            "examples": self._examples,
        }

    def load_state_dict(self, state: Any) -> None:
        """Continue the totals of a checkpoint; what this process has spent so far is added.

        Raises:
          CheckpointError: it is not what `state_dict` gives.
        """
        try:
            seconds = {name: float(value) for name, value in state["seconds"].items()}
            # Checkpoints of 0.1.0 call it core_seconds.
            name = "device_seconds" if "device_seconds" in state else "core_seconds"
            device_seconds, examples = float(state[name]), int(state["examples"])
            totals = (device_seconds, examples, *seconds.values())
            if not all(0 <= value < 2**63 for value in totals):
                raise ValueError("a number is negative or beyond all bounds")
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"The checkpoint's clock is not what was saved: {type(error).__name__}: {error}"
            ) from error
        self._advance()
        for name, value in seconds.items():  # Another release may have other spans.
            self._seconds[name if name in self._seconds else "other"] += value
        self._device_seconds += device_seconds
        self._examples += examples
        self._process_start = self._window_start = self._trained()

    def _advance(self) -> None:
        """Give the time since the last call to the open span."""
        now = self._now()
        passed = max(0.0, now - self._last)
        self._last = now
        self._seconds[self._open[-1]] += passed
        self._device_seconds += passed * self._num_devices

    def _trained(self) -> tuple[int, float, float]:
        """Examples, seconds of waiting for data, seconds of steps: so far."""
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
