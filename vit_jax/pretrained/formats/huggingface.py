"""Folders of Hugging Face transformers: config.json, safetensors, preprocessor_config.json.

All of these are one encoder with different tensor names: ViT, DeiT, MSN, MAE and I-JEPA, DINOv2
(with registers), DINOv3, SigLIP. Since version 5 the library's names in memory differ from those on
the disk; both are read, with or without the model's prefix. Numerics come from config.json, or are
the defaults of its class.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from vit_jax.errors import CheckpointError, did_you_mean
from vit_jax.models import VitConfig
from vit_jax.pretrained.formats.base import (
    CheckpointFiles,
    Description,
    Format,
    complete_config,
    infer_image_size,
)
from vit_jax.pretrained.formats.entries import Entry, dense, embedding, norm
from vit_jax.pretrained.formats.hints import Hints
from vit_jax.pretrained.formats.names import count, renamed
from vit_jax.pretrained.preprocess import from_family, from_hf, published_processor


class Family(NamedTuple):
    """A model_type of transformers.

    Attributes:
      ln_eps: default of layer_norm_eps.
      resize: the kernel for position embeddings, a key of `vit_jax.models.resize.KERNELS`.
      block_names: index into BLOCK_NAMES of the names that it writes.
      hidden_act: default of hidden_act.
    """

    ln_eps: float
    resize: str
    block_names: int
    hidden_act: str = "gelu"


FAMILIES = {
    "vit": Family(1e-12, "bicubic", 0),
    "deit": Family(1e-12, "bicubic", 0),
    "vit_mae": Family(1e-12, "bicubic", 0),
    "vit_msn": Family(1e-6, "bicubic", 0),
    "ijepa": Family(1e-12, "bicubic", 0),
    "dinov2": Family(1e-6, "bicubic", 1),
    "dinov2_with_registers": Family(1e-6, "bicubic_antialias", 1),
    "dinov3_vit": Family(1e-5, "bicubic", 2),
    "siglip_vision_model": Family(1e-6, "bicubic", 3, "gelu_pytorch_tanh"),
}
_SILU = ("silu", "swish")
_GELU = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh"}
_PREFIX = re.compile(
    r"^((vit|deit|ijepa|vit_msn|vit_mae|dinov2|dinov2_with_registers|dinov3_vit|model"
    r"|vision_model)\.)+"
)
_UNUSED = (
    r"(embeddings\.)?mask_token", r"embeddings\.position_ids", r"decoder\..*", r"text_model\..*",
    r"logit_(scale|bias)", r"rope_embeddings\..*",
)  # fmt: skip


class BlockNames(NamedTuple):
    """The names of tensors within a block."""

    block: str
    attention: tuple[str, str, str, str]  # Query, key, value, output.
    norms: tuple[str, str]
    mlp: tuple[str, str]
    gate: str = ""
    scales: tuple[str, str] | tuple[()] = ()


_NESTED = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
_PROJ = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj")
_NORM12, _BEFORE_AFTER = ("norm1", "norm2"), ("layernorm_before", "layernorm_after")
_LAMBDAS = ("layer_scale1.lambda1", "layer_scale2.lambda1")
_FC, _UP_DOWN = ("mlp.fc1", "mlp.fc2"), ("mlp.up_proj", "mlp.down_proj")

BLOCK_NAMES = (
    BlockNames(
        "encoder.layer.{i}",
        (*_NESTED, "attention.output.dense"),
        _BEFORE_AFTER,
        ("intermediate.dense", "output.dense"),
    ),
    BlockNames(
        "encoder.layer.{i}", (*_NESTED, "attention.output.dense"), _NORM12, _FC, scales=_LAMBDAS
    ),
    BlockNames("layer.{i}", _PROJ, _NORM12, _UP_DOWN, "mlp.gate_proj", _LAMBDAS),
    BlockNames(
        "encoder.layers.{i}",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
        ("layer_norm1", "layer_norm2"),
        _FC,
    ),
    # Names in memory since version 5.
    BlockNames("layers.{i}", _PROJ, _BEFORE_AFTER, _FC),
    BlockNames("encoder.layer.{i}", _PROJ, _NORM12, _FC, scales=_LAMBDAS),
    BlockNames("encoder.layer.{i}", _PROJ, _NORM12, _UP_DOWN, "mlp.gate_proj", _LAMBDAS),
)


def recognises(files: CheckpointFiles) -> bool:
    """Returns whether there is a config.json of transformers."""
    return "model_type" in files.config


def describe(files: CheckpointFiles, hints: Hints) -> Description:
    """See `Format`."""
    config, family = _family(files)
    tensors = renamed(files.tensors, lambda name: _PREFIX.sub("", name))
    other_parts = ("decoder.", "text_model.")
    shapes = {n: tensor.shape for n, tensor in tensors.items() if not n.startswith(other_parts)}
    try:
        facts = _facts(shapes, config, family) | _numerics(config, family)
        _check_consistent(facts, config, files)
        facts |= {} if facts["posemb"] == "none" else _positions(shapes, facts, config, files)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{files.path} has a config.json of {config.get('model_type')}, but its tensors or "
            f"its config have no usable {error}."
        ) from error
    conventions = {"posemb_resize": facts.pop("posemb_resize")}
    if not (facts["num_classes"] or facts["rep_size"] or facts["pool"] == "map"):
        conventions["pool"] = facts.pop("pool")  # No head determines the pooling.
    fields = facts if files.preprocessor else conventions
    fields["preprocessing"] = "preprocessor_config.json"
    facts, _ = hints.merge(facts, conventions)
    family = facts.pop("preprocessing")
    model, _ = complete_config(facts, {}, hints, path=files.path)
    labels = _labels(config if "id2label" in config else files.config, model.num_classes)
    kind, notes = config["model_type"], ()
    if family == "preprocessor_config.json":
        preprocessor = files.preprocessor
        if not preprocessor:
            preprocessor = published_processor(kind, image_size=model.image_size)
            notes = (
                f"no preprocessor_config.json: images are prepared as {kind}'s publisher does",
            )
        transforms = from_hf(preprocessor, image_size=model.image_size, model_type=kind)
    else:
        transforms = from_family(family, image_size=model.image_size)
    without_map_head = kind == "siglip_vision_model" and model.pool != "map"
    unused = (*_UNUSED, r"head\..*") if without_map_head else _UNUSED
    return Description(model, tensors, unused, transforms, labels, notes, f"model_type {kind}")


def _family(files: CheckpointFiles) -> tuple[Mapping[str, Any], Family]:
    """Returns the config of the vision model, and its family.

    Raises:
      CheckpointError: the model_type is unknown.
    """
    config = files.config
    if config["model_type"] == "siglip":  # A folder with a text and a vision model.
        config = {**config.get("vision_config", {}), "model_type": "siglip_vision_model"}
    if config["model_type"] not in [*FAMILIES]:
        raise CheckpointError(
            f'{files.path} is of the model_type "{config["model_type"]}". '
            + did_you_mean(str(config["model_type"]), FAMILIES)
        )
    return config, FAMILIES[config["model_type"]]


def _facts(shapes, config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Returns the fields that names and shapes determine, and else config.json."""
    width, channels, *patch = _first(shapes, r"embeddings\.patch_embedding.*\.weight")
    depth = max(
        count(shapes, s.block.replace(".", r"\.").replace("{i}", r"(\d+)")) for s in BLOCK_NAMES
    )
    gated = any(".weights_in." in name or ".gate_proj." in name for name in shapes)
    hidden = _first(shapes, r".*\.0\.(output\.dense|mlp\.(fc2|weights_out|down_proj))\.weight")[1]
    kind = config["model_type"]
    head = next((n for n in ("classifier", "cls_classifier") if f"{n}.weight" in shapes), None)
    classifies = any("ForImageClassification" in a for a in config.get("architectures") or ())
    # If a classifier's file has no head, the tensors of the configured head count as missing.
    configured_classes = len(config.get("id2label", (0, 1))) if classifies else 0
    silu = config.get("hidden_act", family.hidden_act) in _SILU
    gated_mlp = "swiglu" if silu or kind.startswith("dinov2") else "geglu"
    mlp = gated_mlp if gated else "silu" if silu else "gelu"
    dinov2_head = kind.startswith("dinov2") and (head or classifies)
    has_dist_token, distilled = kind == "deit", "distillation_classifier.weight" in shapes
    has_class_token = kind not in ("ijepa", "siglip_vision_model")
    pool = (
        "map"
        if "head.probe" in shapes and not head  # SigLIP's classifier pools by the mean instead.
        else "token_gap"
        if dinov2_head
        else "token"
        if has_class_token
        else "gap"
    )
    return {
        "patch_size": tuple(patch),
        "channels": channels,
        "width": width,
        "depth": depth,
        "mlp_dim": hidden,
        "mlp": mlp,
        "num_heads": _whole(config, "num_attention_heads", 6 if kind == "dinov3_vit" else 12),
        "num_classes": shapes[f"{head}.weight"][0] if head else configured_classes,
        "rep_size": shapes["pooler.dense.weight"][0] if "pooler.dense.weight" in shapes else 0,
        "pool": pool,
        "class_token": has_class_token,
        "distilled": distilled,
        # A distillation token without a head is a register with a position.
        "registers": shapes.get("embeddings.register_tokens", (1, 0))[1]
        + (has_dist_token - distilled),
        "posemb": "none" if kind == "dinov3_vit" else "learned",
        "layer_scale": 1.0 if any("layer_scale1" in name for name in shapes) else 0.0,
        "qkv_bias": any(re.search(r"\.0\..*(query|q_proj)\.bias$", name) for name in shapes),
        "key_bias": any(re.search(r"\.0\..*(key|k_proj)\.bias$", name) for name in shapes),
    }  # fmt: skip


def _first(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> tuple[int, ...]:
    matches = [shape for name, shape in shapes.items() if re.fullmatch(pattern, name)]
    if not matches:
        raise KeyError(f"tensor whose name matches {pattern}")
    return matches[0]


def _numerics(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    activation = config.get("hidden_act", family.hidden_act)
    if activation not in _GELU and activation not in _SILU:
        raise CheckpointError(
            f'config.json has hidden_act="{activation}", which is not supported. '
            + did_you_mean(str(activation), (*_GELU, *_SILU))
        )
    facts: dict[str, Any] = {
        "ln_eps": float(config.get("layer_norm_eps", family.ln_eps)),
        "gelu": _GELU.get(activation, "erf"),
        "posemb_resize": family.resize,
        "rope": "none",
    }
    if config["model_type"] == "dinov3_vit":
        facts |= {
            "rope": "dinov3",
            "rope_theta": float(config.get("rope_theta", 100.0)),
            "image_size": _sides(config, "image_size") or (224, 224),
        }
    return facts


def _whole(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if type(value) is not int:
        raise ValueError(f"{key}: {value!r} is not an integer")
    return value


def _sides(config: Mapping[str, Any], key: str) -> tuple[int, int] | None:
    """Returns (height, width) that config.json has as one number or two; None if it is absent."""
    value = config.get(key)
    if value is None:
        return None
    sides = tuple(value) if isinstance(value, list) else (value, value)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"{key}: {value!r} is neither pixels nor [height, width]")
    return sides


def _check_consistent(
    facts: Mapping[str, Any], config: Mapping[str, Any], files: CheckpointFiles
) -> None:
    """Raises CheckpointError if config.json contradicts the tensors, or is not supported."""
    if facts["rep_size"] and config.get("pooler_act", "tanh") != "tanh":
        raise CheckpointError(
            f"{files.path} has pooler_act={config['pooler_act']}; only tanh is supported."
        )
    if not isinstance(config.get("id2label") or {}, Mapping):
        raise ValueError("id2label: it is not an object")
    pairs = {
        "hidden_size": (config.get("hidden_size"), facts["width"]),
        "num_hidden_layers": (config.get("num_hidden_layers"), facts["depth"]),
        "intermediate_size": (config.get("intermediate_size"), facts["mlp_dim"]),
        "num_channels": (config.get("num_channels"), facts["channels"]),
        "patch_size": (_sides(config, "patch_size"), facts["patch_size"]),
        "number of names in id2label": (len(config.get("id2label") or ()), facts["num_classes"]),
    }
    if config["model_type"].startswith("dinov2"):  # Its MLP's width follows from mlp_ratio.
        del pairs["intermediate_size"]
    if not facts["num_classes"] or "id2label" not in config:
        del pairs["number of names in id2label"]
    lines = [
        f"  {key}: {in_config!r}; the tensors have {in_tensors!r}"
        for key, (in_config, in_tensors) in pairs.items()
        if in_config is not None and in_config != in_tensors
    ]
    if lines:
        raise CheckpointError(
            f"{files.path}: config.json and the tensors are of different models.\n"
            + "\n".join(lines)
            + "\nDownload both from the same repository."
        )


def _positions(shapes, facts: dict[str, Any], config, files: CheckpointFiles) -> dict[str, Any]:
    name = "embeddings.position_embeddings"
    shape = shapes[name] if name in shapes else shapes["embeddings.position_embedding.weight"]
    if config["model_type"] == "deit":
        prefixes = {"all": 2}
    else:
        prefixes = {"class": 1} if facts["class_token"] else {"none": 0}
    return infer_image_size(
        shape[-2],
        prefixes,
        patch_size=facts["patch_size"],
        image_size=_sides(config, "image_size"),
        path=files.path,
    )


def _labels(config: Mapping[str, Any], num_classes: int) -> tuple[str, ...] | None:
    """Returns the class names in order, stripped; the keys of id2label are numbers as strings."""
    names = {str(key): value for key, value in dict(config.get("id2label") or {}).items()}
    if not num_classes or any(str(k) not in names for k in range(num_classes)):
        return None
    # Published files have names such as "tench, Tinca tinca\n", from the lines of a text file.
    return tuple(str(names[str(k)]).strip() for k in range(num_classes))


def block_entries(names: BlockNames) -> tuple[Entry, ...]:
    """Returns the entries of a block."""
    ours, block = "encoder/block_{i}", names.block
    query, key, value, out = (f"{block}.{name}" for name in names.attention)
    scales = zip(("scale1", "scale2"), names.scales, strict=False)
    return (
        *norm(f"{ours}/norm1", f"{block}.{names.norms[0]}"),
        *norm(f"{ours}/norm2", f"{block}.{names.norms[1]}"),
        *dense(f"{ours}/attn/query", query, "heads_in"),
        *dense(f"{ours}/attn/key", key, "heads_in"),
        *dense(f"{ours}/attn/value", value, "heads_in"),
        *dense(f"{ours}/attn/out", out, "heads_out"),
        *dense(f"{ours}/mlp/fc1", f"{block}.{names.mlp[0]}"),
        *dense(f"{ours}/mlp/fc2", f"{block}.{names.mlp[1]}"),
        *(dense(f"{ours}/mlp/gate", f"{block}.{names.gate}") if names.gate else ()),
        *(Entry(f"{ours}/{scale}", f"{block}.{theirs}") for scale, theirs in scales),
    )


# DINOv2 stores gate and hidden units in one tensor.
WEIGHTS_IN = (
    *dense("encoder/block_{i}/mlp/gate", "encoder.layer.{i}.mlp.weights_in", part=(0, 2)),
    *dense("encoder/block_{i}/mlp/fc1", "encoder.layer.{i}.mlp.weights_in", part=(1, 2)),
    *dense("encoder/block_{i}/mlp/fc2", "encoder.layer.{i}.mlp.weights_out"),
)


class OuterNames(NamedTuple):
    """The names of tensors outside the blocks."""

    embedding: str = "embeddings.patch_embeddings.projection"
    positions: tuple[str, str] = ("embeddings.position_embeddings", "same")
    norm: str = "layernorm"
    head: str = "classifier"


OUTER_NAMES = (
    OuterNames(),
    OuterNames(head="cls_classifier"),  # DeiT with a distillation head.
    OuterNames("embeddings.patch_embeddings", norm="norm"),  # DINOv3.
    OuterNames(  # SigLIP.
        "embeddings.patch_embedding",
        ("embeddings.position_embedding.weight", "table"),
        "post_layernorm",
    ),
)


def outer_entries(names: OuterNames) -> tuple[Entry, ...]:
    """Returns the entries outside the blocks."""
    return (
        Entry("cls", "embeddings.cls_token"),
        Entry("dist", "embeddings.distillation_token"),
        Entry("registers", "embeddings.register_tokens"),
        Entry("registers", "embeddings.distillation_token"),
        Entry("pos_embedding", *names.positions),
        *embedding(names.embedding),
        *norm("encoder/norm", names.norm),
        *dense("pre_logits", "pooler.dense"),
        *dense("head", names.head),
        *dense("head_dist", "distillation_classifier"),
        *_MAP_HEAD,
    )


_MAP_HEAD = (
    Entry("map_head/probe", "head.probe"),
    *(
        Entry(f"map_head/attn/{name}/{ours}", f"head.attention.in_proj_{theirs}", layout, (k, 3))
        for k, name in enumerate(("query", "key", "value"))
        for ours, theirs, layout in (("kernel", "weight", "heads_in"), ("bias", "bias", "flat"))
    ),
    *dense("map_head/attn/out", "head.attention.out_proj", "heads_out"),
    *norm("map_head/norm", "head.layernorm"),
    *dense("map_head/mlp/fc1", "head.mlp.fc1"),
    *dense("map_head/mlp/fc2", "head.mlp.fc2"),
)


def entries(config: VitConfig) -> tuple[Entry, ...]:
    """See `Format`."""
    packed = WEIGHTS_IN if config.gated else ()
    return (
        *(entry for names in OUTER_NAMES for entry in outer_entries(names)),
        *packed,
        *(entry for names in BLOCK_NAMES for entry in block_entries(names)),
    )


FORMAT = Format("Hugging Face transformers", recognises, describe, entries)
