"""The names of a model's outputs."""

import re
from collections.abc import Sequence

from vit_jax.pretrained import imagenet
from vit_jax.rundir import workdir as workdirs

UNNAMED = re.compile(r"(LABEL_|class[ _])?\d+")  # What libraries write for missing names.


def name_outputs(
    labels: Sequence[str] | None, num_outputs: int
) -> tuple[tuple[str, ...] | None, str]:
    """Returns the names of a model's outputs, and what was assumed for them ("": nothing).

    Args:
      labels: names in the checkpoint, if there are any; "LABEL_0" or "0" is none.
      num_outputs: as many as ImageNet has classes get its names.

    Returns:
      The names, None if they are unknown, and the assumption.
    """
    if labels is not None and not all(map(UNNAMED.fullmatch, labels)):
        return tuple(labels), ""
    ids = imagenet.ids_of_outputs(None, num_outputs)
    if ids is None:
        return None, ""
    names = dict(imagenet.synsets())
    return tuple("background" if i is None else names[i] for i in ids), (
        f"the checkpoint names no classes; its {num_outputs:,} outputs are taken for ImageNet's, "
        "in their usual order"
    )


def shown_names(labels: Sequence[str] | None, num_outputs: int) -> tuple[tuple[str, ...], str]:
    """Returns a name for each output, "class i" if it is unknown, and what was assumed.

    The arguments are those of `name_outputs`. Bytes of names that are not UTF-8 are replaced.
    """
    names, assumption = name_outputs(labels, num_outputs)
    if names is None:  # A run's classes may have numbers for names.
        names = labels or workdirs.class_names(num_outputs)
    return tuple(name.encode(errors="replace").decode() for name in names), assumption
