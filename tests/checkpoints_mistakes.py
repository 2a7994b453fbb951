"""Damaged, hostile and mismatched checkpoints, and what the user reads of them.

    python -m tests.checkpoints_mistakes      prints the table, with what is said today

A row is a name, a function of a `Shelf` that makes the checkpoint and gives the arguments of
`load_pretrained`, and words that the message must have.
"""

import pathlib
import struct
import tempfile

import numpy as np

from tests import damaged_checkpoints as make
from tests.damaged_checkpoints import HINTS, Shelf
from tests.tiny_checkpoints import LABELS
from vit_jax.errors import VitJaxError
from vit_jax.pretrained.load import load_pretrained


def _hinted(shelf: Shelf, **hints):
    return shelf.timm(), {"hints": HINTS | hints}


F32 = np.float32
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 346293852\n"

# Name -> (shelf -> path, or (path, arguments of load_pretrained)), words of the message.
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
        "norm.weight is of int8, as in a quantised checkpoint. Take the one of floating-point",
    ),
}  # fmt: skip

FILES = {
    "safetensors, half of it": (
        lambda s: s.cut(s.timm()), "cannot be read", "not wholly downloaded: download it again",
    ),
    "npz, half of it": (
        lambda s: s.cut(s.google(dict)), "cannot be read", "download it again",
    ),
    "npz, all but its last bytes": (
        lambda s: s.cut(s.google(dict), 0.999), "cannot be read", "download it again",
    ),
    ".pth with code": (
        lambda s: s.pickled(zipped=True), "evil.pth", "posix.system",
    ),
    "bare pickle with code": (
        lambda s: s.pickled(zipped=False), "a Python pickle, which is code and is not loaded",
    ),
    "npz with Python objects": (
        make.objects, "it holds Python objects, which are not read: they would be code",
    ),
    "zip bomb": (make.bomb, "its bytes are not all there"),
    "safetensors with a header of an exabyte": (
        lambda s: s.file("x.safetensors", struct.pack("<Q", 2**60) + b"{}"), "seems to be",
    ),
    "web page": (
        lambda s: s.file("model.safetensors", b"<!DOCTYPE html><html><body>Sign in</body></html>"),
        "seems to be a web page", "Download the file itself",
    ),
    "Git LFS pointer": (
        lambda s: s.file("model.safetensors", LFS), "a Git LFS pointer", "Run git lfs pull",
    ),
    "empty file": (lambda s: s.file("vit.npz", b""), "seems to be empty", "Download it again."),
    "a shard is missing": (
        lambda s: s.shards(), "model-00002-of-0000", ".safetensors is missing: the checkpoint has",
        "Download all of them into one folder.",
    ),
    "folder with several files": (
        make.beside, "holds no checkpoint that can be chosen",
        "Here: first.safetensors, second.safetensors.",
        "Name a file.",
    ),
    "empty folder": (
        lambda s: make.made(s.new("hollow")), "is not the work directory of a run",
        "holds no checkpoint of others",
    ),
    "path that does not exist": (
        lambda s: s.timm().with_name("modle.safetensors"), "modle.safetensors does not exist.",
        "Did you mean", "model.safetensors", "hf:OWNER/NAME",
    ),
    "name too long": (lambda s: 5000 * "x", "cannot be opened: File name too long."),
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
    "config.json is a list": (
        lambda s: make.written(s.hf(), "config.json", "[]"), "config.json is no table of settings.",
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
    "image_size is text": (
        lambda s: s.hf(image_size="32"), "image_size: '32' is neither pixels nor [height, width]",
    ),
    "heads that do not divide the width": (
        lambda s: s.hf(num_attention_heads=3),
        "describes no model that can be built: model.width 16 is not a multiple of model.num_heads",
    ),
    "heads are text": (
        lambda s: s.hf(num_attention_heads="4"), "num_attention_heads: '4' is no whole number",
    ),
    "unknown activation": (
        lambda s: s.hf(hidden_act="relu"), 'hidden_act="relu", which no model here has.',
        'Did you mean "gelu"?',
    ),
    "more names than classes": (
        lambda s: s.hf(id2label={str(k): "x" for k in range(7)}),
        "id2label, of so many names: 7; the tensors have 5",
    ),
    "names are no table": (
        lambda s: s.hf(id2label=[*LABELS]), "no usable id2label: it is no table of names",
    ),
    "preprocessor_config.json unknown": (
        lambda s: make.written(s.hf(), "preprocessor_config.json",
                           '{"image_processor_type": "SamImageProcessor"}'),
        "image_processor_type", "ViTImageProcessor",
    ),
    "timm's file in a folder of transformers": (
        make.swapped, "has a config.json of vit, but its",
        "no usable 'tensor whose name matches embeddings",
    ),
}  # fmt: skip

HINTED = {
    "nothing tells the heads": (
        lambda s: s.timm(), "does not tell num_heads, and no published model has its shape",
        "hints={'num_heads': ...}, or --hints=num_heads=...",
    ),
    "a hint contradicts": (
        lambda s: _hinted(s, width=32), "The hint width=32 contradicts the checkpoint, which has "
        "16.", "look whether it is the right file",
    ),
    "a hint contradicts what the file has not": (
        lambda s: (s.google(dict), {"hints": {"rope": "dinov3"}}),
        "The hint rope='dinov3' contradicts the checkpoint, which has 'none'.",
    ),
    "unknown hint": (
        lambda s: _hinted(s, heads=4), 'There is no hint "heads". Did you mean "num_heads"?',
    ),
    "a hint that is no number": (
        lambda s: _hinted(s, num_heads="four"), "The hint num_heads='four': write a whole number.",
    ),
    "a hint that is no choice": (
        lambda s: _hinted(s, gelu="exact"), 'model.gelu is "exact". Accepted: tanh, erf.',
    ),
    "a hinted image size that is not the file's": (
        lambda s: _hinted(s, image_size=40), "17 rows, which the image size 40x40",
        "another wanted size is an argument of its own",
    ),
    "two towers, none named": (make.two, "holds the models img: name one, as", "vit.npz:img."),
    "two towers, another named": (
        lambda s: f"{make.two(s)}:txt", "holds the models img: name one, as",
    ),
    "one tower, named": (
        lambda s: f"{s.google(dict)}:img", "holds one model, without a name: leave :img away.",
    ),
    "leave_out is no pattern": (
        lambda s: (s.timm(), {"hints": HINTS, "leave_out": ["head.["]}),
        "leave_out (--leave_out) has 'head.[', which is no regular expression",
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
        "height 30, which is not a multiple of the patch size 8. The nearest that are: 24 or 32.",
    ),
    "image size of a million": (
        lambda s: (s.hf(), {"image_size": 8 * 10**6}), "each number must be from 1 to 16,384",
    ),
    "image size below 0": (
        lambda s: (s.hf(), {"image_size": -8}), "image_size is (-8,): write (side,) or",
    ),
    "patches of no pixels": (
        lambda s: (s.hf(), {"patch_size": 0}), "patch_size is (0,): write (side,) or",
    ),
    "classes below 0": (
        lambda s: (s.hf(), {"num_classes": -1}), "model.num_classes is -1: it must be from 0 to",
    ),
    "unknown kernel": (
        lambda s: (s.hf(), {"resize": "lanczos"}), 'model.posemb_resize is "lanczos". Accepted:',
    ),
    "Mixer at another image size": (
        lambda s: (s.mixer(), {"image_size": 32}),
        "A Mixer takes only the image_size that it was trained with, 16x16",
    ),
    "Mixer with another resize": (
        lambda s: (s.mixer(), {"resize": "bicubic"}),
        "A Mixer has no posemb_resize to be changed: leave it out.",
    ),
}  # fmt: skip

TABLES = (TENSORS, FILES, CONFIG_JSON, HINTED, WANTED)
CASES = {name: row for table in TABLES for name, row in table.items()}


def said_of(shelf: Shelf, name: str) -> str:
    """The message of a row: the whole answer of `load_pretrained`.

    Raises:
      AssertionError: it was loaded.
    """
    made = CASES[name][0](shelf)
    path, arguments = made if isinstance(made, tuple) else (made, {})
    try:
        load_pretrained(str(path), **arguments)
    except VitJaxError as error:
        return str(error)
    raise AssertionError(f"{name}: it was loaded")


def main() -> None:
    """Prints the table as Markdown."""
    print("| what is wrong | what is said |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        shelf = Shelf(pathlib.Path(folder))
        for name in CASES:
            text = said_of(shelf, name)
            for path in sorted(pathlib.Path(folder).iterdir(), key=lambda p: -len(str(p))):
                text = text.replace(f"{path}/", "")
            shown = text if len(text) < 600 else text[:600] + " ..."
            print(f"| {name} | {shown.replace('|', chr(92) + '|').replace(chr(10), '<br>')} |")


if __name__ == "__main__":
    main()
