"""Warns if a run's pixel values for black and white differ from those of its `init_from`.

A model that was pretrained on pixels from -1 to 1 and is fine-tuned with ImageNet's mean and
standard deviation, or the reverse, trains without an error, but worse.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import FrozenConfigDict

from vit_jax.data.color import IMAGENET_MEAN, IMAGENET_STD
from vit_jax.telemetry import notes


def compare_pixels(config: FrozenConfigDict, published: Iterable[Mapping[str, Any]]) -> None:
    """Warns if the run's pixel values differ from those of the checkpoint's transforms."""
    theirs = _black_and_white(published)
    for key in ("train_transforms", "eval_transforms"):
        ours = _black_and_white(config.data[key])
        if ours is None or theirs is None or np.allclose(ours, theirs, atol=0.01):
            continue
        notes.note(
            f"data.{key} maps black and white to {_shown(ours)}, and {config.init_from} was trained"
            f" with {_shown(theirs)}. If that is not intended, change the last transform: "
            "value_range or normalize."
        )


def _black_and_white(transforms: Iterable[Mapping[str, Any]]) -> Float[np.ndarray, "3 2"] | None:
    """Returns the values of black and white in each channel; None without normalisation."""
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
