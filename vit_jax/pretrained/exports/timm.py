"""Exports for timm: a folder with config.json that `timm.create_model("local-dir:...")` reads."""

import json
import pathlib
from collections.abc import Container
from typing import Any

from vit_jax.errors import CheckpointError
from vit_jax.models import VitConfig
from vit_jax.pretrained.exports.base import (
    ANYTHING,
    BOTH,
    compare,
    export_tensors,
    with_learned_positions,
    without_class_row,
)
from vit_jax.pretrained.exports.huggingface import problem_type, write_shards
from vit_jax.pretrained.exports.preprocessing import to_timm
from vit_jax.pretrained.formats.entries import Entry, dense
from vit_jax.pretrained.formats.timm import entries
from vit_jax.pretrained.load import Pretrained

_BLOCK = "encoder/block_{i}"

# What timm's VisionTransformer and Eva can say beside the defaults. Their epsilons are those of
# the entry points below.
_VIT: dict[str, Container[Any]] = {
    "pool": ("token", "gap", "map", "map_patches"),
    "final_norm": ("tokens", "pooled"),
    "class_token": BOTH,
    "mlp": ("gelu", "silu", "swiglu"),
    "qk_norm": BOTH,
    "qkv_bias": BOTH,
    "gelu": ANYTHING,
    "posemb_resize": ("bicubic_antialias",),
}
_EVA: dict[str, Container[Any]] = {
    "pool": ("token", "gap"),
    "final_norm": ("tokens", "pooled"),
    "class_token": BOTH,
    "posemb": ("none",),
    "gelu": ("erf",),
}


def write(
    pretrained: Pretrained, folder: pathlib.Path, *, dtype: str, change_numerics: bool
) -> tuple[str, ...]:
    """Writes a folder in the form of timm's on the Hugging Face hub.

    Returns:
      What timm computes a little differently, and other notes.

    Raises:
      CheckpointError: no entry point of timm can express the model.
    """
    if not isinstance(pretrained.config, VitConfig):
        raise CheckpointError(f"A {type(pretrained.config).__name__} is not exported --to=timm.")
    params, config = with_learned_positions(pretrained.params, pretrained.config)
    if config.registers:  # As timm's own conversion of DINOv2 does.
        params, config = without_class_row(params, config)
    architecture, expressible, arguments = _entry_point(config)
    expressible |= {"layer_scale": ANYTHING, "registers": expressible.get("registers", ANYTHING)}
    preprocessing, reasons = to_timm(pretrained.preprocess)
    reasons += compare(config, expressible, to="timm")
    reasons.check(to="timm", change_numerics=change_numerics)
    folder.mkdir(parents=True, exist_ok=True)
    write_shards(export_tensors(params, config, _entries(config), dtype=dtype, to="timm"), folder)
    content: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": config.num_classes,
        "num_features": config.width,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": {
            **preprocessing,
            "num_classes": config.num_classes,
            "fixed_input_size": True,
            "pool_size": None,
        },
    }
    if config.num_classes:  # Not timm's, but of transformers' wrapper of timm.
        content["problem_type"] = problem_type(pretrained.loss)
    if pretrained.labels:
        content["label_names"] = list(pretrained.labels)
    (folder / "config.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return reasons.approximate + reasons.notes


def _entry_point(config: VitConfig) -> tuple[str, dict[str, Container[Any]], dict[str, Any]]:
    """The function of timm's that comes nearest, what it can express, and its arguments."""
    arguments: dict[str, Any] = {
        "img_size": _side(config.image_size),
        "patch_size": _side(config.patch_size),
        "in_chans": config.channels,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": config.mlp_dim / config.width,
        "global_pool": {"gap": "avg", "map_patches": "map"}.get(config.pool, config.pool),
        "class_token": config.has_class_token,
        "qkv_bias": config.qkv_bias,
        "init_values": config.layer_scale or None,
    }
    pooled = config.final_norm == "pooled"
    gelu = {"tanh": "gelu_tanh", "erf": "gelu"}[config.gelu]
    activation = "silu" if config.mlp in ("silu", "swiglu") else gelu
    if config.rope == "dinov3":
        arguments |= {"num_reg_tokens": config.registers, "use_fc_norm": pooled}
        size = "huge_plus" if config.mlp == "swiglu" else "small"
        can = _EVA | {"rope": ("dinov3",), "ln_eps": (1e-5,), "mlp": ("gelu", "swiglu"),
                      "qkv_bias": BOTH, "key_bias": (False,)}  # fmt: skip
        return f"vit_{size}_patch16_dinov3{'_qkvb' if config.qkv_bias else ''}", can, arguments
    if config.rope == "axial_xy":
        arguments |= {
            "use_fc_norm": config.final_norm == "pooled",
            "rope_temperature": config.rope_theta,
        }
        can = _EVA | {"rope": ("axial_xy",), "rope_theta": ANYTHING}
        return "vit_small_patch16_rope_224", can, arguments
    if config.mlp == "swiglu":  # The packed kind's hidden units count twice.
        arguments["mlp_ratio"] *= 2
    arguments |= {
        "fc_norm": pooled,
        "reg_tokens": config.registers,
        "no_embed_class": config.num_prefix > 0 and config.posemb_rows == 0,
        "qk_norm": config.qk_norm,
        "act_layer": activation,
    }  # fmt: skip
    can = _VIT | {
        "posemb_prefix": ("all", "none") if config.registers else ("all", "class", "none"),
        "qk_norm_bias": (True,),
    }
    if config.distilled:
        return "deit_base_distilled_patch16_224", can | {"distilled": (True,)}, arguments
    if config.pool == "map":  # Its attention would pool the patches alone.
        can |= {"class_token": (False,), "registers": (0,)}
    gated = "vit_giant_patch14_dinov2"  # The one whose MLP is gated; its numbers are overridden.
    return gated if config.mlp == "swiglu" else "vit_base_patch16_224", can, arguments


def _side(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def _entries(config: VitConfig) -> tuple[Entry, ...]:
    """The names that timm writes: of the alternatives that are read, those of its own class."""
    eva = config.rope != "none"
    first: list[Entry] = []
    if eva:
        first += [Entry(f"{_BLOCK}/scale{k}", f"blocks.{{i}}.gamma_{k}") for k in (1, 2)]
    if eva and config.qkv_bias and not config.key_bias:
        first += [
            Entry(f"{_BLOCK}/attn/{name}/bias", f"blocks.{{i}}.attn.{name[0]}_bias", "flat")
            for name in ("query", "value")
        ]
    if config.mlp == "swiglu" and not eva:
        for k, name in enumerate(("gate", "fc1")):
            first += dense(f"{_BLOCK}/mlp/{name}", "blocks.{i}.mlp.fc1", part=(k, 2))
    if config.mlp == "swiglu":
        first += dense(f"{_BLOCK}/mlp/fc2", "blocks.{i}.mlp.fc2")
    return (*first, *entries(config))
