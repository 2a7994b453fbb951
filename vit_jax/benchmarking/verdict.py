"""Compares losses and outputs with those of the reference: no time counts without it.

The reference is the same model in float32, with products in full float32: a plain Flax ViT, or ours
with plain settings where that cannot compute the case (`vit_jax.benchmarking.common`). Losses are
compared update by update, each as a difference relative to the reference's first loss, because the
later ones approach zero.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

# Largest accepted differences by dtype. Losses: relative to the first loss. Outputs: the largest
# difference of a logit, relative to the largest logit. float32 contenders differ by rounding, a
# hundredth of this; bfloat16 has 8 bits, and its differences grow with depth.
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
OUTPUT_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a contender computed what the reference did.

    Attributes:
      loss_difference: largest difference of a loss; None: not compared.
      output_difference: largest difference of an output; None: not compared.
      problem: what is wrong; "": nothing.
    """

    loss_difference: float | None
    output_difference: float | None
    problem: str = ""


def compare(
    dtype: str,
    *,
    losses: Sequence[float],
    reference_losses: Sequence[float],
    outputs: Float32[np.ndarray, "b classes"] | None,
    reference_outputs: Float32[np.ndarray, "b classes"],
) -> Verdict:
    """Compares a contender with the reference.

    Args:
      dtype: of the contender, which decides the tolerance.
      losses: of its updates, in order.
      reference_losses: of the first updates of the reference; further ones of the contender must be
        finite and not above its first.
      outputs: its logits before training; None: they are not compared.
      reference_outputs: the same of the reference.
    """
    problems = []
    scale = abs(reference_losses[0])
    pairs = list(zip(losses, reference_losses, strict=False))
    differences = [abs(own - other) / scale for own, other in pairs]
    loss_difference = max(differences)
    if not all(map(math.isfinite, losses)):
        problems.append(f"loss {next(x for x in losses if not math.isfinite(x))}")
    elif loss_difference > LOSS_TOLERANCE[dtype]:
        update = differences.index(loss_difference)
        own, other = pairs[update]
        problems.append(f"loss {own:.6g} before update {update + 1}, reference {other:.6g}")
    elif max(losses[len(pairs) :], default=0.0) > losses[0] * (1 + LOSS_TOLERANCE[dtype]):
        problems.append(f"loss grew from {losses[0]:.6g} to {max(losses):.6g}")
    output_difference = None
    if outputs is not None:
        largest = float(np.abs(outputs - reference_outputs).max())
        output_difference = largest / float(np.abs(reference_outputs).max())
        if not output_difference <= OUTPUT_TOLERANCE[dtype]:  # Also NaN.
            problems.append(f"outputs differ by {output_difference:.2g} of the largest logit")
    return Verdict(loss_difference, output_difference, "; ".join(problems))
