"""The batch that all contenders have in common, and the names of the files of their parameters.

Imports no JAX: the memory of PyTorch's workers must not contain it.
"""

import numpy as np

from vit_jax.benchmarking.case import Case

PARAMETERS = "parameters.npz"
# Contender -> the format of `vit_jax.pretrained.exports` that it reads, and the path in the folder.
FORMATS = {
    "transformers": ("hf", "transformers"),
    "timm": ("timm", "timm"),
    "flax": ("google", "google.npz"),
}
SEED = 0


def batch(case: Case) -> dict[str, np.ndarray]:
    """Returns images f32[b, h, w, 3], labels i32[b] and weights of 1: the batch of every step."""
    rng = np.random.default_rng(SEED)
    shape = (case.batch_size, case.image_size, case.image_size, 3)
    return {
        "image": rng.standard_normal(shape, np.float32),
        "label": rng.integers(case.num_classes, size=case.batch_size, dtype=np.int32),
        "weight": np.ones(case.batch_size, np.float32),
    }
