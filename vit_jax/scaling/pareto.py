"""The Pareto frontier of error over compute."""

import numpy as np
from jaxtyping import Bool, Shaped


def pareto(x: Shaped[np.ndarray, "n"], y: Shaped[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Finds the rows with a smaller error than all rows of equal or smaller cost.

    Args:
      x: cost of each run.
      y: error of each run; rows with infinite or NaN error are never on the frontier.

    Returns:
      True for rows on the frontier; among rows with equal cost and error, only for the first.
    """
    order = np.lexsort((np.arange(len(x)), y, x))
    best_before = np.minimum.accumulate(
        np.concatenate([[np.inf], np.nan_to_num(y[order], nan=np.inf)])
    )
    on_frontier = np.zeros(len(x), bool)
    on_frontier[order] = y[order] < best_before[:-1]
    return on_frontier
