"""Confidence intervals of accuracies."""

import math
import statistics

LEVEL = 0.95


def wilson(hits: int, count: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Returns the Wilson score interval of a proportion.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22:
    209-212; recommended for small samples by Brown, Cai and DasGupta 2001, Statistical Science 16:
    101-133. Unlike the normal approximation it stays in [0, 1], and has a width if all or none are
    right.

    Args:
      hits: number of successes, from 0 to `count`.
      count: number of trials; with none, the interval is (0, 1).
      level: coverage, between 0 and 1.
    """
    if not count:
        return 0.0, 1.0
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    share = hits / count
    centre = share + z**2 / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    low, high = ((centre + sign * half) / (1 + z**2 / count) for sign in (-1, 1))
    # Exact at the ends, where rounding leaves 1e-17.
    return (0.0 if hits == 0 else low), (1.0 if hits == count else high)
