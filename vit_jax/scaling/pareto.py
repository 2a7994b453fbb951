"""Which runs no other run beats: the Pareto frontier of error over compute."""

import numpy as np
from jaxtyping import Bool, Shaped


def pareto(x: Shaped[np.ndarray, "n"], y: Shaped[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """The rows that are better than all rows which cost as much or less.

    Args:
      x: what a run costs.
      y: its error; rows of infinite or NaN error are on no frontier.

    Returns:
      True for a row on the frontier. Of rows with equal cost and error only the first is.
    """
    order = np.lexsort((np.arange(len(x)), y, x))
    before = np.minimum.accumulate(np.concatenate([[np.inf], np.nan_to_num(y[order], nan=np.inf)]))
    on = np.zeros(len(x), bool)
    on[order] = y[order] < before[:-1]
    return on
