"""PyTorch files in the names of timm: timm itself, DeiT, DeiT-III, MAE, DINOv2, DINOv3, EVA.

Facebook's code and timm share most names (`blocks.0.attn.qkv.weight`). A few tensors distinguish
them; they also resize positions differently. Fields that no tensor shows come from a config.json of
timm, or from hints; else they are assumed as in the published models with the same names, and
listed in Description.assumed. Where published models differ, a hint is required.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from vit_jax.errors import CheckpointError
from vit_jax.models import VitConfig
from vit_jax.pretrained.formats import timm_config
from vit_jax.pretrained.formats.base import (
    CheckpointFiles,
    Description,
    Format,
    complete_config,
    infer_image_size,
)
from vit_jax.pretrained.formats.entries import Entry, dense, embedding, fused, norm
from vit_jax.pretrained.formats.hints import Hints
from vit_jax.pretrained.formats.names import renamed
from vit_jax.pretrained.formats.resnet import TIMM_NAMES, stem_entries
from vit_jax.pretrained.formats.timm_names import (
    BACKBONE,
    DINOV3_IN_TIMM,
    EVA,
    conventions_of,
    facts_of,
    kind_of,
    native_dinov3,
    rope_of,
)
from vit_jax.pretrained.preprocess import from_family, from_timm
from vit_jax.pretrained.tensors import Tensors

_B, _OURS = "blocks.{i}", "encoder/block_{i}"

# Prefixes of a model's names in training checkpoints and larger models.
_PREFIX = re.compile(r"^(backbone\.|teacher\.|encoder\.|model\.|visual\.trunk\.)+")
# Not needed by an encoder: decoders and mask tokens of masked pre-training, computed buffers.
_UNUSED = (r"decoder_.*", r"mask_token", r"local_cls_norm\..*", r"rope_embed\.periods",
           r".*\.bias_mask", r"rope\.(bands|periods|pos_embed)", r".*\.k_bias")  # fmt: skip
# Heads of self-supervised training: DINOv2's, DINOv3's, DINO's and iBOT's.
_TRAINING_HEADS = r"(dino_head|ibot_head|head\.(mlp|last_layer)\d?)\..*"


def recognises(files: CheckpointFiles) -> bool:
    """Returns whether there are a patch embedding and blocks in timm's names."""
    names = {_PREFIX.sub("", name) for name in files.tensors}
    return "patch_embed.proj.weight" in names and any(
        re.match(r"blocks\.(\d+\.)?0\.attn\.", name) for name in names
    )


def describe(files: CheckpointFiles, hints: Hints) -> Description:
    """See `Format`."""
    tensors = renamed(files.tensors, lambda name: _unchunked(_PREFIX.sub("", name)))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    kind, folder = kind_of(shapes, files), files.config
    facts, conventions = _facts_and_conventions(tensors, shapes, kind, files=files, hints=hints)
    facts, assumed = hints.merge(facts, conventions)
    _check_pool(facts, kind, files, attention="attn_pool.latent" in shapes)
    family = facts.pop("preprocessing")
    facts |= _positions(shapes, facts, hints, files)
    size = hints.get("image_size") or timm_config.image_size(folder)
    if facts["posemb"] == "none" and size:
        facts["image_size"] = size
    elif facts["posemb"] != "none" and not size:
        assumed["image_size"] = facts["image_size"]
    if not folder.get("architecture"):
        assumed |= _assumed_arguments(shapes, facts, kind)
    config, assumed = complete_config(facts, assumed, hints, path=files.path)
    if folder.get("pretrained_cfg"):
        transforms = from_timm(folder["pretrained_cfg"])
    else:
        transforms = from_family(family, image_size=config.image_size)
    unused, notes = _unused(shapes, config)
    labels = _labels(folder, config.num_classes)
    return Description(
        config, tensors, unused, transforms, labels, tuple(notes), f"names of {kind}", assumed
    )


def _facts_and_conventions(
    tensors: Tensors, shapes: Mapping[str, Any], kind: str, *, files: CheckpointFiles, hints: Hints
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the fields that tensors and config.json determine, and conventions for the others."""
    try:
        facts = facts_of(shapes)
        facts |= native_dinov3(tensors) if kind == "DINOv3" else {}
        arguments = timm_config.arguments(files.config, path=files.path)
        facts |= timm_config.facts(arguments, shapes, path=files.path)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"{files.path} has the names of {kind}, but no usable {error}."
        ) from error
    conventions = conventions_of(shapes, kind, facts)
    activation, gated = facts.pop("activation", None), facts.pop("gated")
    if gated and kind not in ("timm", "DeiT or MAE"):
        facts["mlp"] = "swiglu"  # Their gates have a SiLU, whatever act_layer is.
    elif activation:
        gated_mlp = {"silu": "swiglu", "gelu": "geglu"}
        facts["mlp"] = gated_mlp[activation] if gated else activation
    else:
        conventions["mlp"] = "swiglu" if gated else "gelu"
        _check_gate(hints, gated=gated, files=files)
    if "rope" not in facts:
        conventions |= rope_of(shapes, hints, gated=gated, files=files)
    if files.config.get("pretrained_cfg"):
        facts["preprocessing"] = "pretrained_cfg"
    if "attn_pool.latent" in shapes and "pool" not in facts:
        # timm's VisionTransformer pools the patches only, its Eva pools all tokens.
        eva = kind in (EVA, DINOV3_IN_TIMM) or (facts | conventions)["rope"] != "none"
        has_prefix = facts["class_token"] + facts["registers"] > 0
        conventions["pool"] = "map_patches" if has_prefix and not eva else "map"
        hints.translate("pool", {"map": conventions["pool"], "map_all": "map"})
    return facts, {field: value for field, value in conventions.items() if field not in facts}


def _check_gate(hints: Hints, *, gated: bool, files: CheckpointFiles) -> None:
    """Raises CheckpointError if the hint `mlp` and the tensors disagree about a gate."""
    accepted = ("swiglu", "geglu") if gated else ("gelu", "silu")
    if hints.get("mlp") not in (None, *accepted):
        raise CheckpointError(
            f"The hint mlp={hints.get('mlp')!r} contradicts {files.path}, whose MLP has "
            f"{'a' if gated else 'no'} gate: {' or '.join(accepted)}."
        )


def _assumed_arguments(
    shapes: Mapping[str, Any], facts: Mapping[str, Any], kind: str
) -> dict[str, Any]:
    """Returns assumed arguments of timm that neither tensors nor fields of the config show."""
    assumed: dict[str, Any] = {"blocks": "pre-norm"}  # EVA-02 E's post-norm has the same names.
    if facts["mlp"] in ("swiglu", "geglu") and "blocks.0.mlp.fc1.weight" in shapes:
        assumed["gate"] = "first half"  # timm's GluMlp can have it in the second.
    if facts["rope"] != "none" and kind != "DINOv3":
        assumed["rope_grid_offset"] = 0.0
        assumed["rope_rotate_half"] = facts["rope"] == "dinov3"
    return assumed


def _unused(shapes: Mapping[str, Any], config: VitConfig) -> tuple[tuple[str, ...], list[str]]:
    """Returns patterns of tensors without a use, and notes on them."""
    unused, notes = [*_UNUSED, _TRAINING_HEADS], []
    if any(re.fullmatch(_TRAINING_HEADS, name) for name in shapes):
        notes.append("heads of its training left out")
    if config.distilled:  # timm's distilled class may store both, but uses neither.
        unused += ["reg_token", r"fc_norm\..*"]
    elif "dist_token" in shapes:
        unused.append("reg_token")
        notes.append("its distillation token has no head: features are the class token's")
    return tuple(unused), notes


def _labels(folder: Mapping[str, Any], num_classes: int) -> tuple[str, ...] | None:
    """Returns the class names in a config.json of timm, stripped, or None."""
    names = folder.get("label_names") or (folder.get("pretrained_cfg") or {}).get("label_names")
    if not isinstance(names, list) or len(names) != num_classes:
        return None
    return tuple(str(name).strip() for name in names)


def _unchunked(name: str) -> str:
    """Removes the chunk in names of DINO's sharded training: blocks.0.3.norm1 is in block 3."""
    return re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", name)


def _check_pool(
    facts: Mapping[str, Any], kind: str, files: CheckpointFiles, *, attention: bool
) -> None:
    """Raises CheckpointError if the pooling contradicts the tensors, or is not supported."""
    if attention != facts["pool"].startswith("map"):
        raise CheckpointError(
            f"{files.path} has {'' if attention else 'no '}attention pooling (attn_pool), so "
            f"pool is not {facts['pool']!r}. Leave that hint out."
        )
    if attention and facts["mlp"] == "swiglu" and kind != EVA:
        raise CheckpointError(
            f"{files.path} pools by attention with the SiLU of its gated blocks, which is not "
            "supported: attention pooling has a GELU in vit_jax."
        )


def _positions(
    shapes, facts: dict[str, Any], hints: Hints, files: CheckpointFiles
) -> dict[str, Any]:
    if facts["posemb"] == "none":
        return {}
    prefix = facts["class_token"] + facts["distilled"]
    prefixes = {"none": 0, "class": prefix, "all": prefix + facts["registers"]}
    if not facts["registers"]:
        del prefixes["all"]
    elif "register_tokens" in shapes:  # In DINOv2's code only the class token has a row.
        del prefixes["all"], prefixes["none"]
    elif "reg_token" in shapes:  # In timm class token and registers both have rows, or neither.
        del prefixes["class"]
    stride = facts["stem"].stride if facts["stem"] else 1
    pixels = (facts["patch_size"][0] * stride, facts["patch_size"][1] * stride)
    rows, size = shapes["pos_embed"][-2], hints.get("image_size")
    if size is None and (configured := timm_config.image_size(files.config)):
        # timm crops an image size that is not a multiple of the patch size.
        grid = [side // patch for side, patch in zip(configured, pixels, strict=True)]
        fits = math.prod(grid) in {rows - n for n in prefixes.values()}
        size = (grid[0] * pixels[0], grid[1] * pixels[1]) if fits else None
    return infer_image_size(rows, prefixes, patch_size=pixels, image_size=size, path=files.path)


def entries(config: VitConfig) -> tuple[Entry, ...]:
    """See `Format`."""
    stem = config.stem
    # A stem without units lacks the prefix "stem.".
    names = (
        TIMM_NAMES if stem and stem.units else TIMM_NAMES._replace(root="conv", root_norm="norm")
    )
    body = stem_entries(stem, names, ours="stem/", theirs=BACKBONE) if stem else ()
    return (*_COMMON, *(_PACKED if config.gated else ()), *_PLAIN_MLP, *body)


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
    # EVA: separate biases of queries and values, or all projections separate.
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
# Gated MLPs of EVA, DINOv3, DINOv2, and timm, which packs gate and hidden units into fc1.
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
