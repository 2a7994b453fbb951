"""config.json of timm on the Hugging Face hub: an entry point and its arguments.

They determine what the tensors do not show: activations, pooling, epsilons, rotary positions. An
unknown argument that could change outputs is an error.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from vit_jax.errors import CheckpointError

_EVA02 = {"use_rot_pos_emb": True, "ref_feat_shape": (16, 16)}
_XY = {"use_rot_pos_emb": True, "rope_grid_indexing": "xy"}
# Pattern of entry points' names -> the arguments that they set themselves and that tensors do not
# show. "ln_eps" stands for norm_layer=partial(LayerNorm, eps=...), "posemb_resize" for their
# checkpoint filter functions.
# Source: timm 1.0.31, models/{vision_transformer,deit,eva}.py.
_ENTRY_POINTS: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"vit_.*_clip_.*|beit3_.*", {"ln_eps": 1e-5}),
    (r".*_quickgelu_.*", {"act_layer": "quick_gelu"}),
    (r"vit_.*_rpn_\d+", {"block_fn": "ResPostBlock"}),
    (r"vit_giant_patch14_(dinov2|reg\d_dinov2|reg\d_tipsv2)|aimv2_.*", {"act_layer": "silu"}),
    (
        r"vit_(base_patch32|so400m_patch16|giantopt_patch16)_siglip_.*"
        r"|vit_large_patch16_siglip(_gap)?_512",
        {"act_layer": "gelu_tanh"},
    ),
    (r"test_vit3", {"pool_include_prefix": True}),
    (r"flexivit_.*|vit_.*_flexi.*", {"posemb_resize": "bilinear"}),
    (r"vit_.*_radio_.*", {"posemb_resize": "bilinear"}),
    (r"eva02_enormous_.*", {"use_post_norm": True}),
    (r"eva02_(?!enormous).*|vit_.*_rope_reg\d_.*", _EVA02),
    (r"vit_.*_rope(_ape)?_\d+", _XY | {"rope_temperature": 100.0}),
    (
        r"vit_.*_rope_mixed(_ape)?_\d+",
        _XY | {"rope_temperature": 10.0, "rope_type": "mixed"},
    ),
    (
        r"vit_.*_(dinov3|lingbot).*",
        {"use_rot_pos_emb": True, "rope_type": "dinov3", "rope_temperature": 100.0,
         "rope_rotate_half": True, "ln_eps": 1e-5},
    ),
    (
        r"vit_pe_.*",
        _XY | {"ln_eps": 1e-5, "rope_grid_offset": 1.0, "ref_feat_shape": (24, 24)},
    ),
    (r"vit_pe_core_base_.*", {"ref_feat_shape": (14, 14)}),
    (r"vit_pe_(lang|spatial)_.*", {"ref_feat_shape": (32, 32)}),
    (r"vit_pe_.*_gigantic_.*", {"rope_grid_offset": 0.0, "ref_feat_shape": (32, 32)}),
    (r"vit_pe_core_.*", {"attn_pool_num_heads": 8}),
)  # fmt: skip
# Pattern of entry points' names -> number of heads, which no tensor shows; the last that matches
# counts. Source: all entry points of the same files.
_HEADS: tuple[tuple[str, int], ...] = (
    (r"vit_(pwee|wee|dwee|dpwee|xsmall)_.*", 4),
    (r"vit_d?little_.*", 5),
    (r"(vit|deit|eva02)_tiny_.*|vit_pe_(core|spatial)_tiny_.*", 3),
    (r"(vit|deit|deit3|eva02|flexivit)_small(_(?!resnet).*)?|vit_pe_(core|spatial)_small_.*", 6),
    (r"(vit|deit3)_mediumd?_.*|aimv2_large_.*", 8),
    (r"vit_betwixt_.*", 10),
    (r"(vit|deit|deit3|eva02|flexivit|beit3)_base(_.*)?|vit_pe_(core|spatial)_base_.*", 12),
    (r"aimv2_huge_.*", 12),
    (r"vit_so150m2_.*", 13),
    (r"vit_so150m_.*|vit_base_patch\d+_plus_.*", 14),
    (r"(vit|deit3|eva|eva02|flexivit|beit3)_(large|huge|giant|enormous|gigantic)(_.*)?", 16),
    (r"vit_(so400m|giantopt|intern300m)_.*|aimv2_1b_.*|vit_base_patch16_gap_224", 16),
    (r"vit_pe_(core|lang|spatial)_(large|gigantic)_.*", 16),
    (r"vit_huge_plus_.*", 20),
    (r"vit_giant_.*(dinov2|tipsv2|lingbot|radio|sapiens2).*|aimv2_3b_.*", 24),
    (r"vit_(5b|7b)_.*", 32),
)
# Entry points of the class Eva; the others are of VisionTransformer.
_EVA = re.compile(r"eva_giant_.*|eva02_.*|vit_.*_(rope|dinov3|lingbot).*|vit_pe_.*")
_LISTED = re.compile(r"(test_)?(vit|deit|deit3|eva|eva02|flexivit|beit3|aimv2)\d?_\w+")

# Arguments that the tensors show; below, those that only affect training.
_SHOWN = {
    "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "mlp_ratio", "qkv_bias",
    "qk_norm", "scale_attn_norm", "scale_mlp_norm", "proj_bias", "init_values", "class_token",
    "pos_embed", "no_embed_class", "reg_tokens", "pre_norm", "final_norm", "fc_norm",
    "embed_norm_layer", "attn_layer", "num_reg_tokens", "qkv_fused", "num_kv_heads",
    "swiglu_mlp", "swiglu_align_to", "scale_mlp", "scale_attn_inner", "attn_type",
    "attn_only_layer_scale", "use_abs_pos_emb", "use_pre_transformer_norm",
    "use_post_transformer_norm", "use_fc_norm", "attn_pool_mlp_ratio",
}  # fmt: skip
_TRAINING = {
    "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
    "drop_path_rate", "weight_init", "fix_init", "head_init_scale", "rope_shift_coords",
    "rope_jitter_coords", "rope_rescale_coords", "dynamic_img_size",
}  # fmt: skip
# Arguments of which only these values are supported, or are shown by the tensors.
_ONLY: dict[str, tuple[Any, ...]] = {
    "act_layer": (None, "gelu", "gelu_tanh", "silu", "swish"),
    "norm_layer": (None, "layernorm", "layernormfp32", "rmsnorm", "simplenorm"),
    "block_fn": (None,),
    "use_post_norm": (False,),
    "rope_type": ("cat", "dinov3", "mixed"),
    "rope_grid_indexing": ("ij", "xy"),
    "rope_grid_offset": (0.0,),
    "dynamic_img_pad": (False,),
}
_POOLS = {"": "", "token": "token", "avg": "gap", "map": "map"}


def is_listed(architecture: str) -> bool:
    """Returns whether the arguments that an entry point sets itself are known."""
    return _LISTED.fullmatch(architecture) is not None


def heads(architecture: str) -> int | None:
    """Returns the number of heads of an entry point's blocks; None if it is unknown."""
    matches = [count for pattern, count in _HEADS if re.fullmatch(pattern, architecture)]
    return matches[-1] if matches else None


def arguments(config: Mapping[str, Any], *, path: pathlib.Path) -> dict[str, Any]:
    """Returns the arguments of the entry point and of config.json; {} without an entry point.

    Raises:
      CheckpointError: an argument or its value is not supported.
    """
    architecture = str(config.get("architecture") or "")
    if not architecture:
        return {}
    given = config.get("model_args") or {}
    args: dict[str, Any] = {
        "is_listed": is_listed(architecture),
        "is_eva": _EVA.fullmatch(architecture) is not None,
    }
    for pattern, defaults in _ENTRY_POINTS:
        if re.fullmatch(pattern, architecture):
            args |= defaults
    if known := heads(architecture):
        args["num_heads"] = known
    args |= {key: value for key, value in given.items() if key not in _TRAINING}
    if given.get("norm_layer"):  # A norm that is given by name has timm's default epsilon.
        args["ln_eps"] = 1e-6
    args.setdefault("global_pool", config.get("global_pool"))
    for key, value in args.items():
        if key in _ONLY and value not in _ONLY[key]:
            raise CheckpointError(
                f"{path} is {architecture} with {key}={value!r}, which is not supported. "
                f"Supported: {', '.join(repr(v) for v in _ONLY[key] if v is not None) or 'none'}."
            )
        if key in given and key not in _SHOWN | _ONLY.keys() | _READ:
            raise CheckpointError(
                f"{path} is {architecture} with the argument {key}={value!r}, whose effect is "
                "unknown to vit_jax. Load its tensors alone, without config.json, with hints for "
                "the fields that they do not show."
            )
    return args


# Arguments that `facts` and `image_size` read.
_READ = {
    "num_heads", "img_size", "global_pool", "pool_include_prefix", "use_rot_pos_emb",
    "rope_temperature", "rope_rotate_half", "ref_feat_shape", "attn_pool_num_heads",
}  # fmt: skip


def facts(args: Mapping[str, Any], shapes: Mapping[str, Any], *, path: pathlib.Path):
    """Returns the fields of a model that timm's `arguments` determine, and its tensors do not.

    Raises:
      CheckpointError: a value is not supported.
    """
    if not args:
        return {}
    fields: dict[str, Any] = {"num_heads": args["num_heads"]} if "num_heads" in args else {}
    pool = args["global_pool"]
    if pool is not None:
        fields["pool"] = _pool(args, shapes, path=path)
    is_listed = args["is_listed"]  # The defaults of other entry points are unknown.
    if is_listed or "ln_eps" in args:
        fields["ln_eps"] = args.get("ln_eps", 1e-6)
    if is_listed or args.get("act_layer"):
        fields |= _activation(args)
    if is_listed or "use_rot_pos_emb" in args:
        fields |= _rope(args, path=path)
    if is_listed or "posemb_resize" in args:
        fields["posemb_resize"] = args.get("posemb_resize", "bicubic_antialias")
    heads = args.get("attn_pool_num_heads")
    if heads and "attn_pool.latent" in shapes and heads != fields.get("num_heads"):
        raise CheckpointError(
            f"{path} has attn_pool_num_heads={heads}, which is not supported: attention pooling "
            "has as many heads as the blocks."
        )
    return fields


def _pool(args: Mapping[str, Any], shapes: Mapping[str, Any], *, path: pathlib.Path) -> str:
    pool, prefix = args["global_pool"], args.get("pool_include_prefix", False)
    if pool not in _POOLS or (pool == "avg" and prefix):
        raise CheckpointError(
            f"{path} pools by {pool}{' with pool_include_prefix' if prefix else ''}, which is not "
            "supported."
        )
    if pool == "map" and not prefix and not args["is_eva"]:
        return "map_patches" if {"cls_token", "reg_token"} & shapes.keys() else "map"
    return _POOLS[pool]


def _activation(args: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the activation of the MLP; in a gated MLP, that of the gate."""
    activation = args.get("act_layer") or "gelu"
    if activation in ("silu", "swish") or args.get("swiglu_mlp"):  # Eva's gate always has a SiLU.
        return {"activation": "silu"}
    return {"activation": "gelu", "gelu": "tanh" if activation == "gelu_tanh" else "erf"}


def _rope(args: Mapping[str, Any], *, path: pathlib.Path) -> dict[str, Any]:
    if not args.get("use_rot_pos_emb", False):
        return {"rope": "none"}
    kind, half = args.get("rope_type", "cat"), args.get("rope_rotate_half", False)
    indexing = args.get("rope_grid_indexing", "ij")
    if half != (kind == "dinov3") or (kind == "dinov3" and indexing != "ij"):
        raise CheckpointError(
            f"{path} has rope_type={kind!r} with rope_rotate_half={half} and rope_grid_indexing="
            f"{indexing!r}, which is not supported."
        )
    theta = float(args.get("rope_temperature", 1e4))
    if kind == "dinov3":
        return {"rope": "dinov3", "rope_theta": theta}
    grid = args.get("ref_feat_shape") or (0, 0)
    grid = tuple(grid) if isinstance(grid, list | tuple) else (grid, grid)
    return {"rope": f"axial_{indexing}", "rope_theta": theta, "rope_grid": grid}


def image_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns (height, width) in a config.json of timm, or None."""
    size = (config.get("model_args") or {}).get("img_size")
    size = size or ((config.get("pretrained_cfg") or {}).get("input_size") or [])[1:]
    sides = tuple(size) if isinstance(size, list) else (size, size)
    if len(sides) != 2 or not all(type(side) is int for side in sides):
        return None
    return sides[0], sides[1]
