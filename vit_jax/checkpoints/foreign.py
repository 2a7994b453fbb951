"""A checkpoint's files, found and opened: a folder, a file, a name on a hub."""

import json
import pathlib
import re
from typing import Any

from vit_jax import storage
from vit_jax.checkpoints.formats.base import Foreign
from vit_jax.checkpoints.hub import resolve
from vit_jax.checkpoints.tensors import Tensors, open_tensors
from vit_jax.errors import CheckpointError

_LARGEST_JSON = 2**26  # Bytes: ImageNet-21k's names take two million.
# Files of a folder, the first that is there counts; an index leads to its shards.
_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


def open_foreign(path: str) -> Foreign:
    """Opens the tensors and the JSON files of a checkpoint.

    Args:
      path: a folder; a file; a name that `resolve` knows; and FILE.npz:img for a model of several.

    Raises:
      CheckpointError: nothing is there that can be read.
    """
    text, _, submodel = path.partition(":") if _names_submodel(path) else (path, "", "")
    local = resolve(text)
    if local.is_dir():
        folder, file = local, _file_of(local)
    elif local.is_file():
        folder, file = local.parent, local
    else:
        raise CheckpointError(f"{local} does not exist.")
    config = _json(folder / "config.json")
    if file is local and "model_type" in config and not _belongs(folder, file):
        config = {}
    return Foreign(
        path=local,
        tensors=_open(file),
        config=config,
        preprocessor=_json(folder / "preprocessor_config.json") if config else {},
        submodel=submodel,
    )


def _names_submodel(path: str) -> bool:
    return re.search(r"\.npz:[\w/]+$", path) is not None


def _belongs(folder: pathlib.Path, file: pathlib.Path) -> bool:
    """Whether a file that was named alone is the model of the config.json beside it."""
    return file.name in _FILES or len([f for f in folder.iterdir() if f.suffix == file.suffix]) == 1


def _file_of(folder: pathlib.Path) -> pathlib.Path:
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    files = [f for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".npz", ".pth")]
    if len(files) != 1:
        names = ", ".join(f.name for f in files) or "none of these"
        raise CheckpointError(
            f"{folder} holds no checkpoint that can be chosen: a folder has {', '.join(_FILES)}, "
            f"or one file of tensors. Here: {names}. Name a file."
        )
    return files[0]


def _open(file: pathlib.Path) -> Tensors:
    return open_tensors(file)


def _json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON file's table; {} if there is none.

    Raises:
      CheckpointError: it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(storage.read_bytes(path, limit=_LARGEST_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Download it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no table of settings. Download it again.")
    return content
