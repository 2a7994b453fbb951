"""Fields that tensors in timm's names determine, and conventions of published models with them.

No tensor shows an activation, an epsilon, rotary positions or the pooling. Where all published
models with the same names agree, their values are conventions; where they differ, a hint is
required.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.models import StemConfig
from vit_jax.pretrained.formats.base import CheckpointFiles
from vit_jax.pretrained.formats.hints import Hints
from vit_jax.pretrained.formats.names import count
from vit_jax.pretrained.formats.resnet import TIMM, TIMM_NAMES, units_of
from vit_jax.pretrained.tensors import Tensors

BACKBONE = "patch_embed.backbone."  # Prefix of a hybrid's stem.
EVA, DINOV3_IN_TIMM = "timm's EVA", "timm's EVA, with DINOv3's positions"

# Result of `kind_of` -> family of `vit_jax.pretrained.preprocess.from_family`.
_FAMILIES = {
    "DINOv3": "dinov3",
    DINOV3_IN_TIMM: "dinov3",
    "DINOv2": "dinov2",
    "MAE": "mae",
    "DeiT or MAE": "deit",
    "DeiT-III": "deit3",
}


def kind_of(shapes: Mapping[str, tuple[int, ...]], files: CheckpointFiles) -> str:
    """Returns the code base whose tensor names these are."""
    if "storage_tokens" in shapes or "rope_embed.periods" in shapes:
        return "DINOv3"
    if "register_tokens" in shapes or ("mask_token" in shapes and "blocks.0.ls1.gamma" in shapes):
        return "DINOv2"
    if "decoder_embed.weight" in shapes:
        return "MAE"
    scaled = "blocks.0.gamma_1" in shapes
    if "pos_embed" not in shapes and {"reg_token", "cls_token"} <= shapes.keys() and scaled:
        return DINOV3_IN_TIMM
    if any(f"blocks.0.attn.{name}" in shapes for name in ("q_bias", "q_proj.weight")):
        return EVA
    if scaled:
        return "DeiT-III" if "pos_embed" in shapes else EVA
    # Facebook's code saves models under "model"; timm under "state_dict", or at the top level.
    return "DeiT or MAE" if files.tensors.metadata.get("wrapper") == "model" else "timm"


def facts_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Returns the fields that names and shapes determine."""
    width, channels, *patch = shapes["patch_embed.proj.weight"]
    block = "blocks.0"
    gate = next(
        (g for g in ("mlp.fc1_g", "mlp.w12", "mlp.w1") if f"{block}.{g}.weight" in shapes), ""
    )
    hidden = shapes[f"{block}.mlp.{'w3' if gate in ('mlp.w12', 'mlp.w1') else 'fc2'}.weight"][1]
    packed = not gate and shapes[f"{block}.mlp.fc1.weight"][0] == 2 * hidden
    qkv_bias = any(
        f"{block}.attn.{name}" in shapes for name in ("qkv.bias", "q_bias", "q_proj.bias")
    )
    stem = None
    roots = (f"{BACKBONE}stem.conv.weight", f"{BACKBONE}conv.weight")
    first = next((name for name in roots if name in shapes), "")
    if first:
        root, channels = shapes[first][:2]
        stem = StemConfig(
            units=units_of(shapes, TIMM_NAMES, prefix=BACKBONE), width_factor=root / 64, **TIMM
        )
    distilled = "head_dist.weight" in shapes
    names = ["reg_token", "register_tokens", "storage_tokens"]
    # A distillation token without a head is a register. timm's distilled class ignores reg_token.
    if "dist_token" in shapes:
        names = [] if distilled else ["dist_token"]
    registers = next((shapes[name][-2] for name in names if name in shapes), 0)
    norm_tokens = {"norm.weight", "norm.bias"} & shapes.keys()
    norm_pooled = {"fc_norm.weight", "fc_norm.bias"} & shapes.keys() and not distilled
    facts = {
        "patch_size": tuple(patch),
        "stem": stem,
        "channels": channels,
        "width": width,
        "depth": count(shapes, r"blocks\.(\d+)\."),
        "mlp_dim": hidden,
        "gated": bool(gate or packed),
        "mlp_norm": f"{block}.mlp.norm.weight" in shapes,
        "attn_norm": f"{block}.attn.norm.weight" in shapes,
        "num_classes": shapes["head.weight"][0] if "head.weight" in shapes else 0,
        "rep_size": 0,
        "posemb": "learned" if "pos_embed" in shapes else "none",
        "final_norm": "tokens" if norm_tokens else "pooled" if norm_pooled else "none",
        "class_token": "cls_token" in shapes,
        "distilled": distilled,
        "registers": registers,
        "patch_bias": "patch_embed.proj.bias" in shapes,
        "pre_norm": "norm_pre.weight" in shapes,
        "qkv_bias": qkv_bias,
        "key_bias": qkv_bias and f"{block}.attn.q_bias" not in shapes,
        "qk_norm": f"{block}.attn.q_norm.weight" in shapes,
        "qk_norm_bias": f"{block}.attn.q_norm.bias" in shapes,
        "layer_scale": 1e-5 * any(f"{block}.{n}" in shapes for n in ("ls1.gamma", "gamma_1")),
    }  # fmt: skip
    if f"{block}.attn.q_proj.weight" in shapes:
        facts["key_bias"] = f"{block}.attn.k_proj.bias" in shapes
    if facts["qk_norm"]:
        facts["num_heads"] = width // shapes[f"{block}.attn.q_norm.weight"][0]
    return facts


def native_dinov3(tensors: Tensors) -> dict[str, Any]:
    """Returns the fields that DINOv3's original files store: rotary periods and bias masks."""
    periods = tensors.read("rope_embed.periods").astype(np.float64)
    width = tensors["patch_embed.proj.weight"].shape[0]
    facts = {
        "rope": "dinov3",
        "rope_theta": 100.0,  # Has no effect, because rope_periods is set.
        "rope_periods": tuple(periods.tolist()),
        "num_heads": width // (4 * len(periods)),
    }
    mask = "blocks.0.attn.qkv.bias_mask"
    if mask in tensors:  # The second third masks the bias of the keys, whatever its values.
        facts["key_bias"] = bool((np.split(tensors.read(mask), 3)[1] == 1).all())
    return facts


def conventions_of(shapes, kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that no tensor shows, as in the publisher's code."""
    resize = "bicubic_antialias"
    if kind == "DINOv2" and "register_tokens" not in shapes:
        resize = "bicubic_offset"
    elif kind in ("DeiT or MAE", "DeiT-III", "MAE"):
        resize = "bicubic"
    # CLIP's models, which have a norm before the blocks, and DINOv3 have a larger epsilon.
    large_eps = kind in ("DINOv3", DINOV3_IN_TIMM) or "norm_pre.weight" in shapes
    pools_token = facts["class_token"] and facts["final_norm"] != "pooled"
    return {
        "num_heads": None,
        "ln_eps": 1e-5 if large_eps else 1e-6,
        "gelu": "erf",
        "pool": "token" if pools_token else "gap",
        "posemb_resize": resize,
        "preprocessing": _FAMILIES.get(kind, "timm"),
    }


# Kind of rotary positions -> theta if the file does not state it.
_THETA = {"axial_ij": 1e4, "axial_xy": 1e4, "dinov3": 100.0}


def rope_of(shapes, hints: Hints, *, gated: bool, files: CheckpointFiles) -> dict[str, Any]:
    """Returns the fields of rotary positions, which no tensor shows, by hint or convention.

    Raises:
      CheckpointError: published models with these names differ, and there is no hint.
    """
    published, hinted = _published_rope(shapes, gated=gated, files=files), hints.get("rope")
    if published is None and hinted is None:
        lacks = "pos_embed" not in shapes
        reason = "has no position embedding (pos_embed)" if lacks else "fits two of timm's classes"
        otherwise = " Otherwise a part of it is missing." if lacks else ""
        raise CheckpointError(
            f"{files.path} {reason}. If the model has rotary positions, give a hint: "
            "hints={'rope': 'axial_xy'} (or axial_ij, dinov3), or --hints=rope=axial_xy; if it has "
            f"none, rope=none.{otherwise}"
        )
    if published is not None and hinted in (None, published["rope"]):
        return published
    is_rope_vit = hinted == "axial_xy" and "blocks.0.gamma_1" in shapes
    fields = {"rope": hinted}
    if hinted == "none":
        return fields
    fields["rope_theta"] = 100.0 if is_rope_vit else _THETA.get(hinted, 1e4)
    return fields if hinted == "dinov3" else fields | {"rope_grid": (0, 0)}


def _published_rope(shapes, *, gated: bool, files: CheckpointFiles) -> dict[str, Any] | None:
    """Returns the rotary positions of published models with these names; None if they differ."""
    eva02 = {"rope": "axial_ij", "rope_theta": 1e4, "rope_grid": (16, 16)}
    attention = {name for name in ("qkv.bias", "q_bias") if f"blocks.0.attn.{name}" in shapes}
    separate = "blocks.0.attn.q_proj.weight" in shapes  # Only EVA has this, or q_bias.
    scaled = "blocks.0.gamma_1" in shapes
    if "pos_embed" in shapes:
        if separate or "q_bias" in attention:
            if scaled or (separate and not gated):
                return None
            return eva02 if gated else {"rope": "none"}
        is_vision_transformer = "blocks.0.ls1.gamma" in shapes or "qkv.bias" in attention
        return {"rope": "none"} if is_vision_transformer or not (gated or scaled) else None
    if not scaled or files.tensors.metadata.get("wrapper") == "model":
        return None
    if "reg_token" in shapes:
        return {"rope": "dinov3", "rope_theta": 100.0} if "cls_token" in shapes else eva02
    rope_vit = {"rope": "axial_xy", "rope_theta": 100.0, "rope_grid": (0, 0)}
    return rope_vit if "cls_token" in shapes else None
