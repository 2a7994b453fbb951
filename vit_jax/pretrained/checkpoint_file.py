"""A checkpoint's files, found and opened: a folder, a file, a name on a hub."""

import difflib
import json
import os
import pathlib
import re
from typing import Any

from vit_jax import storage
from vit_jax.errors import CheckpointError
from vit_jax.pretrained.formats.base import Foreign
from vit_jax.pretrained.formats.names import without_wrappers
from vit_jax.pretrained.hub import resolve
from vit_jax.pretrained.tensors import open_tensors

_LARGEST_JSON = 2**26  # Bytes: ImageNet-21k's names take two million.
# Files of a folder, the first that is there counts; an index leads to its shards.
_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_ENDINGS = (".safetensors", ".npz", ".pth")


def open_foreign(path: str | os.PathLike) -> Foreign:
    """Opens the tensors and the JSON files of a checkpoint.

    Args:
      path: a folder; a file; a name that `resolve` knows; and FILE.npz:img for a model of several.

    Raises:
      CheckpointError: nothing is there that can be read.
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
            raise CheckpointError(_not_there(local))
        config = _json(folder / "config.json") if _is_described(file) else {}
    except OSError as error:
        raise CheckpointError(
            f"{str(local)[:300]} cannot be opened: {storage.explain(error)}."
        ) from error
    return Foreign(
        path=local,
        tensors=without_wrappers(open_tensors(file)),
        config=config,
        preprocessor=_preprocessor(folder) if config else {},
        submodel=submodel,
    )


def _preprocessor(folder: pathlib.Path) -> dict[str, Any]:
    """The file of the image processor; what saves it with a tokenizer nests it in another one."""
    nested = _json(folder / "processor_config.json").get("image_processor")
    return _json(folder / "preprocessor_config.json") or nested or {}


def _not_there(path: pathlib.Path) -> str:
    """What a user may have meant by a path that does not exist."""
    near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    similar = difflib.get_close_matches(path.name, near, n=1)
    guess = f' Did you mean "{path.parent / similar[0]}"?' if similar else ""
    return (
        f"{path} does not exist.{guess} Name a file or a folder; what is on the Hugging Face Hub "
        "is written hf:OWNER/NAME or timm:NAME."
    )


def _candidates(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files that libraries write into a folder, the best first; else all files of tensors."""
    written = [folder / name for name in _FILES if (folder / name).is_file()]
    return written or [f for f in sorted(folder.iterdir()) if f.suffix in _ENDINGS]


def _is_described(file: pathlib.Path) -> bool:
    """Whether a file is what the config.json beside it is of, not one that lies there, too."""
    return file.name in _FILES or _candidates(file.parent) in ([], [file])


def _file_of(folder: pathlib.Path) -> pathlib.Path:
    files = _candidates(folder)
    if len(files) == 1 or (files and files[0].name in _FILES):
        return files[0]
    if not files:
        raise CheckpointError(
            f"{folder} is not the work directory of a run, and holds no checkpoint of others: none "
            f"of {', '.join(_FILES)}, and no file of tensors. Name the folder or file that is one."
        )
    raise CheckpointError(
        f"{folder} holds no checkpoint that can be chosen: a folder has {', '.join(_FILES)}, or "
        f"one file of tensors. Here: {', '.join(file.name for file in files)}. Name a file."
    )


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
