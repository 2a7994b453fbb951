"""The parameters that all contenders have in common.

One process writes the parameters once: as an archive of ours, and by our exporters in the format of
each other library.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from jaxtyping import PyTree

from vit_jax.benchmarking.case import Case
from vit_jax.benchmarking.inputs import FORMATS, PARAMETERS, SEED
from vit_jax.errors import CheckpointError
from vit_jax.parallel.rules import named_leaves
from vit_jax.pretrained.create import create
from vit_jax.pretrained.exports import export


def write(case: Case, folder: pathlib.Path, contenders: Iterable[str]) -> dict[str, str]:
    """Writes random parameters of a case for the contenders that are named.

    The head, zeros in a fresh model, is drawn as well: otherwise all losses would begin at the
    logarithm of the number of classes, whatever the encoder computes.

    Returns:
      {contender: why its format cannot express the model}.
    """
    sizes: dict[str, Any] = dict(case.sizes)
    pretrained = create(
        case.variant, image_size=case.image_size, num_classes=case.num_classes, seed=SEED,
        **sizes,
    )  # fmt: skip
    params: dict[str, Any] = dict(pretrained.params)
    kernel = params["head"]["kernel"]
    drawn = np.random.default_rng(SEED).standard_normal(kernel.shape, np.float32)
    params["head"] = {**params["head"], "kernel": drawn * kernel.shape[0] ** -0.5}
    named = {path: np.asarray(leaf) for path, leaf in named_leaves(params).items()}
    np.savez(folder / PARAMETERS, **named)  # pyright: ignore[reportArgumentType]
    pretrained = dataclasses.replace(pretrained, params=params)
    refused = {}
    for contender in contenders:
        to, name = FORMATS[contender]
        try:
            # The libraries resize positions and images in other ways, which no step does.
            export(pretrained, folder / name, to=to, change_numerics=True)
        except CheckpointError as error:
            refused[contender] = str(error)
    return refused


def read(folder: pathlib.Path, layout: PyTree) -> PyTree:
    """Reads the parameters with stacked or unstacked blocks, whichever `layout` has.

    Args:
      folder: that of `write`.
      layout: a tree of shardings, with the paths of the parameters.
    """
    leaves = {}
    with np.load(folder / PARAMETERS, allow_pickle=False) as archive:
        for path, sharding in named_leaves(layout).items():
            leaves[path] = jax.device_put(_array(archive, path), sharding)
    return flax.traverse_util.unflatten_dict(leaves, sep="/")


def _array(archive: Mapping[str, np.ndarray], path: str) -> np.ndarray:
    """Returns a parameter of an archive with stacked blocks."""
    if path in archive:
        return archive[path]
    before, _, after = path.partition("/block_")
    index, _, rest = after.partition("/")
    return archive[f"{before}/blocks/{rest}"][int(index)]
