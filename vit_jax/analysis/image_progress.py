"""How many images a measure has taken, while it takes long."""

import dataclasses
import time
from collections.abc import Callable, Iterator

from vit_jax.analysis.measures.images import BATCH_SIZE, Batch, ImageStream
from vit_jax.telemetry.progress import format_count

_PROGRESS_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class ReportedStream(ImageStream):
    """Images that say every ten seconds how many of them a measure has taken.

    Attributes:
      measure: its name.
      log: called with a line.
    """

    measure: str = ""
    log: Callable[[str], None] = print

    @classmethod
    def of(cls, stream: ImageStream, measure: str, log: Callable[[str], None]) -> "ReportedStream":
        """Returns the same images; those that cannot be read are noted in the given stream."""
        fields = {field.name: getattr(stream, field.name) for field in dataclasses.fields(stream)}
        return cls(**fields | {"measure": measure, "log": log})

    def batches(self, batch_size: int = BATCH_SIZE) -> Iterator[Batch]:
        """Yields all images; the measure is done with a batch when it asks for the next one."""
        done, reported = 0, time.monotonic()
        for batch in super().batches(batch_size):
            if time.monotonic() - reported >= _PROGRESS_SECONDS:
                reported = time.monotonic()
                self.log(f"  {self.measure:22} {done:,} of {format_count(len(self), 'image')}")
            yield batch
            done += int(batch.good.sum())
