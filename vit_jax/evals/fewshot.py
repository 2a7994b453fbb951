"""Few-shot accuracy of frozen features: ridge regression in closed form on a few labels a class.

The protocol of big_vision (`evaluators/fewshot_lsr.py`), of which the ViT paper's few-shot numbers
are (Dosovitskiy et al. 2020, arXiv 2010.11929, section 4.1): features are standardised with the
mean and the standard deviation of the training examples; the targets are 1 for the class and -1 for
the others; an almost unregularised bias is a constant feature of 100; the penalty is fixed, 2^10.
It is not chosen on held-out images: those would be more labels than the shots. What differs:
float64 instead of float32, and a class with too few training images is an error rather than fewer
shots.
"""

import numpy as np
from jaxtyping import Float, Int

from vit_jax.errors import DataError

SHOTS = (1, 5, 10, 25)
SEEDS = 3
PENALTY = 2.0**10
_BIAS = 100.0


def choose_shots(
    labels: Int[np.ndarray, " n"], shots: int, *, num_classes: int, seed: int
) -> Int[np.ndarray, " chosen"]:
    """Returns the positions of `shots` random examples of each class.

    More shots contain fewer ones of the same seed.

    Raises:
      DataError: a class has fewer examples.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for label in range(num_classes):
        positions = rng.permutation(np.flatnonzero(labels == label))
        if len(positions) < shots:
            raise DataError(
                f"class {label} has {len(positions):,} training examples, fewer than {shots} shots"
            )
        chosen.append(positions[:shots])
    return np.concatenate(chosen)


def ridge_scores(
    train: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "m d"],
    *,
    num_classes: int,
    penalty: float = PENALTY,
) -> Float[np.ndarray, "m classes"]:
    """Returns scores of the classes by ridge regression: the largest is the prediction.

    Minimises |X W - Y|^2 + penalty |W|^2 over W. Of the two closed forms,
    (X'X + penalty I)^-1 X'Y and X'(XX' + penalty I)^-1 Y, it takes the smaller system.

    Args:
      train: features of the training examples.
      labels: their classes, below `num_classes`.
      test: features of the examples to classify.
      num_classes: number of classes.
      penalty: of the squared weights, positive.
    """
    train = train.astype(np.float64)
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-5

    def design(features):
        return np.pad((features - mean) / std, ((0, 0), (0, 1)), constant_values=_BIAS)

    x, y = design(train), 2.0 * np.eye(num_classes)[labels] - 1.0
    if len(x) >= x.shape[1]:
        weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
    else:
        weights = x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(len(x)), y)
    return design(test.astype(np.float64)) @ weights
