"""Describes a checkpoint as text, from names and shapes: no tensor is read."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from vit_jax.config.fields import Role, declarations, has_effect
from vit_jax.models import ModelConfig, forward_flops, num_params
from vit_jax.pretrained.load import adapted, evaluated_size
from vit_jax.pretrained.mapping import map_checkpoint
from vit_jax.pretrained.model import size_text
from vit_jax.pretrained.run_checkpoint import describe_run, is_run, refuse_hints
from vit_jax.rundir import workdir as workdirs

_OWN_LINES = ("image_size", "patch_size", "num_classes")  # Fields that have lines of their own.
_SHOWN_LABELS = 5
_LOSSES = {
    "softmax_xent": "softmax",
    "sigmoid_xent": "a sigmoid each",
    "": "outputs of a regression",
}


def inspect(
    path: str,
    *,
    image_size: tuple[int, int] | None = None,
    hints: Mapping[str, Any] | None = None,
    leave_out: Collection[str] = (),
) -> str:
    """Returns a description of a checkpoint: format, model, preprocessing, labels.

    The arguments are those of `vit_jax.pretrained.load.load_pretrained`.

    Raises:
      CheckpointError: the checkpoint is damaged, or of no known format.

    Example:
      >>> print(inspect("tiny-vit").splitlines()[1])
      format         Hugging Face transformers, model_type vit
    """
    if is_run(path):
        refuse_hints(path, hints, leave_out)
        location, run, published = describe_run(path)
        lines = {
            "path": str(location.workdir),
            "format": f"work directory of vit_jax, step {location.step:,}",
        }
        names = workdirs.read_dataset(location.workdir)["class_names"]
        labels, transforms, left_out = tuple(names), run.data.eval_transforms, ()
        loss, default_size = run.loss.name, None
    else:
        mapping = map_checkpoint(path, hints=hints, leave_out=leave_out)
        description, tensors = mapping.description, mapping.files.tensors
        num_bytes = sum(math.prod(t.shape) * t.dtype.itemsize for t in tensors.values())
        dtypes = ", ".join(sorted({str(t.dtype) for t in tensors.values()}))
        lines = {
            "path": str(mapping.files.path),
            "format": ", ".join(
                filter(None, (mapping.format.name, description.kind, *description.notes))
            ),
            "assumed": description.assumption or "nothing",
            "tensors": f"{len(tensors):,}, {dtypes}, {num_bytes / 1e6:,.1f} MB",
        }
        published, labels = description.config, description.labels
        transforms, left_out = description.transforms, mapping.left_out
        loss, (default_size, _) = mapping.loss, evaluated_size(published, description.transforms)
    config = adapted(published, {"image_size": image_size or default_size})
    lines |= {
        "model": type(published).__name__.removesuffix("Config"),
        "image size": size_text(config.image_size) + _grid(config),
        "classes": f"{config.num_classes:,}, {_LOSSES[loss]}" if config.num_classes else "no head",
        "labels": _labels(labels),
        "parameters": f"{num_params(config):,}",
        "forward pass": f"{forward_flops(config) / 1e9:,.4g} GFLOPs an image",
        "architecture": describe_fields(published),
        "preprocessing": "; ".join(map(_operation, transforms)),
        "resized": _resized(published, config),
        "left out": ", ".join(left_out[:8]) + _more(len(left_out) - 8) or "nothing",
    }
    width = max(map(len, lines))
    return "\n".join(f"{key.ljust(width)}  {value}" for key, value in lines.items())


def _grid(config: Any) -> str:
    if not hasattr(config, "grid"):
        return ""
    return f", patches of {size_text(config.patch_size)}, a grid of {size_text(config.grid)}"


def _labels(labels: tuple[str, ...] | None) -> str:
    if not labels:
        return "none"
    return "; ".join(labels[:_SHOWN_LABELS]) + _more(len(labels) - _SHOWN_LABELS)


def _more(n: int) -> str:
    return f" and {n:,} more" if n > 0 else ""


def describe_fields(config: ModelConfig) -> str:
    """Lists a model's sizes, numerics and named choices, and other fields that are not defaults."""
    shown = []
    for field, declaration in declarations(config):
        name, value = field.name, getattr(config, field.name)
        is_default = value in (field.default, ()) and not declaration.choices
        if name in _OWN_LINES or declaration.role is Role.RUN or not has_effect(config, name):
            continue
        if not is_default or (declaration.role is Role.NUMERICS and value != ()):
            shown.append(f"{name} {value}")
    return ", ".join(shown)


def _operation(operation: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{k}={v}" for k, v in operation.items() if k != "op")
    return f"{operation['op']}({settings})"


def _resized(published: Any, config: Any) -> str:
    if getattr(config, "grid", None) == getattr(published, "grid", None):
        return "nothing"
    method = config.posemb_resize if config.posemb == "learned" else "recomputed"
    return (
        f"positions from {size_text(published.grid)} to {size_text(config.grid)} patches ({method})"
    )
