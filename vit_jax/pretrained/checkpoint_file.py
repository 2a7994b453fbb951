"""Finds and opens the files of a checkpoint: a folder, a file, or a name on a hub."""

import difflib
import json
import os
import pathlib
import re
from typing import Any

from vit_jax import storage
from vit_jax.errors import CheckpointError
from vit_jax.models.variants import is_variant
from vit_jax.pretrained.formats.base import CheckpointFiles
from vit_jax.pretrained.formats.names import without_wrappers
from vit_jax.pretrained.hub import resolve
from vit_jax.pretrained.tensors import open_tensors
from vit_jax.rundir import workdir as workdirs

_LARGEST_JSON = 2**26  # Bytes; the class names of ImageNet-21k take two million.
# Files of tensors in a folder: the first that exists is read. An index names the shards.
_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_ENDINGS = (".safetensors", ".npz", ".pth")


def open_checkpoint(path: str | os.PathLike) -> CheckpointFiles:
    """Opens the tensors and the JSON files of a checkpoint.

    Args:
      path: a folder, a file, or a name that `resolve` accepts; FILE.npz:img selects one of several
        models in a file.

    Raises:
      CheckpointError: the path holds no readable checkpoint.
    """
    text, submodel = os.fspath(path), ""
    if re.search(r"\.npz:[\w/]+$", text):
        text, _, submodel = text.rpartition(":")
    local = resolve(text)
    try:
        if local.is_dir():
            folder, file = local, _file_of(local)
        elif local.is_file():
            folder, file = local.parent, local
        else:
            raise CheckpointError(_missing_message(local))
        config = _json(folder / "config.json") if _has_config(file) else {}
    except OSError as error:
        raise CheckpointError(
            f"{str(local)[:300]} cannot be opened: {storage.explain(error)}."
        ) from error
    return CheckpointFiles(
        path=local,
        tensors=without_wrappers(open_tensors(file)),
        config=config,
        preprocessor=_preprocessor(folder) if config else {},
        submodel=submodel,
    )


def _preprocessor(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the JSON of the image processor, which a processor with a tokenizer nests."""
    nested = _json(folder / "processor_config.json").get("image_processor")
    return _json(folder / "preprocessor_config.json") or nested or {}


def _missing_message(path: pathlib.Path) -> str:
    if is_variant(str(path)):
        return (
            f'"{path}" is a size of a model, not a checkpoint: create("{path}") makes a new model '
            "of this size with random parameters. To load parameters, name a file, a folder, "
            "hf:OWNER/NAME or timm:NAME."
        )
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    similar = difflib.get_close_matches(path.name, names, n=1)
    suggestion = f' Did you mean "{path.parent / similar[0]}"?' if similar else ""
    return (
        f"{path} does not exist.{suggestion} Name a file or a folder; for a repository of the "
        "Hugging Face Hub write hf:OWNER/NAME or timm:NAME."
    )


def _candidates(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns a folder's files with names of `_FILES`, in this order; else all tensor files."""
    named = [folder / name for name in _FILES if (folder / name).is_file()]
    return named or [f for f in sorted(folder.iterdir()) if f.suffix in _ENDINGS]


def _has_config(file: pathlib.Path) -> bool:
    """Returns whether the config.json in a file's folder describes this file."""
    return file.name in _FILES or _candidates(file.parent) in ([], [file])


def _file_of(folder: pathlib.Path) -> pathlib.Path:
    files = _candidates(folder)
    if len(files) == 1 or (files and files[0].name in _FILES):
        return files[0]
    if not files and (runs := workdirs.runs_inside(folder)):
        raise CheckpointError(f"{folder} is not the work directory of a run. {runs}")
    if not files:
        raise CheckpointError(
            f"{folder} is not the work directory of a run, and holds no published checkpoint: none "
            f"of {', '.join(_FILES)}, and no other file of tensors. Name a checkpoint's folder or "
            "file."
        )
    raise CheckpointError(
        f"{folder} holds several files of tensors, and none of {', '.join(_FILES)}: "
        f"{', '.join(file.name for file in files)}. Name one of them."
    )


def _json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON file of one object; {} if the file does not exist.

    Raises:
      CheckpointError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(storage.read_bytes(path, limit=_LARGEST_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Download it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object. Download it again.")
    return content
