"""Medians, ranges and ratios of repeated measurements."""

import dataclasses
import statistics
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median of repeated measurements, the smallest and the largest, and their number."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Returns the spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def scaled(self, factor: float) -> "Spread":
        """Returns the spread of the values times a positive factor."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.count)


def rates(amount: float | int, seconds: Sequence[float]) -> Spread:
    """Returns the spread of amount / seconds, such as images per second."""
    return Spread.of([amount / each for each in seconds])


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Returns the spread of how many times faster `ours` is, round by round.

    Args:
      ours: seconds of each round.
      theirs: seconds of the other contender in the same rounds.
    """
    return Spread.of([other / own for own, other in zip(ours, theirs, strict=True)])
