"""Checkpoints of tiny models, and ways to damage them."""

import json
import os
import pathlib
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.tiny_checkpoints import LABELS, tiny
from vit_jax.pretrained.exports import export

HINTS = {"num_heads": 4, "image_size": 32}
GOOGLE = {"gelu": "tanh", "posemb_resize": "bilinear_corners"}
RAN = "THE_CODE_RAN"  # The file that hostile pickles would create.


class Shelf:
    """Checkpoints of tiny models, and a new folder for each damaged copy."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        if not (folder / "hf").exists():
            export(tiny(labels=LABELS), folder / "hf", to="hf")
            timm = tiny(family="timm", posemb_resize="bicubic_antialias")
            export(timm, folder / "timm", to="timm")
            export(tiny(**GOOGLE), folder / "google.npz", to="google")

    def new(self, name: str) -> pathlib.Path:
        return pathlib.Path(tempfile.mkdtemp(dir=self.folder)) / name

    def hf(self, **config) -> pathlib.Path:
        """Returns a folder of transformers with changed keys in config.json."""
        shutil.copytree(self.folder / "hf", copy := self.new("vit"))
        content = json.loads((copy / "config.json").read_text()) | config
        (copy / "config.json").write_text(json.dumps(content))
        return copy

    def timm(self, name: str = "model.safetensors", **changed) -> pathlib.Path:
        """Returns a bare file of timm with changed tensors; None removes one, __ is a dot."""
        tensors = load_file(self.folder / "timm/model.safetensors")
        tensors |= {key.replace("__", "."): array for key, array in changed.items()}
        tensors = {key: array for key, array in tensors.items() if array is not None}
        save_file(tensors, path := self.new(name))
        return path

    def google(self, change: Callable[[dict], dict]) -> pathlib.Path:
        """Returns a changed archive of Google."""
        with np.load(self.folder / "google.npz") as file:
            tensors = change(dict(file))
        np.savez(path := self.new("vit.npz"), **tensors)
        return path

    def mixer(self) -> pathlib.Path:
        """Returns an MLP-Mixer for 16x16 pixels in Google's names."""
        arrays = {"stem/kernel": (8, 8, 3, 6), "stem/bias": (6,), "head/kernel": (6, 2),
                  "head/bias": (2,)}  # fmt: skip
        for mlp, width in (("token_mixing", 4), ("channel_mixing", 6)):
            arrays |= {
                f"MixerBlock_0/{mlp}/Dense_0/kernel": (width, 5),
                f"MixerBlock_0/{mlp}/Dense_0/bias": (5,),
                f"MixerBlock_0/{mlp}/Dense_1/kernel": (5, width),
                f"MixerBlock_0/{mlp}/Dense_1/bias": (width,),
            }
        for name in ("MixerBlock_0/LayerNorm_0", "MixerBlock_0/LayerNorm_1", "pre_head_layer_norm"):
            arrays |= {f"{name}/scale": (6,), f"{name}/bias": (6,)}
        np.savez(path := self.new("mixer.npz"), **{k: np.ones(s) for k, s in arrays.items()})
        return path

    def cut(self, path: pathlib.Path) -> pathlib.Path:
        """Returns a copy of a file that was downloaded by half."""
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        return path

    def pickled(self) -> pathlib.Path:
        """Returns a PyTorch file that executes a command when it is unpickled."""

        class Code:
            def __reduce__(self):
                return os.system, (f"touch {pathlib.Path.cwd() / RAN}",)

        with zipfile.ZipFile(path := self.new("evil.pth"), "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": Code()}, protocol=2))
            archive.writestr("archive/version", "3")
        return path


def two(shelf: Shelf) -> pathlib.Path:
    def towers(tensors):
        image = {f"params/img/{name}": array for name, array in tensors.items()}
        return image | {"params/txt/Embed_0/embedding": np.zeros((4, 4), np.float32)}

    return shelf.google(towers)


def beside(shelf: Shelf) -> pathlib.Path:
    folder = shelf.new("several")
    folder.mkdir()
    for name in ("first", "second"):
        shutil.copy(shelf.timm(), folder / f"{name}.safetensors")
    return folder


def swapped(shelf: Shelf) -> pathlib.Path:
    """Returns a folder of transformers whose weights are those of a timm model."""
    folder = shelf.hf()
    shutil.copy(shelf.timm(), folder / "model.safetensors")
    return folder


def written(folder: pathlib.Path, name: str, text: str) -> pathlib.Path:
    (folder / name).write_text(text)
    return folder


def made(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir()
    return folder


def without_head(folder: pathlib.Path) -> pathlib.Path:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: array for name, array in tensors.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors")
    return folder
