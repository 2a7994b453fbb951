"""CKA of two models' layers, from the Gram matrices of their representations, by HSIC."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Grams = Sequence[Float[np.ndarray, "layer n n"]]  # Of a model, one array for each minibatch.


def hsic(
    one: Float[np.ndarray, "layer n n"], two: Float[np.ndarray, "other_layer n n"]
) -> Float[np.ndarray, "layer other_layer"]:
    """Returns HSIC_1, the unbiased estimate, of each pair of Gram matrices.

    Song et al. 2012, equation 5, of matrices whose diagonals are set to zero. It does not change
    if a number is added to a row and the same column.
    """
    n = one.shape[-1]
    one, two = (gram * (1 - np.eye(n)) for gram in (one, two))
    trace = np.einsum("anm,bnm->ab", one, two, optimize=True)
    rows, other_rows = one.sum(axis=-1), two.sum(axis=-1)
    sums = np.outer(rows.sum(axis=-1), other_rows.sum(axis=-1)) / ((n - 1) * (n - 2))
    return (trace + sums - 2 / (n - 2) * rows @ other_rows.T) / (n * (n - 3))


def cka_of(
    cross: Float[np.ndarray, "*r layer other_layer"],
    one: Float[np.ndarray, "*r layer"],
    two: Float[np.ndarray, "*r other_layer"],
) -> Float[np.ndarray, "*r layer other_layer"]:
    """Returns CKA from HSIC(K, L), HSIC(K, K), HSIC(L, L); NaN of layers with equal images."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return cross / np.sqrt(one[..., :, None] * two[..., None, :])


def cka(
    one: Grams, two: Sequence[Float[np.ndarray, "other_layer n n"]]
) -> Float[np.ndarray, "layer other_layer"]:
    """Returns the CKA of each pair of layers from their Gram matrices over the same minibatches."""
    terms = [
        (hsic(a, b), np.diag(hsic(a, a)), np.diag(hsic(b, b)))
        for a, b in zip(one, two, strict=True)
    ]
    return cka_of(*(np.mean(values, axis=0) for values in zip(*terms, strict=True)))
