"""Exports for timm: a folder with config.json for `timm.create_model("local-dir:...")`."""

import json
import pathlib
from typing import Any

from vit_jax.models import VitConfig
from vit_jax.pretrained.exports.base import (
    ANYTHING,
    BOTH,
    Reasons,
    Values,
    compare,
    export_tensors,
    no_export,
    with_learned_positions,
    without_class_row,
)
from vit_jax.pretrained.exports.huggingface import problem_type, write_shards
from vit_jax.pretrained.exports.preprocessing import sixteen_bits, to_timm
from vit_jax.pretrained.formats.entries import Entry, dense
from vit_jax.pretrained.formats.timm import entries
from vit_jax.pretrained.model import Pretrained

_BLOCK = "encoder/block_{i}"

# Fields and values that timm's VisionTransformer and Eva can express, besides the defaults. The
# epsilon of a norm is that of the entry point below.
_VIT: dict[str, Values] = {
    "pool": ("token", "gap", "map", "map_patches"),
    "final_norm": ("tokens", "pooled"),
    "class_token": BOTH,
    "mlp": ("gelu", "silu", "swiglu"),
    "qk_norm": BOTH,
    "qkv_bias": BOTH,
    "gelu": ANYTHING,
    "posemb_resize": ("bicubic_antialias",),
}
_EVA: dict[str, Values] = {
    "pool": ("token", "gap"),
    "final_norm": ("tokens", "pooled"),
    "class_token": BOTH,
    "posemb": ("none",),
    "gelu": ("erf",),
}
# (width, depth, mlp_dim, num_heads) -> entry points of that size, for patches and images of the
# pixels in their names.
_SIZES: dict[tuple[int, int, int, int], tuple[str, ...]] = {
    (192, 12, 768, 3): (
        "vit_tiny_patch16_224", "vit_tiny_patch16_384", "deit_tiny_distilled_patch16_224",
    ),
    (384, 12, 1536, 6): (
        "vit_small_patch32_224", "vit_small_patch32_384", "vit_small_patch16_224",
        "vit_small_patch16_384", "vit_small_patch8_224", "deit_small_distilled_patch16_224",
    ),
    (768, 12, 3072, 12): (
        "vit_base_patch32_224", "vit_base_patch32_384", "vit_base_patch16_224",
        "vit_base_patch16_384", "vit_base_patch8_224", "deit_base_distilled_patch16_224",
        "deit_base_distilled_patch16_384",
    ),
    (1024, 24, 4096, 16): (
        "vit_large_patch32_224", "vit_large_patch32_384", "vit_large_patch16_224",
        "vit_large_patch16_384", "vit_large_patch14_224",
    ),
    (1280, 32, 5120, 16): ("vit_huge_patch14_224",),
}  # fmt: skip


def write(
    pretrained: Pretrained, folder: pathlib.Path, *, dtype: str, change_numerics: bool
) -> tuple[str, ...]:
    """Writes a folder in timm's form on the Hugging Face hub.

    Returns:
      Notes: what timm computes slightly differently, and other remarks.

    Raises:
      CheckpointError: no entry point of timm can express the model.
    """
    if not isinstance(pretrained.config, VitConfig):
        raise no_export(pretrained.config, to="timm")
    params, config = with_learned_positions(pretrained.params, pretrained.config)
    if config.registers:  # As in timm's conversion of DINOv2.
        params, config = without_class_row(params, config)
    architecture, expressible, arguments = _entry_point(config)
    expressible |= {"layer_scale": ANYTHING, "registers": expressible.get("registers", ANYTHING)}
    preprocessing, reasons = to_timm(pretrained.preprocess)
    reasons += compare(config, expressible, to="timm") + _rotary_base(config)
    reasons += sixteen_bits("timm")
    reasons.check(pretrained, to="timm", change_numerics=change_numerics)
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
    if config.num_classes:  # A key of transformers' wrapper of timm.
        content["problem_type"] = problem_type(pretrained.loss)
    if pretrained.labels:
        content["label_names"] = list(pretrained.labels)
    (folder / "config.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return reasons.accepted


def _entry_point(config: VitConfig) -> tuple[str, dict[str, Values], dict[str, Any]]:
    """Returns the closest entry point of timm, what it can express, and its arguments."""
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
        expressible = _EVA | {
            "rope": ("dinov3",), "ln_eps": (1e-5,), "mlp": ("gelu", "swiglu"), "qkv_bias": BOTH,
            "key_bias": (False,),
        }  # fmt: skip
        name = f"vit_{size}_patch16_dinov3{'_qkvb' if config.qkv_bias else ''}"
        return name, expressible, arguments
    if config.rope == "axial_xy":
        arguments |= {"use_fc_norm": pooled, "rope_temperature": config.rope_theta}
        expressible = _EVA | {"rope": ("axial_xy",), "rope_theta": ANYTHING}
        return "vit_small_patch16_rope_224", expressible, arguments
    if config.mlp == "swiglu":  # timm packs gate and hidden units, and counts both.
        arguments["mlp_ratio"] *= 2
    arguments |= {
        "fc_norm": pooled,
        "reg_tokens": config.registers,
        "no_embed_class": config.num_prefix > 0 and config.posemb_rows == 0,
        "qk_norm": config.qk_norm,
        "act_layer": activation,
    }  # fmt: skip
    expressible: dict[str, Values] = _VIT | {
        "posemb_prefix": ("all", "none") if config.registers else ("all", "class", "none"),
        "qk_norm_bias": (True,),
    }
    if config.distilled:
        expressible |= {"distilled": (True,)}
        return _name(config, "deit_base_distilled_patch16_224"), expressible, arguments
    if config.pool == "map":  # timm's attention pooling ignores class token and registers.
        expressible |= {"class_token": (False,), "registers": (0,)}
    # Of the entry points, vit_giant_patch14_dinov2 has a gated MLP; `arguments` override its sizes.
    if config.mlp == "swiglu":
        return "vit_giant_patch14_dinov2", expressible, arguments
    return _name(config, "vit_base_patch16_224"), expressible, arguments


def _rotary_base(config: VitConfig) -> Reasons:
    """Returns the reason why timm has no such rotary positions of DINOv3."""
    # Also beside stored periods, which timm computes from it.
    if config.rope != "dinov3" or config.rope_theta == 100:
        return Reasons()
    return Reasons(
        impossible=(f"model.rope_theta is {config.rope_theta:g}; timm's DINOv3 has only 100",)
    )


def _name(config: VitConfig, default: str) -> str:
    """Returns the entry point of exactly a model's size, and of its image size if there is one.

    Args:
      config: of the model.
      default: the entry point if there is none; the exported arguments override its sizes.
    """
    family, (patch, other) = default.partition("_")[0], config.patch_size
    names = _SIZES.get((config.width, config.depth, config.mlp_dim, config.num_heads), ())
    names = [name for name in names if name.startswith(f"{family}_") and patch == other]
    for side in (config.image_size[0], 224):
        for name in names:
            if name.endswith(f"_patch{patch}_{side}"):
                return name
    return default


def _side(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def _entries(config: VitConfig) -> tuple[Entry, ...]:
    """Returns the entries of timm's format, those with the names of the exported class first."""
    eva = config.rope != "none"
    preferred: list[Entry] = []
    if eva:
        preferred += [Entry(f"{_BLOCK}/scale{k}", f"blocks.{{i}}.gamma_{k}") for k in (1, 2)]
    if eva and config.qkv_bias and not config.key_bias:
        preferred += [
            Entry(f"{_BLOCK}/attn/{name}/bias", f"blocks.{{i}}.attn.{name[0]}_bias", "flat")
            for name in ("query", "value")
        ]
    if config.mlp == "swiglu" and not eva:
        for k, name in enumerate(("gate", "fc1")):
            preferred += dense(f"{_BLOCK}/mlp/{name}", "blocks.{i}.mlp.fc1", part=(k, 2))
    if config.mlp == "swiglu":
        preferred += dense(f"{_BLOCK}/mlp/fc2", "blocks.{i}.mlp.fc2")
    return (*preferred, *entries(config))
