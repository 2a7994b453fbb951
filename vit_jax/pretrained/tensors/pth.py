"""PyTorch's files (.pth, .pt, .bin): a pickle of names and offsets, and the bytes of the tensors.

PyTorch's weights-only loader reads them. Of the functions that a pickle names, it calls only those
that rebuild tensors. Only this file imports torch, and only when such a file is opened.
"""

import argparse
import pathlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.pretrained.tensors.base import Tensor, Tensors, bounds, damaged, reading

if TYPE_CHECKING:
    import torch

# Keys under which training scripts save the weights. Averaged weights come first: publishers
# evaluate these.
WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "teacher",
    "target_encoder",
    "model",
    "state_dict",
    "module",
    "student",
    "encoder",
    "backbone",
)
_MAX_DEPTH = 4  # Of nested wrappers, such as {"teacher": {"backbone": ...}}.

_DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}


class Pth(Tensors):
    """The tensors of the model in a PyTorch file.

    Training scripts save optimizer, epoch and arguments besides the model. `metadata["wrapper"]` is
    the entry that holds the tensors, such as "model" or "teacher.backbone"; "" for the top level.
    `metadata["beside"]` is a tuple of the names of all other entries.
    """

    def __init__(self, path: pathlib.Path):
        """Reads the pickle; a zip file's tensors are memory-mapped.

        Mapped pages that were read count as this process's memory until the system reclaims them,
        which it can at any time.

        Raises:
          CheckpointError: torch is not installed; or the file is damaged, holds objects that could
            execute code, or holds no tensors.
        """
        content = _load(path)
        wrapper, state_dict, beside = _unwrap(path, content)
        self._torch_tensors: dict[str, torch.Tensor] = {}
        tensors = {}
        for name, value in state_dict.items():
            if not _is_tensor(value):
                beside.append(".".join([*wrapper, str(name)]))
            elif not isinstance(name, str):
                raise damaged(path, f"a tensor has the name {str(name)[:200]}, which is not text")
            else:
                tensors[name] = _describe(path, name, value)
                self._torch_tensors[name] = value.detach()
        super().__init__(path, tensors, {"wrapper": ".".join(wrapper), "beside": tuple(beside)})

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        import torch

        shape, dtype = self[name]
        first, last = bounds(shape, rows)
        tensor = self._torch_tensors[name]
        with reading(self.path, name):
            if rows is not None:
                tensor = tensor[first:last]
            if tensor.dtype == torch.bfloat16:  # NumPy lacks it: pass the bits as int16.
                tensor = tensor.view(torch.int16)
            array = np.array(tensor.numpy(), order="C")
        return array.view(dtype)


def _load(path: pathlib.Path) -> Any:
    if find_spec("torch") is None:
        raise CheckpointError(
            f"{path} is a PyTorch file, and PyTorch is not installed. Install it with: "
            "pip install vit_jax[torch]. Or use the checkpoint's .safetensors file, if it has one."
        )
    import torch

    is_zip = _check_zip(path)
    safe = torch.serialization.safe_globals(_SAFE_GLOBALS)
    try:
        with warnings.catch_warnings(action="ignore"), safe:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except MemoryError:
        raise
    except Exception as error:  # The loader raises nearly every type on a broken file.
        if match := re.search(r"GLOBAL ([\w.]{1,200})", str(error)):
            raise CheckpointError(
                f"{path} holds {match[1]}. Loading it would execute code of the file, so it is not "
                "loaded. If you trust the file, save its tensors alone: "
                "torch.save(model.state_dict(), FILE)."
            ) from error
        reason = str(error).split("\n")[0][:300] or type(error).__name__
        raise damaged(path, reason) from error


# Types of arguments and numbers that training scripts save; creating them executes no code of the
# file.
_SAFE_GLOBALS = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"},
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]


def _check_zip(path: pathlib.Path) -> bool:
    """Returns whether the file is a zip; raises CheckpointError for TorchScript or forged sizes."""
    if not zipfile.is_zipfile(path):
        return False
    with reading(path), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    # PyTorch writes no compressed members, and allocates whatever size a member claims.
    size = path.stat().st_size
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
            raise damaged(path, f"{entry.filename[:200]} is compressed, or larger than the file")
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise CheckpointError(
            f"{path} is a TorchScript program, not a file of weights. Save the weights: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)."
        )
    return True


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _unwrap(path: pathlib.Path, content: Any) -> tuple[list[str], Mapping[Any, Any], list[str]]:
    """Finds the state dict: returns its keys from the top, itself, and the names left beside it."""
    wrapper: list[str] = []
    beside: list[str] = []
    while isinstance(content, Mapping) and len(wrapper) <= _MAX_DEPTH:
        inner = [n for n in WRAPPERS if isinstance(content.get(n), Mapping) and content[n]]
        if not inner:
            if any(map(_is_tensor, content.values())):
                return wrapper, content, beside
            break
        others = [str(name) for name in content if name != inner[0]]
        beside += [".".join([*wrapper, name]) for name in others]
        content = content[inner[0]]
        wrapper.append(inner[0])
    keys = [str(name)[:50] for name in content] if isinstance(content, Mapping) else []
    raise CheckpointError(
        f"{path} holds no state dict: {'.'.join(wrapper) or 'the whole'} is a "
        f"{type(content).__name__} with the keys {keys[:9]}. Save the tensors alone: "
        "torch.save(model.state_dict(), FILE)."
    )


def _describe(path: pathlib.Path, name: str, tensor: "torch.Tensor") -> Tensor:
    import torch

    kind = str(tensor.dtype).removeprefix("torch.")
    dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested
    if kind not in _DTYPES or not dense or tensor.device.type != "cpu":
        raise CheckpointError(
            f"{path}: {name[:200]} is a tensor of {kind} ({tensor.layout}, {tensor.device}), which "
            f"is not supported. Supported: dense ones of {', '.join(_DTYPES)}."
        )
    # With strides of 0, a tensor could claim any size without bytes in the file.
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise damaged(path, f"{name[:200]}: bytes are missing")
    return Tensor(tuple(tensor.shape), _DTYPES[kind])
