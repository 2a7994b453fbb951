"""Files of named tensors, read one tensor at a time: safetensors, .npz, .pth.

No code in a file is executed: pickled Python objects are not loaded. Names, shapes and dtypes are
known before a tensor is read, and reading a tensor needs memory for that tensor only.

base         the interface of a file of tensors
opening      recognises a file by its contents
safetensors  .safetensors
npz          .npz
pth          PyTorch's .pth and .bin
shards       several files as one
"""

from vit_jax.pretrained.tensors.base import Tensor, Tensors
from vit_jax.pretrained.tensors.npz import Npz
from vit_jax.pretrained.tensors.opening import open_tensors
from vit_jax.pretrained.tensors.pth import Pth
from vit_jax.pretrained.tensors.safetensors import Safetensors
from vit_jax.pretrained.tensors.shards import Joined, read_shards

__all__ = [
    "Joined",
    "Npz",
    "Pth",
    "Safetensors",
    "Tensor",
    "Tensors",
    "open_tensors",
    "read_shards",
]
