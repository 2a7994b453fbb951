"""Linear probe: logistic regression on frozen features, its regularisation chosen on held-out data.

scikit-learn's solver (L-BFGS). The search of the inverse penalty C is that of CLIP (Radford et al.
2021, arXiv 2103.00020, appendix A.3): powers of 100 from 1e-6 to 1e6, then steps around the best
that are halved until there are eight a decade. Unlike there, features are standardised with the
training examples' mean and standard deviation, so that the solver converges sooner.
"""

import dataclasses
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float, Int

_EXPONENTS = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
_FINEST_STEP = 0.125  # Decades.
_HELD_OUT = 0.2  # Of the training examples, for the choice of C.
_MAX_ITERATIONS = 1000


@dataclasses.dataclass(frozen=True)
class Probe:
    """A fitted linear probe.

    Attributes:
      kernel: [features, classes], of standardised features.
      bias: [classes].
      mean, std: of the training features.
      inverse_penalty: the chosen C of scikit-learn's LogisticRegression.
      held_out_accuracy: with this C, on the held-out training examples.
      has_converged: whether the solver did in its final fit.
    """

    kernel: Float[np.ndarray, "d classes"]
    bias: Float[np.ndarray, " classes"]
    mean: Float[np.ndarray, " d"]
    std: Float[np.ndarray, " d"]
    inverse_penalty: float
    held_out_accuracy: float
    has_converged: bool

    def logits(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n classes"]:
        """Returns the logits of examples."""
        return (features - self.mean) / self.std @ self.kernel + self.bias


def fit_probe(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    *,
    num_classes: int,
    seed: int = 0,
) -> Probe:
    """Fits a linear probe.

    C is chosen by the accuracy on a fifth of the examples (of each class with at least two); with
    this C the probe is then fitted to all examples.

    Args:
      features: of the training examples.
      labels: their classes, at least two different ones, below `num_classes`. A class without an
        example has the logit -inf.
      num_classes: number of classes.
      seed: of the choice of the held-out examples.
    """
    features = features.astype(np.float64)
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-5
    x = (features - mean) / std
    held_out = _held_out(labels, seed=seed)
    scores: dict[float, float] = {}

    def score(exponent: float) -> float:
        if exponent not in scores:
            model, _ = _fit(x[~held_out], labels[~held_out], exponent)
            scores[exponent] = float(model.score(x[held_out], labels[held_out]))
        return scores[exponent]

    exponent, step = max(_EXPONENTS, key=score), 1.0
    while step >= _FINEST_STEP:
        # At equal accuracy the candidate in the middle stays.
        exponent = max((exponent, exponent - step, exponent + step), key=score)
        step /= 2
    model, has_converged = _fit(x, labels, exponent)
    kernel = np.zeros((x.shape[1], num_classes))
    bias = np.full(num_classes, -np.inf)
    if len(model.classes_) == 2:  # scikit-learn has one score, of the second class.
        kernel[:, model.classes_[1]] = model.coef_[0]
        bias[model.classes_] = 0, model.intercept_[0]
    else:
        kernel[:, model.classes_], bias[model.classes_] = model.coef_.T, model.intercept_
    return Probe(kernel, bias, mean, std, 10.0**exponent, scores[exponent], has_converged)


def _held_out(labels: Int[np.ndarray, " n"], *, seed: int) -> np.ndarray:
    """Returns which examples are held out: a fifth of each class, and never a class's last one."""
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        positions = rng.permutation(np.flatnonzero(labels == label))
        held_out[positions[: max(len(positions) > 1, int(len(positions) * _HELD_OUT))]] = True
    return held_out


def _fit(x: np.ndarray, labels: np.ndarray, exponent: float) -> tuple[Any, bool]:
    """Returns a fitted LogisticRegression, and whether the solver converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=10.0**exponent, max_iter=_MAX_ITERATIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(x, labels)
    return model, not any(w.category is ConvergenceWarning for w in caught)
