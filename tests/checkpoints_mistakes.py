"""Damaged and mismatched checkpoints, and texts that the messages must contain.

A row is a name, a function of a `Shelf` that makes the checkpoint and returns the arguments of
`load_pretrained`, and the texts.
"""

import numpy as np

from tests import damaged_checkpoints as make
from tests.damaged_checkpoints import HINTS, Shelf
from vit_jax.errors import VitJaxError
from vit_jax.pretrained.load import load_pretrained


def _hinted(shelf: Shelf, **hints):
    return shelf.timm(), {"hints": HINTS | hints}


F32 = np.float32

# Name -> (function from a shelf to a path, or to (path, arguments of load_pretrained)), texts of
# the message.
TENSORS = {
    "a tensor is missing": (
        lambda s: (s.timm(blocks__1__norm1__weight=None), {"hints": HINTS}),
        "(timm) does not fit the model that it describes, width 16, depth 2",
        "tensor  shape  parameter                    shape\n",
        "-              encoder/block_1/norm1/scale  16\n", "Name in leave_out",
    ),
    "a tensor too many": (
        lambda s: (s.timm(adapter__weight=np.ones((2, 3), F32)), {"hints": HINTS}),
        "adapter.weight  2x3    -", "Name in leave_out (--leave_out)",
    ),
    "a tensor of another shape": (
        lambda s: (s.timm(blocks__1__mlp__fc1__weight=np.ones((25, 16), F32)), {"hints": HINTS}),
        "blocks.1.mlp.fc1.weight  25x16  encoder/block_1/mlp/fc1/kernel  16x24",
    ),
    "a block is missing": (
        lambda s: (s.timm(blocks__3__norm1__weight=np.ones(16, F32)), {"hints": HINTS}),
        "depth 4", "encoder/block_2/attn/key/kernel", "... and",
    ),
    "the position embedding is missing": (
        lambda s: (s.timm(pos_embed=None), {"hints": HINTS}),
        "has no position embedding (pos_embed)", "--hints=rope=axial_xy", "a part of it is missing",
    ),
    "the classifier of a classifier is missing": (
        lambda s: make.without_head(s.hf()), "head/kernel  16x5", "head/bias",
    ),
    "quantised": (
        lambda s: (s.timm(norm__weight=np.ones(16, np.int8)), {"hints": HINTS}),
        "norm.weight has the dtype int8, as in a quantised checkpoint. Use the floating-point",
    ),
}  # fmt: skip

FILES = {
    "safetensors, half of it": (
        lambda s: s.cut(s.timm()), "cannot be read", "download is incomplete: download it again",
    ),
    ".pth with code": (
        lambda s: s.pickled(), "evil.pth", "posix.system",
    ),
    "folder with several files": (
        make.beside, "holds several files of tensors, and none of",
        ": first.safetensors, second.safetensors.",
        "Name one of them.",
    ),
    "empty folder": (
        lambda s: make.made(s.new("hollow")), "is not the work directory of a run",
        "holds no published checkpoint",
    ),
    "path that does not exist": (
        lambda s: s.timm().with_name("modle.safetensors"), "modle.safetensors does not exist.",
        "Did you mean", "model.safetensors", "hf:OWNER/NAME",
    ),
    "tensors of something else": (
        lambda s: s.google(lambda _: {"w": np.ones(3), "b": np.ones(3)}),
        "holds 2 tensors (w, b, ...), of no known format: Hugging Face transformers, Google .npz",
    ),
}  # fmt: skip

CONFIG_JSON = {
    "config.json damaged": (
        lambda s: make.written(s.hf(), "config.json", '{"model_type": "vit", '),
        "config.json cannot be read", "Download it again.",
    ),
    "unknown model_type": (
        lambda s: s.hf(model_type="swin"), 'is of the model_type "swin". Accepted: vit, deit,',
    ),
    "another model_type than the tensors": (
        lambda s: s.hf(model_type="dinov3_vit"),
        "embeddings.position_embeddings  1x17x16  -",
    ),
    "hidden_size of another model": (
        lambda s: s.hf(hidden_size=768, num_hidden_layers=12),
        "config.json and the tensors are of different models.",
        "hidden_size: 768; the tensors have 16\n  num_hidden_layers: 12; the tensors have 2\n",
    ),
    "image_size of another model": (
        lambda s: s.hf(image_size=64),
        "has 17 rows, which the image size 64x64 with patches of 8x8 does not give (64 patches)",
    ),
    "unknown activation": (
        lambda s: s.hf(hidden_act="relu"), 'hidden_act="relu", which is not supported.',
        'Did you mean "gelu"?',
    ),
    "timm's file in a folder of transformers": (
        make.swapped, "has a config.json of vit, but its",
        "no usable 'tensor whose name matches embeddings",
    ),
}  # fmt: skip

HINTED = {
    "nothing tells the heads": (
        lambda s: s.timm(), "does not state num_heads, and no published model has its shape",
        "hints={'num_heads': ...}, or --hints=num_heads=...",
    ),
    "a hint contradicts": (
        lambda s: _hinted(s, width=32), "The hint width=32 contradicts the checkpoint, which has "
        "16.", "check that this is the right file",
    ),
    "a hinted image size that is not the file's": (
        lambda s: _hinted(s, image_size=40), "17 rows, which the image size 40x40",
        "to load another size, pass image_size as an argument",
    ),
    "two towers, none named": (make.two, "holds the models img: name one, as", "vit.npz:img."),
    "leave_out is no pattern": (
        lambda s: (s.timm(), {"hints": HINTS, "leave_out": ["head.["]}),
        "leave_out (--leave_out) has 'head.[', which is not a regular expression",
        "A pattern matches whole names",
    ),
    "leave_out matches nothing": (
        lambda s: (s.timm(), {"hints": HINTS, "leave_out": ["heads.*"]}),
        'leave_out (--leave_out): "heads.*" matches no whole name of a tensor or a parameter.',
        "There are head",
    ),
}  # fmt: skip

WANTED = {
    "image size that patches do not fill": (
        lambda s: (s.hf(), {"image_size": 30}),
        "height 30, which is not a multiple of the patch size 8. The nearest multiples: 24 or 32.",
    ),
    "Mixer at another image size": (
        lambda s: (s.mixer(), {"image_size": 32}),
        "A Mixer takes only the image_size that it was trained with, 16x16",
    ),
}  # fmt: skip

TABLES = (TENSORS, FILES, CONFIG_JSON, HINTED, WANTED)
CASES = {name: row for table in TABLES for name, row in table.items()}


def message_of(shelf: Shelf, name: str) -> str:
    """Returns the message of the error that `load_pretrained` raises for a row.

    Raises:
      AssertionError: the checkpoint was loaded.
    """
    made = CASES[name][0](shelf)
    path, arguments = made if isinstance(made, tuple) else (made, {})
    try:
        load_pretrained(str(path), **arguments)
    except VitJaxError as error:
        return str(error)
    raise AssertionError(f"{name}: it was loaded")
