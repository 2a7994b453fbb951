"""ImageNet's 1,000 classes in their usual order, with the lemmas of their WordNet synsets."""

import functools
import importlib.resources
import re
from collections.abc import Sequence

# Some models of TensorFlow have a class "background" before the thousand.
SIZES = {1000: 0, 1001: 1}  # Number of outputs -> index of the first class of ImageNet.
_SAME_ORDER = 0.9  # Share of labels with a lemma of their class, from which on the order is known.


@functools.cache
def synsets() -> tuple[tuple[str, str], ...]:
    """Returns (id, lemmas) of each class, such as ("n01440764", "tench, Tinca tinca").

    From imagenet.tsv, which names its source and licence.
    """
    text = importlib.resources.files("vit_jax.pretrained").joinpath("imagenet.tsv").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return tuple((line.split("\t")[0], line.split("\t")[1]) for line in lines)


def lemmas(names: str) -> set[str]:
    """Returns the lemmas of a label, in lower case: "Tinca tinca, tench" -> {tinca tinca, tench}.

    Underscores and hyphens are spaces, as in names of folders.
    """
    parts = (" ".join(re.split(r"[\s_-]+", part)).strip().casefold() for part in names.split(","))
    return {part for part in parts if part}


def ids_of_outputs(labels: Sequence[str] | None, num_classes: int) -> list[str | None] | None:
    """Returns the synset id of each output of a model of ImageNet's 1,000 classes.

    Args:
      labels: of the outputs; None: unknown. A model with as many outputs as ImageNet has classes is
        then taken for one of ImageNet.
      num_classes: number of outputs.

    Returns:
      An id for each output (None: a class "background"), or None if this is no such model.
    """
    if num_classes not in SIZES:
        return None
    first = SIZES[num_classes]
    if labels is not None:
        pairs = zip(labels[first:], synsets(), strict=True)
        same = sum(label == i or bool(lemmas(label) & lemmas(names)) for label, (i, names) in pairs)
        if same < _SAME_ORDER * len(synsets()):
            return None
    return [None] * first + [i for i, _ in synsets()]
