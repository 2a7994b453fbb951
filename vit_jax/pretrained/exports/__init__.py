"""Models written in foreign formats.

base           parameters in another spelling; what a format cannot say
preprocessing  how images are prepared, as their JSON
huggingface    folders of transformers
timm           folders of timm
google         .npz of vision_transformer and big_vision
programs       StableHLO and ONNX
workdir        a work directory of ours
"""

import os
import pathlib
import shutil

from etils import epath

from vit_jax import storage
from vit_jax.errors import CheckpointError, ConfigError, did_you_mean
from vit_jax.pretrained.exports import google, huggingface, programs, timm, workdir
from vit_jax.pretrained.exports.base import DTYPES
from vit_jax.pretrained.load import Pretrained
from vit_jax.pretrained.mapping import REGRESSION

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
        onnx a file. A work directory (orbax) may be in an object store.
      to: one of TARGETS.
      dtype: that the numbers are written in, float32 or bfloat16 (hf, timm, google, big_vision).
      change_numerics: write it although the format has another LayerNorm epsilon, GELU, or way of
        resizing positions or images than the model.

    Returns:
      What is to be said of it.

    Raises:
      CheckpointError: something is at `path` or it cannot be written, or the format cannot express
        the model.
      ConfigError: there is no such format.
    """
    target = check_destination(path, to=to, dtype=dtype)
    try:
        if to == "orbax":
            workdir.write(pretrained, target)
            return ()
        return _write(pretrained, pathlib.Path(target), to, dtype, change_numerics)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {storage.explain(error)}.") from error


def check_destination(path: str | os.PathLike, *, to: str, dtype: str) -> epath.Path:
    """Whether `export` may write there, known before a model is loaded; the path.

    Raises:
      CheckpointError: see `export`.
      ConfigError: see `export`.
    """
    if to not in TARGETS:
        raise ConfigError(f"to={to!r}: there is no such format. {did_you_mean(str(to), TARGETS)}")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}: numbers are not written so. Accepted: {[*DTYPES]}.")
    if dtype != "float32" and to in ("orbax", "stablehlo", "onnx"):
        raise CheckpointError(f"--to={to} writes float32 only, not {dtype}.")
    target = storage.as_path(path, name="the destination")
    if to != "orbax" and not storage.is_local(target):
        raise CheckpointError(f"{target}: --to={to} writes on this machine; copy it there then.")
    try:
        taken = storage.exists(target)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {storage.explain(error)}.") from error
    if taken:
        raise CheckpointError(f"{target} is there already: name a new one, nothing is overwritten.")
    return target


def _write(
    pretrained: Pretrained, path: pathlib.Path, to: str, dtype: str, change_numerics: bool
) -> tuple[str, ...]:
    """Writes beside `path`, and renames what is whole."""
    aside = path.with_name(f"{path.name}.unfinished")
    _remove(aside)  # Of a process that was killed.
    path.parent.mkdir(parents=True, exist_ok=True)
    how = {"dtype": dtype, "change_numerics": change_numerics}
    said: tuple[str, ...] = ()
    try:
        match to:
            case "google" | "big_vision":
                google.write(pretrained, aside, to=to, **how)
            case "hf":
                said = huggingface.write(pretrained, aside, **how)
            case "timm":
                said = timm.write(pretrained, aside, **how)
            case "stablehlo":
                said = _compared(programs.write_stablehlo(pretrained, aside))
            case "onnx":
                said = _compared(programs.write_onnx(pretrained, aside))
        aside.rename(path)
    finally:
        _remove(aside)
    return (*said, *_unsaid_loss(pretrained, to))


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def _unsaid_loss(pretrained: Pretrained, to: str) -> tuple[str, ...]:
    """A note where a file gives logits and cannot say what their probabilities are."""
    softmax = not pretrained.config.num_classes or pretrained.loss == "softmax_xent"
    if softmax or to in ("hf", "timm"):
        return ()
    if to in ("stablehlo", "onnx"):
        return (f"the head's loss is {pretrained.loss or 'a regression'}: take no softmax of it",)
    return (
        f"the file does not say that the head's loss is {pretrained.loss or 'a regression'}: read "
        f"it with --hints=loss={pretrained.loss or REGRESSION}",
    )


def _compared(difference: float) -> tuple[str, ...]:
    return (f"largest difference of a logit to the model: {difference:.1e}",)


__all__ = ["DTYPES", "TARGETS", "check_destination", "export"]
