"""The measures of `vit-jax analyze`, in the order of its report; imports no JAX."""

import enum
from collections.abc import Sequence

from vit_jax.errors import ConfigError, did_you_mean

NUM_IMAGES = 256  # That are measured unless the user names another number.


class Takes(enum.Enum):
    """What a measure takes beside the model."""

    NOTHING = "nothing"
    IMAGE = "an image"
    IMAGES = "images"
    LABELLED_IMAGES = "labelled images"


# Name of a function of `vit_jax.analysis` -> what it takes.
MEASURES: dict[str, Takes] = {
    "embedding_filters": Takes.NOTHING,
    "position_similarity": Takes.NOTHING,
    "attention_distance": Takes.IMAGES,
    "attention_maps": Takes.IMAGE,
    "explanations": Takes.IMAGE,
    "faithfulness": Takes.IMAGES,
    "token_norms": Takes.IMAGES,
    "test_time_registers": Takes.IMAGES,
    "branch_norms": Takes.IMAGES,
    "layer_similarity": Takes.IMAGES,
    "layer_probes": Takes.LABELLED_IMAGES,
    "feature_pca": Takes.IMAGES,
    "patch_similarity": Takes.IMAGE,
    "nearest_images": Takes.IMAGES,
    "walkthrough": Takes.IMAGE,
}
# Most images that are measured in an analysis, where each takes many forward passes; the function
# itself has no such limit.
MOST_IMAGES: dict[str, int] = {"faithfulness": 64}
# What a user may look for by another name.
_PART_OF = {
    **dict.fromkeys(("rollout", "relevance", "grad_cam"), "explanations"),
    "cka": "layer_similarity",
    "pca": "feature_pca",
    "probes": "layer_probes",
    "registers": "test_time_registers",
}
# Measures that also compare two models: called with a third argument, the other model.
PAIRS: tuple[str, ...] = ("layer_similarity",)

# Measures that an evaluation can take over training: they work where the parameters and batches of
# a run are, sharded over its mesh.
OVER_TRAINING = ("attention_distance", "token_norms", "branch_norms", "layer_similarity")


def chosen(only: str | Sequence[str], skip: str | Sequence[str] = ()) -> list[str]:
    """Returns the names of measures in the order of the report.

    Args:
      only: names, a sequence or a text with commas; none: all measures.
      skip: names to leave out.

    Raises:
      ConfigError: there is no measure of a name, or none is left.
    """
    only, skip = _names(only), _names(skip)
    for name in (*only, *skip):
        if name in _PART_OF:
            raise ConfigError(f'There is no measure "{name}": it is part of {_PART_OF[name]}.')
        if name not in MEASURES:
            raise ConfigError(f'There is no measure "{name}". {did_you_mean(name, MEASURES)}')
    names = [name for name in MEASURES if (not only or name in only) and name not in skip]
    if not names:
        raise ConfigError("No measure is left: skip names all of them.")
    return names


def _names(text: str | Sequence[str]) -> list[str]:
    """Returns names without spaces around them."""
    parts = text.split(",") if isinstance(text, str) else text
    return [name.strip() for name in parts if name.strip()]
