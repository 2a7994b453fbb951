"""Whether a run feeds its model the numbers for black and white that its checkpoint knows.

A model that was trained on pixels from -1 to 1 and is fed ImageNet's statistics, or the reverse,
learns on without a sign, and worse.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float
from ml_collections import FrozenConfigDict

from vit_jax.data.color import IMAGENET_MEAN, IMAGENET_STD


def compare_pixels(config: FrozenConfigDict, published: Iterable[Mapping[str, Any]]) -> None:
    """Warns if the run's transforms end in other numbers than the checkpoint's.

    Args:
      config: of the run, with `init_from`.
      published: the transforms that the checkpoint is evaluated with.
    """
    theirs = pixels(published)
    for key in ("train_transforms", "eval_transforms"):
        ours = pixels(config.data[key])
        if ours is None or theirs is None or np.allclose(ours, theirs, atol=0.01):
            continue
        logging.warning(
            "data.%s makes black and white %s, and %s was trained with %s. If that is not meant, "
            "change the last transform: value_range or normalize.",
            key,
            _shown(ours),
            config.init_from,
            _shown(theirs),
        )


def pixels(transforms: Iterable[Mapping[str, Any]]) -> Float[np.ndarray, "3 2"] | None:
    """What black and white become in each of three channels; None if no transform says it."""
    for entry in transforms:
        if entry["op"] == "value_range":
            ends = entry.get("vmin", -1.0), entry.get("vmax", 1.0)
            return np.tile(np.array(ends, np.float64), (3, 1))
        if entry["op"] == "normalize":
            mean, std = (
                np.broadcast_to(np.array(entry.get(key, default), np.float64), (3,))
                for key, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))
            )
            return np.stack([-mean / std, (1 - mean) / std], axis=1)
    return None


def _shown(ends: Float[np.ndarray, "3 2"]) -> str:
    pairs = dict.fromkeys(f"{low:.2f} and {high:.2f}" for low, high in ends)
    return "; ".join(pairs)
