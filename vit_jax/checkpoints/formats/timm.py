"""PyTorch files in the names of timm: timm itself, DeiT, DeiT-III, MAE, DINOv2, DINOv3, EVA.

Facebook's own code and timm share their names (`blocks.0.attn.qkv.weight`) and differ in a few
tensors, by which they are told apart; and in how they resize positions. All have the erf GELU; the
LayerNorm epsilon is 1e-6, DINOv3's 1e-5.
"""

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoints.formats.base import Description, Foreign, Format, Hints, complete, place
from vit_jax.checkpoints.formats.entries import Entry, dense, embedding, fused, norm
from vit_jax.checkpoints.formats.names import count, renamed
from vit_jax.checkpoints.formats.resnet import TIMM, TIMM_NAMES, stem_entries, units_of
from vit_jax.checkpoints.preprocess import from_family, from_timm
from vit_jax.checkpoints.tensors import Tensors
from vit_jax.data.recipes import Transforms
from vit_jax.errors import CheckpointError
from vit_jax.models import StemConfig, VitConfig

_BACKBONE = "patch_embed.backbone."  # Of hybrids.
_B, _OURS = "blocks.{i}", "encoder/block_{i}"

# Around the names of a model in training checkpoints and larger models.
_PREFIX = re.compile(r"^(module\.|backbone\.|teacher\.|encoder\.|model\.|visual\.trunk\.)+")
# What no encoder needs: decoders and mask tokens of masked pre-training, buffers that are computed.
_UNUSED = (r"decoder_.*", r"mask_token", r"local_cls_norm\..*", r"rope_embed\.periods",
           r".*\.bias_mask", r"rope\.(bands|periods|pos_embed)", r".*\.k_bias")  # fmt: skip


def recognises(foreign: Foreign) -> bool:
    """Whether there are blocks as timm's, and an embedding of patches."""
    names = {_PREFIX.sub("", name) for name in foreign.tensors}
    return "patch_embed.proj.weight" in names and any(
        re.match(r"blocks\.(\d+\.)?0\.attn\.", name) for name in names
    )


def describe(foreign: Foreign, hints: Hints) -> Description:
    """See `Format`."""
    tensors = renamed(foreign.tensors, lambda name: _unchunked(_PREFIX.sub("", name)))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    kind = _kind(shapes, foreign)
    try:
        facts = _facts(shapes)
        facts |= _numerics(tensors, kind, gated=facts["mlp"] != "gelu")
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"{foreign.path} has the names of {kind}, but no usable {error}."
        ) from error
    facts |= _arguments(foreign.config, path=foreign.path)
    facts = hints.over(
        facts, choices=("ln_eps", "gelu", "pool", "rope", "rope_theta", "image_size")
    )
    if kind == "timm's EVA" and not _rotates(shapes, hints, foreign):
        raise CheckpointError(
            f"{foreign.path} has no position embedding (pos_embed). If it is a model of timm's "
            "with rotary positions, say so: hints={'rope': 'axial_xy'}, or --hints=rope=axial_xy. "
            "Otherwise a part of it is missing."
        )
    if facts["pool"] == "gap" and "attn_pool.latent" in shapes:
        facts["pool"] = "map"
    if facts["pool"] == "map" and facts["class_token"] + facts["registers"]:
        raise CheckpointError(
            f"{foreign.path} pools its patches alone by attention, although there are other "
            "tokens: no model here does."
        )
    facts |= _positions(shapes, facts, hints, foreign)
    if facts["posemb"] == "none" and (said := _said_size(foreign.config)):
        facts = {"image_size": said} | facts
    config = complete(facts, path=foreign.path)
    return Description(
        config,
        tensors,
        _UNUSED,
        _transforms(kind, config, foreign.config),
        _labels(foreign.config, config.num_classes),
        notes=(f"names of {kind}",),
    )


# How each publisher evaluates: families of `vit_jax.checkpoints.preprocess`.
_FAMILIES = {
    "DINOv3": "dinov3",
    "timm's EVA, with DINOv3's positions": "dinov3",
    "DINOv2": "dinov2",
    "MAE": "mae",
    "DeiT or MAE": "deit",
    "DeiT-III": "deit3",
}


def _transforms(kind: str, config: VitConfig, folder: Mapping[str, Any]) -> Transforms:
    if folder.get("pretrained_cfg"):
        return from_timm(folder["pretrained_cfg"])
    return from_family(_FAMILIES.get(kind, "timm"), image_size=config.image_size)


def _labels(folder: Mapping[str, Any], num_classes: int) -> tuple[str, ...] | None:
    """Names of classes in a config.json of timm's, if they are there."""
    names = folder.get("label_names") or (folder.get("pretrained_cfg") or {}).get("label_names")
    if not isinstance(names, list) or len(names) != num_classes:
        return None
    return tuple(map(str, names))


def _unchunked(name: str) -> str:
    """DINO's checkpoints for sharded training number blocks within chunks: blocks.0.3.norm1."""
    return re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", name)


def _kind(shapes: Mapping[str, tuple[int, ...]], foreign: Foreign) -> str:
    """Whose names these are exactly."""
    if "storage_tokens" in shapes or "rope_embed.periods" in shapes:
        return "DINOv3"
    if "register_tokens" in shapes or ("mask_token" in shapes and "blocks.0.ls1.gamma" in shapes):
        return "DINOv2"
    if "decoder_embed.weight" in shapes:
        return "MAE"
    if "pos_embed" not in shapes:
        dinov3 = {"reg_token", "blocks.0.gamma_1"} <= shapes.keys()
        return "timm's EVA, with DINOv3's positions" if dinov3 else "timm's EVA"
    if any(f"blocks.0.{name}" in shapes for name in ("attn.q_bias", "mlp.fc1_g.weight")):
        return "timm's EVA"
    if "blocks.0.gamma_1" in shapes:
        return "DeiT-III"
    # Facebook's code keeps its models under "model"; timm's under "state_dict", or bare.
    return "DeiT or MAE" if foreign.tensors.metadata.get("wrapper") == "model" else "timm"


def _facts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What the names and shapes tell."""
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
    head_pool = (
        "map" if "attn_pool.latent" in shapes else "token" if "cls_token" in shapes else "gap"
    )
    stem = None
    roots = (f"{_BACKBONE}stem.conv.weight", f"{_BACKBONE}conv.weight")
    first = next((name for name in roots if name in shapes), "")
    if first:
        root, channels = shapes[first][:2]
        stem = StemConfig(
            units=units_of(shapes, TIMM_NAMES, prefix=_BACKBONE), width_factor=root / 64, **TIMM
        )
    names = ["reg_token", "register_tokens", "storage_tokens"]
    if "head_dist.weight" not in shapes:  # A distillation token without a head is a register.
        names.append("dist_token")
    registers = next((shapes[name][-2] for name in names if name in shapes), 0)
    facts = {
        "patch_size": tuple(patch),
        "stem": stem,
        "channels": channels,
        "width": width,
        "depth": count(shapes, r"blocks\.(\d+)\."),
        "mlp_dim": hidden,
        "mlp": "swiglu" if gate or packed else "gelu",
        "mlp_norm": f"{block}.mlp.norm.weight" in shapes,
        "attn_norm": f"{block}.attn.norm.weight" in shapes,
        "num_classes": shapes["head.weight"][0] if "head.weight" in shapes else 0,
        "pool": "gap" if "fc_norm.weight" in shapes and head_pool == "token" else head_pool,
        "final_norm": "tokens" if {"norm.weight", "norm.bias"} & shapes.keys() else "pooled",
        "class_token": "cls_token" in shapes,
        "distilled": "head_dist.weight" in shapes,
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


def _numerics(tensors: Tensors, kind: str, *, gated: bool) -> dict[str, Any]:
    """What the publisher's code computes differently."""
    facts: dict[str, Any] = {"ln_eps": 1e-6, "gelu": "erf", "posemb_resize": "bicubic_antialias"}
    if kind == "DINOv2" and "register_tokens" not in tensors:
        facts["posemb_resize"] = "bicubic_offset"
    if kind in ("DeiT or MAE", "DeiT-III", "MAE"):
        facts["posemb_resize"] = "bicubic"
    if "norm_pre.weight" in tensors:  # CLIP's.
        facts["ln_eps"] = 1e-5
    if kind == "DINOv3":
        periods = tensors.read("rope_embed.periods").astype(np.float64)
        width = tensors["patch_embed.proj.weight"].shape[0]
        facts |= {
            "ln_eps": 1e-5,
            "rope": "dinov3",
            "rope_periods": tuple(periods.tolist()),
            "num_heads": width // (4 * len(periods)),
        }
        mask = "blocks.0.attn.qkv.bias_mask"
        if mask in tensors:  # The keys' third is masked, whatever is stored in the bias there.
            facts["key_bias"] = bool((np.split(tensors.read(mask), 3)[1] == 1).all())
    elif kind == "timm's EVA, with DINOv3's positions":
        facts |= {"ln_eps": 1e-5, "rope": "dinov3"}
    elif kind == "timm's EVA":
        if gated:  # EVA-02 measures its positions on the grid of its pre-training.
            facts |= {"rope": "axial_ij", "rope_theta": 1e4, "rope_grid": (16, 16)}
        elif "pos_embed" not in tensors:  # RoPE-ViT takes them as they are; EVA has none.
            facts |= {"rope": "axial_xy", "rope_theta": 100.0}
    return facts


def _rotates(shapes: Mapping[str, Any], hints: Hints, foreign: Foreign) -> bool:
    """Whether a model without a position embedding has rotary positions instead.

    RoPE-ViT's files show it by nothing but their layer scale; DeiT-III's have that, too, but as
    Facebook keeps them, under "model".
    """
    said = "rope" in str(foreign.config.get("architecture"))
    hinted = hints.get("rope") or hints.get("rope_theta")
    facebook = foreign.tensors.metadata.get("wrapper") == "model"
    rope_vit = "blocks.0.gamma_1" in shapes and not facebook
    return "pos_embed" in shapes or said or bool(hinted) or rope_vit


# Entry points of timm whose GELU is the tanh one, and those whose rotary positions stand beside a
# table; what names and shapes of a bare file do not tell.
_TANH = re.compile(
    r"vit_(base_patch32|so400m_patch16|giantopt_patch16)_siglip|vit_large_patch16_siglip(_gap)?_512"
)
_ROPE_AND_TABLE = re.compile(r"vit_\w+_rope_ape_")


def _arguments(config: Mapping[str, Any], *, path: pathlib.Path) -> dict[str, Any]:
    """What a config.json of timm on the Hugging Face hub tells: its entry point and arguments.

    Raises:
      CheckpointError: it is of a model that is not one of ours.
    """
    architecture, arguments = str(config.get("architecture", "")), config.get("model_args") or {}
    facts: dict[str, Any] = {}
    if "num_heads" in arguments:
        facts["num_heads"] = arguments["num_heads"]
    if "quickgelu" in architecture or arguments.get("act_layer") == "quick_gelu":
        raise CheckpointError(f"{path} is {architecture}: its quick GELU is in no model here.")
    if (activation := arguments.get("act_layer")) not in (None, "gelu", "gelu_tanh", "silu"):
        raise CheckpointError(f"{path} has the activation {activation}, which no model here has.")
    if _TANH.match(architecture) or activation == "gelu_tanh":
        facts["gelu"] = "tanh"
    pool = arguments.get("global_pool") or config.get("global_pool") or "token"
    if pool not in ("token", "avg", "map"):
        raise CheckpointError(f"{path} pools by {pool}, which no model here does.")
    if pool == "avg":  # The others show in its tensors.
        facts["pool"] = "gap"
    if _ROPE_AND_TABLE.match(architecture):
        facts |= {"rope": "axial_xy", "rope_theta": 100.0}
    return facts


def _positions(shapes, facts: dict[str, Any], hints: Hints, foreign: Foreign) -> dict[str, Any]:
    if "pos_embed" not in shapes:
        return {"posemb": "none"}
    prefix = facts["class_token"] + facts["distilled"]
    prefixes = {"none": 0, "class": prefix, "all": prefix + facts["registers"]}
    if not facts["registers"]:
        del prefixes["all"]
    elif "register_tokens" in shapes:  # DINOv2's own have no row, its class token has one.
        del prefixes["all"], prefixes["none"]
    stride = facts["stem"].stride if facts["stem"] else 1
    pixels = (facts["patch_size"][0] * stride, facts["patch_size"][1] * stride)
    rows, size = shapes["pos_embed"][-2], hints.get("image_size")
    if size is None and (said := _said_size(foreign.config)):
        # It may be a size that patches do not fill, which timm cuts off.
        grid = [side / patch for side, patch in zip(said, pixels, strict=True)]
        size = said if math.prod(grid) in {rows - n for n in prefixes.values()} else None
    return {"posemb": "learned"} | place(
        rows, prefixes, patch_size=pixels, image_size=size, path=foreign.path
    )


def _said_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width in a config.json of timm's, if they are there."""
    size = (config.get("model_args") or {}).get("img_size")
    size = size or ((config.get("pretrained_cfg") or {}).get("input_size") or [None])[1:]
    sides = tuple(size) if isinstance(size, list) else (size, size)
    return sides if len(sides) == 2 and all(type(side) is int for side in sides) else None


def entries(config: VitConfig) -> tuple[Entry, ...]:
    """See `Format`."""
    stem = config.stem
    # A root alone is not called a stem.
    names = (
        TIMM_NAMES if stem and stem.units else TIMM_NAMES._replace(root="conv", root_norm="norm")
    )
    body = stem_entries(stem, names, ours="stem/", theirs=_BACKBONE) if stem else ()
    return (*_COMMON, *(_PACKED if config.mlp != "gelu" else ()), *_PLAIN_MLP, *body)


_QKV = ("query", "key", "value")
_COMMON = (
    Entry("cls", "cls_token"),
    Entry("dist", "dist_token"),
    *(
        Entry("registers", name)
        for name in ("reg_token", "register_tokens", "storage_tokens", "dist_token")
    ),
    Entry("pos_embedding", "pos_embed"),
    *embedding("patch_embed.proj"),
    *norm("encoder/pre_norm", "norm_pre"),
    *norm("encoder/norm", "norm"),
    *norm("norm", "fc_norm"),
    *dense("head", "head"),
    *dense("head_dist", "head_dist"),
    *norm(f"{_OURS}/norm1", f"{_B}.norm1"),
    *fused(f"{_OURS}/attn", f"{_B}.attn.qkv", names=_QKV),
    # EVA: the bias of queries and values apart; or all projections apart.
    Entry(f"{_OURS}/attn/query/bias", f"{_B}.attn.q_bias", "flat"),
    Entry(f"{_OURS}/attn/value/bias", f"{_B}.attn.v_bias", "flat"),
    *(
        entry
        for name in _QKV
        for entry in dense(f"{_OURS}/attn/{name}", f"{_B}.attn.{name[0]}_proj", "heads_in")
    ),
    *norm(f"{_OURS}/attn/query_norm", f"{_B}.attn.q_norm"),
    *norm(f"{_OURS}/attn/key_norm", f"{_B}.attn.k_norm"),
    *norm(f"{_OURS}/attn/norm", f"{_B}.attn.norm"),
    *dense(f"{_OURS}/attn/out", f"{_B}.attn.proj", "heads_out"),
    *norm(f"{_OURS}/norm2", f"{_B}.norm2"),
    *(
        Entry(f"{_OURS}/scale{k}", f"{_B}.{name}")
        for k in (1, 2)
        for name in (f"ls{k}.gamma", f"gamma_{k}")
    ),
    *norm(f"{_OURS}/mlp/norm", f"{_B}.mlp.norm"),
    Entry("map_head/probe", "attn_pool.latent"),
    *dense("map_head/attn/query", "attn_pool.q", "heads_in"),
    *fused("map_head/attn", "attn_pool.kv", names=("key", "value")),
    *dense("map_head/attn/out", "attn_pool.proj", "heads_out"),
    *norm("map_head/norm", "attn_pool.norm"),
    *dense("map_head/mlp/fc1", "attn_pool.mlp.fc1"),
    *dense("map_head/mlp/fc2", "attn_pool.mlp.fc2"),
)
# A gate: EVA's, DINOv3's, DINOv2's; timm packs gate and hidden units into fc1.
_PACKED = (
    *dense(f"{_OURS}/mlp/gate", f"{_B}.mlp.fc1_g"),
    *dense(f"{_OURS}/mlp/fc1", f"{_B}.mlp.fc1_x"),
    *dense(f"{_OURS}/mlp/gate", f"{_B}.mlp.w1"),
    *dense(f"{_OURS}/mlp/fc1", f"{_B}.mlp.w2"),
    *dense(f"{_OURS}/mlp/gate", f"{_B}.mlp.w12", part=(0, 2)),
    *dense(f"{_OURS}/mlp/fc1", f"{_B}.mlp.w12", part=(1, 2)),
    *dense(f"{_OURS}/mlp/gate", f"{_B}.mlp.fc1", part=(0, 2)),
    *dense(f"{_OURS}/mlp/fc1", f"{_B}.mlp.fc1", part=(1, 2)),
    *dense(f"{_OURS}/mlp/fc2", f"{_B}.mlp.w3"),
)
_PLAIN_MLP = (
    *dense(f"{_OURS}/mlp/fc1", f"{_B}.mlp.fc1"),
    *dense(f"{_OURS}/mlp/fc2", f"{_B}.mlp.fc2"),
)

FORMAT = Format("timm", recognises, describe, entries)
