"""PyTorch files of torchvision's VisionTransformer: erf GELU, LayerNorm epsilon 1e-6."""

from typing import Any

from vit_jax.errors import CheckpointError
from vit_jax.models import VitConfig
from vit_jax.pretrained.formats.base import (
    CheckpointFiles,
    Description,
    Format,
    complete_config,
    infer_image_size,
)
from vit_jax.pretrained.formats.entries import Entry, dense, norm
from vit_jax.pretrained.formats.hints import Hints
from vit_jax.pretrained.formats.names import count
from vit_jax.pretrained.preprocess import from_family

_B, _OURS = "encoder.layers.encoder_layer_{i}", "encoder/block_{i}"


def recognises(files: CheckpointFiles) -> bool:
    """Returns whether there is a layer in torchvision's names."""
    return any("encoder_layer_0.self_attention.in_proj_weight" in name for name in files.tensors)


def describe(files: CheckpointFiles, hints: Hints) -> Description:
    """See `Format`."""
    tensors = files.tensors
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    try:
        width, channels, *patch = shapes["conv_proj.weight"]
        layer = _B.format(i=0)
        facts: dict[str, Any] = {
            "patch_size": tuple(patch),
            "channels": channels,
            "width": width,
            "depth": count(shapes, r"encoder\.layers\.encoder_layer_(\d+)\."),
            "mlp_dim": next(
                shapes[f"{layer}.mlp.{name}.weight"][0]
                for name in ("0", "linear_1")
                if f"{layer}.mlp.{name}.weight" in shapes
            ),
            "num_classes": shapes["heads.head.weight"][0] if "heads.head.weight" in shapes else 0,
            "rep_size": (
                shapes["heads.pre_logits.weight"][0] if "heads.pre_logits.weight" in shapes else 0
            ),
            "pool": "token",
            "posemb": "learned",
            "rope": "none",
        }
        rows = shapes["encoder.pos_embedding"][1]
    except (KeyError, IndexError, ValueError, StopIteration) as error:
        raise CheckpointError(
            f"{files.path} has the names of torchvision, but no usable {error}."
        ) from error
    conventions = {
        "num_heads": None,
        "ln_eps": 1e-6,
        "gelu": "erf",
        "mlp": "gelu",
        "posemb_resize": "bicubic_corners",
        "preprocessing": "torchvision",
    }
    facts, assumed = hints.merge(facts, conventions)
    facts |= infer_image_size(
        rows,
        {"class": 1},
        patch_size=facts["patch_size"],
        image_size=hints.get("image_size"),
        path=files.path,
    )
    if not hints.get("image_size"):
        assumed["image_size"] = facts["image_size"]
    family = facts.pop("preprocessing")
    config, assumed = complete_config(facts, assumed, hints, path=files.path)
    transforms = from_family(family, image_size=config.image_size)
    return Description(config, tensors, (), transforms, assumed=assumed)


def entries(config: VitConfig) -> tuple[Entry, ...]:
    """See `Format`."""
    del config  # All sizes have the same names.
    return _ENTRIES


_ENTRIES = (
    Entry("cls", "class_token"),
    Entry("pos_embedding", "encoder.pos_embedding"),
    Entry("embedding/kernel", "conv_proj.weight", "conv"),
    Entry("embedding/bias", "conv_proj.bias"),
    *norm("encoder/norm", "encoder.ln"),
    *dense("pre_logits", "heads.pre_logits"),
    *dense("head", "heads.head"),
    *norm(f"{_OURS}/norm1", f"{_B}.ln_1"),
    *(
        Entry(
            f"{_OURS}/attn/{name}/{ours}", f"{_B}.self_attention.in_proj_{theirs}", layout, (k, 3)
        )
        for k, name in enumerate(("query", "key", "value"))
        for ours, theirs, layout in (("kernel", "weight", "heads_in"), ("bias", "bias", "flat"))
    ),
    *dense(f"{_OURS}/attn/out", f"{_B}.self_attention.out_proj", "heads_out"),
    *norm(f"{_OURS}/norm2", f"{_B}.ln_2"),
    *dense(f"{_OURS}/mlp/fc1", f"{_B}.mlp.0"),
    *dense(f"{_OURS}/mlp/fc2", f"{_B}.mlp.3"),
    # Names in torchvision's first release with ViTs.
    *dense(f"{_OURS}/mlp/fc1", f"{_B}.mlp.linear_1"),
    *dense(f"{_OURS}/mlp/fc2", f"{_B}.mlp.linear_2"),
)

FORMAT = Format("torchvision", recognises, describe, entries)
