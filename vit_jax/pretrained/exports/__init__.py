"""Writes models in the formats of other libraries.

base           parameters under a format's names; what a format cannot express
preprocessing  preprocessing as JSON of transformers and timm
huggingface    folders of transformers
timm           folders of timm
google         .npz of vision_transformer and big_vision
programs       StableHLO and ONNX
workdir        a work directory of vit_jax
"""

import os
import pathlib
import shutil

from etils import epath

from vit_jax import storage
from vit_jax.errors import CheckpointError, ConfigError, did_you_mean
from vit_jax.pretrained.consistency import check_finite, check_params
from vit_jax.pretrained.exports import google, huggingface, programs, timm, workdir
from vit_jax.pretrained.exports.base import DTYPES
from vit_jax.pretrained.mapping import REGRESSION
from vit_jax.pretrained.model import Pretrained

TARGETS = ("hf", "timm", "google", "big_vision", "orbax", "stablehlo", "onnx")


def export(
    pretrained: Pretrained,
    path: str | os.PathLike,
    *,
    to: str,
    dtype: str = "float32",
    change_numerics: bool = False,
) -> tuple[str, ...]:
    """Writes a model atomically.

    Args:
      pretrained: the model.
      path: must not exist. It becomes a folder; for google and big_vision an .npz, for stablehlo
        and onnx a file. A work directory (orbax) may be in an object store.
      to: one of TARGETS.
      dtype: dtype of the written parameters, float32 or bfloat16 (hf, timm, google, big_vision).
      change_numerics: write the model even if the library has another LayerNorm epsilon, GELU, or
        method of resizing positions or images.

    Returns:
      Notes for the user.

    Raises:
      CheckpointError: `path` exists or cannot be written, the format cannot express the model, or
        the parameters or labels are not those of the model's config, or a parameter is NaN or
        infinite.
      ConfigError: the format is unknown.

    Example:
      >>> model = create("mu/16", image_size=32, num_classes=10)
      >>> _ = export(model, "for-transformers", to="hf")
      >>> sorted(path.name for path in pathlib.Path("for-transformers").iterdir())
      ['config.json', 'model.safetensors', 'preprocessor_config.json']
    """
    target = check_destination(path, to=to, dtype=dtype)
    _check_consistency(pretrained)
    try:
        if to == "orbax":
            workdir.write(pretrained, target)
            return ()
        return _write(pretrained, pathlib.Path(target), to, dtype, change_numerics)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {storage.explain(error)}.") from error


def check_destination(path: str | os.PathLike, *, to: str, dtype: str) -> epath.Path:
    """Returns the path if `export` may write there; call it before loading a model.

    Raises:
      CheckpointError: see `export`.
      ConfigError: see `export`.
    """
    if to not in TARGETS:
        raise ConfigError(f"to={to!r}: there is no such format. {did_you_mean(str(to), TARGETS)}")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} is not supported. Accepted: {', '.join(DTYPES)}.")
    if dtype != "float32" and to in ("orbax", "stablehlo", "onnx"):
        raise CheckpointError(f"The format {to} has float32 only, not {dtype}.")
    target = storage.as_path(path, name="the destination")
    if to != "orbax" and not storage.is_local(target):
        raise CheckpointError(
            f"{target}: the format {to} writes local files only. Name a local path, and "
            "copy the result."
        )
    try:
        exists = storage.exists(target)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {storage.explain(error)}.") from error
    if exists:
        raise CheckpointError(f"{target} exists: name a new path, nothing is overwritten.")
    return target


def _check_consistency(pretrained: Pretrained) -> None:
    """Raises CheckpointError if no library could read what would be written.

    A caller may have replaced the parameters, the labels or the config, one without the others.
    """
    config, labels = pretrained.config, pretrained.labels
    check_params(pretrained.params, config)
    check_finite(pretrained.params, name="The model")
    if labels and config.num_classes and len(labels) != config.num_classes:
        raise CheckpointError(
            f"The model has {config.num_classes:,} outputs, but {len(labels):,} labels: pass one "
            "label for each output in order, or labels=None."
        )


def _write(
    pretrained: Pretrained, path: pathlib.Path, to: str, dtype: str, change_numerics: bool
) -> tuple[str, ...]:
    """Writes to a temporary path, and renames it when complete."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    _remove(unfinished)  # A killed process may have left it.
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"dtype": dtype, "change_numerics": change_numerics}
    notes: tuple[str, ...] = ()
    try:
        match to:
            case "google" | "big_vision":
                notes = google.write(pretrained, unfinished, to=to, **options)
            case "hf":
                notes = huggingface.write(pretrained, unfinished, **options)
            case "timm":
                notes = timm.write(pretrained, unfinished, **options)
            case "stablehlo":
                notes = _difference_note(programs.write_stablehlo(pretrained, unfinished))
            case "onnx":
                notes = _difference_note(programs.write_onnx(pretrained, unfinished))
        unfinished.rename(path)
    finally:
        _remove(unfinished)
    return (*notes, *_loss_note(pretrained, to))


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def _loss_note(pretrained: Pretrained, to: str) -> tuple[str, ...]:
    """Returns a note if the format cannot state how logits become probabilities."""
    softmax = not pretrained.config.num_classes or pretrained.loss == "softmax_xent"
    if softmax or to in ("hf", "timm"):
        return ()
    loss = pretrained.loss or "a regression"
    if to in ("stablehlo", "onnx"):
        return (f"the head's loss is {loss}: do not take the softmax of its outputs",)
    return (
        f"the file does not state that the head's loss is {loss}: load it with "
        f"the hint loss={pretrained.loss or REGRESSION}",
    )


def _difference_note(difference: float) -> tuple[str, ...]:
    return (f"largest difference of a logit to the model: {difference:.1e}",)


__all__ = ["DTYPES", "TARGETS", "check_destination", "export"]
