"""Models written in foreign formats.

base           parameters in another spelling; what a format cannot say
preprocessing  how pictures are prepared, as their JSON
huggingface    folders of transformers
timm           folders of timm
google         .npz of vision_transformer and big_vision
programs       StableHLO and ONNX
workdir        a work directory of ours
"""

import os
import pathlib
import shutil

from vit_jax.checkpoints.exports import google, huggingface, programs, timm, workdir
from vit_jax.checkpoints.exports.base import DTYPES
from vit_jax.checkpoints.pretrained import Pretrained
from vit_jax.errors import CheckpointError

TARGETS = ("hf", "timm", "google", "big_vision", "orbax", "stablehlo", "onnx")


def export(
    pretrained: Pretrained,
    path: str | os.PathLike,
    *,
    to: str,
    dtype: str = "float32",
    change_numerics: bool = False,
) -> tuple[str, ...]:
    """Writes a model, whole or not at all.

    Args:
      pretrained: the model.
      path: that is not there yet: a folder; for google and big_vision an .npz, for stablehlo and
        onnx a file.
      to: one of TARGETS.
      dtype: that the numbers are written in, float32 or bfloat16 (hf, timm, google, big_vision).
      change_numerics: write it although the format has another LayerNorm epsilon, GELU or way of
        resizing positions than the model.

    Returns:
      What is to be said of it.

    Raises:
      CheckpointError: something is at `path`, or the format cannot express the model.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise CheckpointError(f"{path} is there already: name a new one, nothing is overwritten.")
    if dtype != "float32" and to in ("orbax", "stablehlo", "onnx"):
        raise CheckpointError(f"--to={to} writes float32 only, not {dtype}.")
    if to == "orbax":
        workdir.write(pretrained, path)
        return ()
    aside = path.with_name(f"{path.name}.unfinished")
    path.parent.mkdir(parents=True, exist_ok=True)
    how = {"dtype": dtype, "change_numerics": change_numerics}
    try:
        match to:
            case "google" | "big_vision":
                google.write(pretrained, aside, to=to, **how)
            case "hf":
                huggingface.write(pretrained, aside, **how)
            case "timm":
                timm.write(pretrained, aside, **how)
            case "stablehlo":
                difference = programs.write_stablehlo(pretrained, aside)
            case "onnx":
                difference = programs.write_onnx(pretrained, aside)
        aside.rename(path)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        aside.unlink(missing_ok=True)
    if to in ("stablehlo", "onnx"):
        return (f"largest difference of a logit to the model: {difference:.1e}",)
    return ()


__all__ = ["DTYPES", "TARGETS", "export"]
