"""k nearest neighbours on frozen features, weighted as in DINO."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

K = 20
TEMPERATURE = 0.07
_SIMILARITIES = 2**26  # At a time: 256 MiB in float32.


def neighbour_votes(
    train: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "m d"],
    *,
    num_classes: int,
    k: int = K,
    temperature: float = TEMPERATURE,
) -> Float[np.ndarray, "m classes"]:
    """Returns each class's share of the votes of the nearest training examples.

    Features are scaled to length 1; a neighbour with the cosine similarity s has exp(s/temperature)
    votes for its class. Wu et al. 2018 (arXiv 1805.01978), as in DINO (Caron et al. 2021, arXiv
    2104.14294): k = 20, temperature 0.07.

    Args:
      train: features of the training examples.
      labels: their classes, below `num_classes`.
      test: features of the examples to classify.
      num_classes: number of classes.
      k: number of neighbours; all, if there are fewer training examples.
      temperature: of the votes.
    """
    bank, k = jnp.asarray(_unit(train)), min(k, len(train))
    votes_of = jax.nn.one_hot(jnp.asarray(labels), num_classes)

    @jax.jit
    def shares(rows, bank, votes_of):
        similarity, nearest = jax.lax.top_k(
            jnp.matmul(rows, bank.T, precision="highest"), k
        )  # [b, k]
        # Relative to the nearest: the shares are the same, and nothing overflows.
        weight = jnp.exp((similarity - similarity[:, :1]) / temperature)
        votes = jnp.einsum("bk,bkc->bc", weight, votes_of[nearest], precision="highest")
        return votes / weight.sum(axis=1, keepdims=True)

    rows = max(1, min(len(test), _SIMILARITIES // len(train), _SIMILARITIES // (k * num_classes)))
    padded = np.pad(_unit(test), ((0, -len(test) % rows), (0, 0)))
    parts = [
        jax.device_get(shares(padded[start : start + rows], bank, votes_of))
        for start in range(0, len(padded), rows)
    ]
    return np.concatenate(parts)[: len(test)]


def _unit(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Returns the features scaled to length 1; zeros stay zeros."""
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return (features / np.maximum(lengths, 1e-12)).astype(np.float32)
