"""Measures the speed of an evaluation or a prediction, without compilation."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax

T = TypeVar("T")


@dataclasses.dataclass
class Throughput:
    """Adds up seconds of a loop over batches that are read while the model computes.

    Attributes:
      images: number of images.
      wall_seconds: of the loop: reading, decoding, transforms, the model, and what follows.
      waiting_seconds: thereof, waiting for the images of a batch.
      model_seconds: thereof, the model, from its call until its outputs are there.
    """

    images: int = 0
    wall_seconds: float = 0.0
    waiting_seconds: float = 0.0
    model_seconds: float = 0.0

    def reading(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields the batches; measures the whole loop and its waiting."""
        before, start = self.wall_seconds, time.perf_counter()
        asked = start
        for batch in batches:
            now = time.perf_counter()
            self.waiting_seconds += now - asked
            yield batch
            asked = time.perf_counter()
            self.wall_seconds = before + asked - start

    def computing(self, program: Callable[..., T], *arguments: Any) -> T:
        """Calls a compiled program, and waits for its outputs."""
        start = time.perf_counter()
        outputs = jax.block_until_ready(program(*arguments))
        self.model_seconds += time.perf_counter() - start
        return outputs

    def to_json(self) -> dict[str, Any]:
        """Returns rates in images per second, and what they contain."""
        device = jax.devices()[0]
        return {
            "images_per_second": _rate(self.images, self.wall_seconds),
            "model_images_per_second": _rate(self.images, self.model_seconds),
            "waiting_share": _rate(self.waiting_seconds, self.wall_seconds),
            "contains": "images_per_second: reading, decoding and transforms in threads, beside "
            "the model, and the metrics; model_images_per_second: the model alone, with the "
            "transfer of its outputs. Neither has the compilation.",
            "images": self.images,
            "device": device.device_kind,
            "num_devices": jax.device_count(),
            "cpus": os.cpu_count(),
        }

    def summary(self) -> str:
        """Returns a line for the terminal."""
        rates = self.to_json()
        return (
            f"{rates['images_per_second']:,.4g} img/s from files to results, "
            f"{rates['model_images_per_second']:,.4g} img/s of the model alone, without "
            f"compilation; {rates['waiting_share']:.0%} of the time waiting for images"
        )


def _rate(part: float | int, seconds: float) -> float:
    return part / seconds if seconds else 0.0
