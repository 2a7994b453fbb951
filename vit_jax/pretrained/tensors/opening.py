"""Opens a file of tensors; its kind is recognised by the contents, never by the name."""

import json
import os
import pathlib
import stat
import struct
import zipfile

from vit_jax import storage
from vit_jax.errors import CheckpointError, did_you_mean
from vit_jax.pretrained.tensors.base import Tensors, reading
from vit_jax.pretrained.tensors.npz import Npz
from vit_jax.pretrained.tensors.pth import Pth
from vit_jax.pretrained.tensors.safetensors import LARGEST_HEADER, Safetensors
from vit_jax.pretrained.tensors.shards import LARGEST_INDEX, read_shards

_HEAD = 512  # Bytes that are read to recognise a file.
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # The pickle of its magic number.

# Unsupported files: first bytes -> what the file seems to be, and what to do with it.
_UNSUPPORTED: dict[bytes, tuple[str, str]] = {
    b"version https://git-lfs": (
        "a Git LFS pointer: the file itself was not downloaded",
        "Run git lfs pull in its folder.",
    ),
    b"\x89HDF\r\n\x1a\n": (
        "HDF5 (Keras's .h5)",
        "Use the model's .safetensors, .npz or .pth file instead.",
    ),
    b"\x1f\x8b": ("compressed (gzip)", "Unpack it with gunzip."),
    b"BZh": ("compressed (bzip2)", "Unpack it with bunzip2."),
    b"\xfd7zXZ\0": ("compressed (xz)", "Unpack it with unxz."),
    b"\x28\xb5\x2f\xfd": ("compressed (Zstandard)", "Unpack it with unzstd."),
    b"\x93NUMPY": ("one NumPy array without a name", "Save all in one file with numpy.savez."),
}


def open_tensors(path: pathlib.Path) -> Tensors:
    """Opens a file of tensors, or an index of several.

    Args:
      path: safetensors, .npz, PyTorch's (.pth, .pt, .bin), or a *.index.json of shards.

    Raises:
      CheckpointError: the file is damaged or of another kind; the message says of which.
    """
    head = _head(path)
    if head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= LARGEST_HEADER:
        return Safetensors(path)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _open_zip(path)
    if head.startswith(_LEGACY_TORCH):
        return Pth(path)
    if head.lstrip().startswith(b"{"):
        return _open_json(path)
    raise _unsupported(path, *_guess(head))


def _head(path: pathlib.Path) -> bytes:
    try:
        kind = os.stat(path).st_mode
        if stat.S_ISDIR(kind):
            raise CheckpointError(f"{path} is a folder: name a file in it. {_list_files(path)}")
        if not stat.S_ISREG(kind):
            raise CheckpointError(f"{path} is not a regular file: name a file of tensors.")
        with open(path, "rb") as file:
            return file.read(_HEAD)
    except FileNotFoundError as error:
        names = _files(path.parent)
        suggestion = f" {did_you_mean(path.name, names)}" if names else ""
        raise CheckpointError(f"There is no file {path}.{suggestion}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be opened: {error}.") from error


def _files(folder: pathlib.Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))[:20]
    except OSError:
        return []


def _list_files(folder: pathlib.Path) -> str:
    return f"It has: {', '.join(_files(folder))}." if _files(folder) else "It is empty."


def _open_zip(path: pathlib.Path) -> Tensors:
    with reading(path), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return Pth(path)
    if any(name.endswith(".npy") for name in names):
        return Npz(path)
    if "model.weights.h5" in names:
        raise _unsupported(path, "a Keras model", _UNSUPPORTED[b"\x89HDF\r\n\x1a\n"][1])
    what = f"a zip of {', '.join(names[:5])[:200] or 'nothing'}"
    raise _unsupported(path, what, "If the checkpoint is in it, unpack it.")


def _open_json(path: pathlib.Path) -> Tensors:
    with reading(path):
        content = json.loads(storage.read_bytes(path, limit=LARGEST_INDEX))
    if "weight_map" in content:
        return read_shards(path)
    raise _unsupported(path, "JSON", "Name the file of the weights, or the folder that it is in.")


def _guess(head: bytes) -> tuple[str, str]:
    """Returns what an unsupported file seems to be, and what to do."""
    if not head:
        return "empty", "Download it again."
    for start, answer in _UNSUPPORTED.items():
        if head.startswith(start):
            return answer
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page", "Download the file itself: its page often has a button for that."
    if head[257:262] == b"ustar":
        return "a tar archive", "Unpack it with tar -xf, and name the file of the weights."
    if head[0] == 0x80:
        return (
            "a Python pickle, which can execute code and is not loaded",
            "If you trust it, save its arrays with numpy.savez or torch.save(state_dict).",
        )
    if 0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF):
        return (
            "MessagePack (Flax's .msgpack)",
            "Use the model's .safetensors file instead, or save its arrays with numpy.savez.",
        )
    return f"a file that begins with {head[:8]!r}", "It may be damaged: download it again."


def _unsupported(path: pathlib.Path, what: str, advice: str) -> CheckpointError:
    return CheckpointError(
        f"{path} seems to be {what}. Supported: safetensors, .npz, PyTorch's files, and an index "
        f"of several files. {advice}"
    )
