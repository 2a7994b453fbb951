"""Checkpoints in several files: the shards of a Hugging Face folder."""

import json
import pathlib
import re
from collections.abc import Callable, Mapping

import numpy as np

from vit_jax import storage
from vit_jax.errors import CheckpointError
from vit_jax.pretrained.tensors.base import Tensors, damaged
from vit_jax.pretrained.tensors.pth import Pth
from vit_jax.pretrained.tensors.safetensors import Safetensors

LARGEST_INDEX = 2**26  # Bytes.
_OPEN: dict[str, Callable[[pathlib.Path], Tensors]] = {"safetensors": Safetensors, "bin": Pth}


class Joined(Tensors):
    """Several files as one; `metadata` is the first one's."""

    def __init__(self, path: pathlib.Path, shards: Mapping[str, Tensors]):
        """Joins files; `shards` has, for each tensor's name, the file that holds it."""
        self._shards = shards
        metadata = next(iter(shards.values())).metadata if shards else {}
        super().__init__(path, {name: shard[name] for name, shard in shards.items()}, metadata)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        return self._shards[name].read(name, rows)


def read_shards(index: pathlib.Path) -> Joined:
    """Opens the shards that an index names.

    Args:
      index: model.safetensors.index.json or pytorch_model.bin.index.json, in the folder of its
        shards.

    Raises:
      CheckpointError: a shard or a tensor is missing, or a shard's name leads out of the folder.
    """
    try:
        weights = json.loads(storage.read_bytes(index, limit=LARGEST_INDEX))["weight_map"]
        names = sorted(set(weights.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(index, f"{type(error).__name__}: {error}") from error
    shards = {}
    for name in names:
        match = isinstance(name, str) and re.fullmatch(r"[\w.-]+\.(safetensors|bin)", name)
        if not match:
            raise damaged(index, f"{str(name)[:200]!r} is not the name of a shard in its folder")
        if not (index.parent / name).is_file():
            raise CheckpointError(
                f"{index.parent / name} is missing: the checkpoint has {len(names)} shards, "
                f"{', '.join(names[:9])}. Download all of them into one folder."
            )
        shards[name] = _OPEN[match[1]](index.parent / name)
    for tensor, name in weights.items():
        if tensor not in shards[name]:
            raise damaged(index, f"{tensor[:200]} is not in {name}")
    return Joined(index.parent, {tensor: shards[name] for tensor, name in weights.items()})
