"""Models written in foreign formats.

base           parameters in another spelling; what a format cannot say
preprocessing  how pictures are prepared, as their JSON
huggingface    folders of transformers
timm           folders of timm
google         .npz of vision_transformer and big_vision
workdir        a work directory of ours
"""

import os
import pathlib
import shutil

from vit_jax.checkpoints.exports import google, huggingface, timm, workdir
from vit_jax.checkpoints.exports.base import DTYPES
from vit_jax.checkpoints.pretrained import Pretrained
from vit_jax.errors import CheckpointError

TARGETS = ("hf", "timm", "google", "big_vision", "orbax")


def export(
    pretrained: Pretrained,
    path: str | os.PathLike,
    *,
    to: str,
    dtype: str = "float32",
    change_numerics: bool = False,
) -> None:
    """Writes a model, whole or not at all.

    Args:
      pretrained: the model.
      path: a folder that is not there yet; of google and big_vision a file, .npz.
      to: one of TARGETS.
      dtype: that the numbers are written in, float32 or bfloat16. A work directory has float32.
      change_numerics: write it although the format has another LayerNorm epsilon, GELU or way of
        resizing positions than the model.

    Raises:
      CheckpointError: something is at `path`, or the format cannot express the model.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise CheckpointError(f"{path} is there already: name a new one, nothing is overwritten.")
    if to == "orbax":
        workdir.write(pretrained, path)
        return
    aside = path.with_name(f"{path.name}.unfinished")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if to in ("google", "big_vision"):
            google.write(pretrained, aside, to=to, dtype=dtype, change_numerics=change_numerics)
        else:
            write = huggingface.write if to == "hf" else timm.write
            write(pretrained, aside, dtype=dtype, change_numerics=change_numerics)
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True) if aside.is_dir() else aside.unlink(
            missing_ok=True
        )


__all__ = ["DTYPES", "TARGETS", "export"]
