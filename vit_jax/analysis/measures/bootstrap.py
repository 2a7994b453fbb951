"""Means over images with intervals, in constant memory."""

import numpy as np
from jaxtyping import Float

LEVEL = 0.95
_REPLICATES = 400


class MeanOverImages:
    """The mean of a value of each image, and its bootstrap interval.

    The images are resampled by independent Poisson(1) weights (Hanley and MacGibbon 2006,
    "Creating non-parametric bootstrap samples using Poisson frequencies"), so that an image is
    needed only once: memory does not depend on their number, and a result does not depend on the
    batches.
    """

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._weights = np.zeros(_REPLICATES)
        self._sums: np.ndarray | None = None  # [replicates, ...]
        self._total: np.ndarray | float = 0.0
        self.count = 0

    def add(self, values: Float[np.ndarray, "images ..."]) -> None:
        """Adds the values of some images."""
        values = np.asarray(values, np.float64)
        weights = self._rng.poisson(1.0, (len(values), _REPLICATES)).astype(np.float64)
        sums = np.tensordot(weights, values, axes=(0, 0))
        self._sums = sums if self._sums is None else self._sums + sums
        self._weights += weights.sum(axis=0)
        self._total = self._total + values.sum(axis=0)
        self.count += len(values)

    @property
    def mean(self) -> Float[np.ndarray, "..."]:
        """The mean over all images, float64."""
        return np.asarray(self._total) / self.count

    @property
    def interval(self) -> Float[np.ndarray, "2 ..."]:
        """The ends of the 95% interval (percentiles of 400 replicates); NaN of a single image."""
        replicates = self.replicates
        if self.count < 2:
            return np.full((2, *replicates.shape[1:]), np.nan)
        return np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)

    @property
    def replicates(self) -> Float[np.ndarray, "replicates ..."]:
        """The bootstrap replicates of the mean, float64.

        Means to which equally many values were added at a time have the same weights, so that
        functions of several means have replicates, too.
        """
        assert self._sums is not None, "no image was added"
        drawn = self._weights > 0  # Of few images, a replicate may have drawn none.
        weights = self._weights[drawn].reshape(-1, *[1] * (self._sums.ndim - 1))
        return self._sums[drawn] / weights
