"""Exports for Hugging Face transformers: config.json, safetensors, preprocessor_config.json."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from vit_jax import storage
from vit_jax.models import VitConfig
from vit_jax.pretrained.exports.base import (
    ANYTHING,
    BOTH,
    DTYPES,
    Reasons,
    Values,
    compare,
    export_tensors,
    no_export,
    with_class_row,
    with_learned_positions,
)
from vit_jax.pretrained.exports.preprocessing import sixteen_bits, to_hf
from vit_jax.pretrained.formats import huggingface as names
from vit_jax.pretrained.formats.entries import Entry
from vit_jax.pretrained.mapping import PROBLEM_TYPES
from vit_jax.pretrained.model import Pretrained

# model_type -> fields and values that it can express, besides defaults and what all can express.
_EXPRESSIBLE: dict[str, dict[str, Values]] = {
    "vit": {"pool": ("token",), "posemb_resize": ("bicubic",)},
    "deit": {"pool": ("token",), "distilled": (True,), "posemb_resize": ("bicubic",)},
    "ijepa": {"pool": ("gap",), "posemb_resize": ("bicubic",)},
    "siglip_vision_model": {"pool": ("map",), "posemb_resize": ("bicubic",)},
    "dinov2": {
        "mlp": ("gelu", "swiglu"), "posemb_resize": ("bicubic",),
    },
    "dinov2_with_registers": {
        "mlp": ("gelu", "swiglu"), "posemb_prefix": ("class",),
        "posemb_resize": ("bicubic_antialias",),
    },
    "dinov3_vit": {
        "pool": ("token",), "num_classes": (0,), "mlp": ("gelu", "swiglu", "geglu"),
        "rope": ("dinov3",), "rope_theta": ANYTHING, "key_bias": BOTH,
        "posemb": ("none",),
    },
}  # fmt: skip
_ARCHITECTURES = {
    "vit": ("ViTModel", "ViTForImageClassification"),
    "deit": ("DeiTModel", "DeiTForImageClassificationWithTeacher"),
    "ijepa": ("IJepaModel", "IJepaForImageClassification"),
    "siglip_vision_model": ("SiglipVisionModel", ""),
    "dinov2": ("Dinov2Model", "Dinov2ForImageClassification"),
    "dinov2_with_registers": (
        "Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification",
    ),
    "dinov3_vit": ("DINOv3ViTModel", ""),
}  # fmt: skip
_PREFIX = {"vit": "vit.", "deit": "deit.", "ijepa": "ijepa.", "dinov2": "dinov2.",
           "dinov2_with_registers": "dinov2_with_registers."}  # fmt: skip
_HEADS = ("classifier.", "cls_classifier.", "distillation_classifier.")
_SHARD = 5 * 10**9  # Bytes: the limit of the library.


def model_type(config: VitConfig) -> str:
    """Returns the model_type of transformers that is closest to a model."""
    if config.rope != "none":
        return "dinov3_vit"
    if config.layer_scale:
        return "dinov2_with_registers" if config.registers else "dinov2"
    # Classifiers with the mean of all patches are of the class IJepaForImageClassification.
    by_pool = {"map": "siglip_vision_model", "gap": "ijepa", "token_gap": "dinov2"}
    return by_pool.get(config.pool, "deit" if config.distilled else "vit")


def write(
    pretrained: Pretrained, folder: pathlib.Path, *, dtype: str, change_numerics: bool
) -> tuple[str, ...]:
    """Writes a folder for `from_pretrained`.

    Returns:
      Notes: what transformers computes slightly differently, and other remarks.

    Raises:
      CheckpointError: no class of transformers can express the model.
    """
    config, kind = pretrained.config, _kind(pretrained)
    assert isinstance(config, VitConfig)  # `_kind` refuses others.
    expressible: dict[str, Values] = {
        "posemb": ("learned", "sincos2d"), "posemb_prefix": ANYTHING, "qkv_bias": BOTH,
        "ln_eps": ANYTHING, "gelu": ANYTHING,
    } | _EXPRESSIBLE[kind]  # fmt: skip
    if kind.startswith("dinov2"):  # Its classifier uses the class token and the mean of patches.
        expressible |= {"pool": ("token_gap",) if config.num_classes else ("token",)}
    if kind.startswith("dino"):
        expressible |= {
            "layer_scale": (config.layer_scale or 1.0,), "registers": (config.registers,)
        }  # fmt: skip
    if kind in ("vit", "deit") and not config.num_classes:
        expressible |= {"rep_size": ANYTHING}
    processor = {"siglip_vision_model": "Siglip"}.get(kind, "ViT")
    preprocessor, reasons = to_hf(pretrained.preprocess, processor=processor)
    reasons += compare(config, expressible, to="hf") + _classifier(pretrained, kind)
    reasons += _gated_width(config, kind) + sixteen_bits("transformers")
    reasons.check(pretrained, to="hf", change_numerics=change_numerics)
    params, config = with_learned_positions(pretrained.params, config)
    params, config = with_class_row(params, config)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = export_tensors(params, config, _entries(kind, config), dtype=dtype, to="hf")
    prefix = _PREFIX.get(kind, "") if config.num_classes else ""
    named = ((n if n.startswith(_HEADS) else prefix + n, array) for n, array in tensors)
    write_shards((*_masks(kind, config, prefix, dtype), *named), folder)
    content = _config(kind, config, pretrained.labels, dtype)
    if config.num_classes:
        content["problem_type"] = problem_type(pretrained.loss)
    _write_json(folder / "config.json", content)
    _write_json(folder / "preprocessor_config.json", preprocessor)
    return reasons.accepted


def problem_type(loss: str) -> str:
    """Returns the problem_type in config.json for the loss of a head."""
    return next(name for name, other in PROBLEM_TYPES.items() if other == loss)


def _gated_width(config: VitConfig, kind: str) -> Reasons:
    """Returns the reason why transformers has no MLP of this width."""
    if not kind.startswith("dinov2") or _dinov2_ratio(config):
        return Reasons()
    reason = (
        f"model.mlp_dim is {config.mlp_dim:,}; the gated MLP of transformers' DINOv2 cannot be so "
        f"wide at a width of {config.width:,}"
    )
    return Reasons(impossible=(reason,))


def _classifier(pretrained: Pretrained, kind: str) -> Reasons:
    """Returns the reasons why transformers has no such classifier."""
    if kind == "siglip_vision_model" and pretrained.config.num_classes:
        reason = (
            "model.pool is 'map'; transformers' SigLIP classifies by the mean of the patches, "
            "its other models by 'gap' or 'token'"
        )
        return Reasons(impossible=(reason,))
    if pretrained.config.num_classes != 1 or pretrained.loss != "softmax_xent":
        return Reasons()
    return Reasons(approximate=("transformers applies a sigmoid to a single class, not a softmax",))


def _kind(pretrained: Pretrained) -> str:
    if not isinstance(pretrained.config, VitConfig):
        raise no_export(pretrained.config, to="hf")
    return model_type(pretrained.config)


def _entries(kind: str, config: VitConfig) -> tuple[Entry, ...]:
    """Returns the entries with the names that `save_pretrained` writes."""
    index = {"dinov3_vit": 2, "siglip_vision_model": 3}.get(kind, int(config.distilled))
    return (
        *names.outer_entries(names.OUTER_NAMES[index]),
        *(names.WEIGHTS_IN if config.gated and kind.startswith("dinov2") else ()),
        *names.block_entries(names.BLOCK_NAMES[names.FAMILIES[kind].block_names]),
    )


def _masks(kind: str, config: VitConfig, prefix: str, dtype: str):
    """Yields a mask token of zeros if the class has one; no image uses it."""
    shape = {"dinov2": (1, config.width), "dinov2_with_registers": (1, config.width),
             "dinov3_vit": (1, 1, config.width)}.get(kind)  # fmt: skip
    if shape:
        yield f"{prefix}embeddings.mask_token", np.zeros(shape, DTYPES[dtype])


def _config(
    kind: str, config: VitConfig, labels: tuple[str, ...] | None, dtype: str
) -> dict[str, Any]:
    """Returns the content of config.json."""
    plain, classifier = _ARCHITECTURES[kind]
    size, patch = config.image_size, config.patch_size
    content: dict[str, Any] = {
        "model_type": kind,
        "architectures": [classifier if config.num_classes else plain],
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}[config.gelu],
        "layer_norm_eps": config.ln_eps,
        "image_size": size[0] if size[0] == size[1] else list(size),
        "patch_size": patch[0] if patch[0] == patch[1] else list(patch),
        "num_channels": config.channels,
        "qkv_bias": config.qkv_bias,
        "dtype": dtype,
    }
    if kind.startswith("dinov2"):
        content |= _dinov2(config)
    if kind == "dinov3_vit":
        content |= {
            "hidden_act": "silu" if config.mlp == "swiglu" else content["hidden_act"],
            "use_gated_mlp": config.gated, "num_register_tokens": config.registers,
            "rope_theta": config.rope_theta, "query_bias": config.qkv_bias,
            "key_bias": config.key_bias, "value_bias": config.qkv_bias,
        }  # fmt: skip
    if config.rep_size:
        content |= {"pooler_output_size": config.rep_size, "pooler_act": "tanh"}
    if config.num_classes:
        labels = labels or tuple(f"LABEL_{k}" for k in range(config.num_classes))
        content["id2label"] = {str(k): label for k, label in enumerate(labels)}
        content["label2id"] = {label: k for k, label in enumerate(labels)}
    return content


def _dinov2(config: VitConfig) -> dict[str, Any]:
    """Returns the fields of DINOv2, which states the width of its MLP as a ratio."""
    ratio = _dinov2_ratio(config)
    return {
        "mlp_ratio": int(ratio) if ratio == int(ratio) else ratio,
        "use_swiglu_ffn": config.mlp == "swiglu",
        "layerscale_value": 1.0,
        "num_register_tokens": config.registers,
    }


def _dinov2_ratio(config: VitConfig) -> float:
    """Returns the ratio of DINOv2's MLP to its width; 0: it can have no such MLP.

    A gated MLP has two thirds of the stated width, rounded up to a multiple of 8.
    """
    if config.mlp != "swiglu":
        return config.mlp_dim / config.width
    ratios = (k / 8 for k in range(1, 129))
    return next(
        (r for r in ratios
         if (int(int(config.width * r) * 2 / 3) + 7) // 8 * 8 == config.mlp_dim), 0.0
    )  # fmt: skip


def write_shards(
    tensors: Iterable[tuple[str, np.ndarray]], folder: pathlib.Path, *, largest: int = _SHARD
) -> None:
    """Writes model.safetensors, or numbered shards of at most `largest` bytes and their index."""
    shard: dict[str, np.ndarray] = {}
    written: list[list[str]] = []  # The names in each shard on disk.
    sizes = [0]
    for name, array in tensors:
        if sizes[-1] and sizes[-1] + array.nbytes > largest:
            written.append(list(shard))
            _save(shard, folder / f"part-{len(written)}")
            shard = {}
            sizes.append(0)
        shard[name] = array
        sizes[-1] += array.nbytes
    if not written:
        _save(shard, folder / "model.safetensors")
        return
    written.append(list(shard))
    _save(shard, folder / f"part-{len(written)}")
    weight_map = {}
    for k, tensor_names in enumerate(written, start=1):
        file = f"model-{k:05}-of-{len(written):05}.safetensors"
        (folder / f"part-{k}").rename(folder / file)
        weight_map |= dict.fromkeys(tensor_names, file)
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _save(shard: dict[str, np.ndarray], path: pathlib.Path) -> None:
    save_file(shard, path, metadata={"format": "pt"})
    storage.apply_umask(path)


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
