"""Archives of google-research/vision_transformer and google-research/big_vision.

Both write parameters of Flax models as .npz. The published names of vision_transformer predate
Flax linen: one counter numbers all modules of a block. big_vision has linen's names, with separate
or stacked blocks, under params/ or opt/target/, and may store two towers in one file.
Numerics: tanh GELU, LayerNorm epsilon 1e-6, corner-aligned bilinear resize of positions.
"""

import re
from typing import Any

from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.models import StemConfig, VitConfig
from vit_jax.pretrained.formats import resnet
from vit_jax.pretrained.formats.base import (
    CheckpointFiles,
    Description,
    Format,
    complete_config,
    infer_image_size,
)
from vit_jax.pretrained.formats.entries import Entry
from vit_jax.pretrained.formats.hints import Hints
from vit_jax.pretrained.formats.names import count, of_optimizer, unstacked, without_prefix
from vit_jax.pretrained.formats.resnet import stem_entries, units_of
from vit_jax.pretrained.preprocess import from_family
from vit_jax.pretrained.tensors import Tensors

_BLOCK = "Transformer/encoderblock_{i}"
_LAYER = r"Transformer/encoderblock_(\d+)/"


def _leaves(ours: str, theirs: str, *leaves: str) -> tuple[Entry, ...]:
    return tuple(Entry(f"{ours}/{leaf}", f"{theirs}/{leaf}") for leaf in leaves)


def _dense(ours: str, theirs: str) -> tuple[Entry, ...]:
    return _leaves(ours, theirs, "kernel", "bias")


def _norm(ours: str, theirs: str) -> tuple[Entry, ...]:
    return _leaves(ours, theirs, "scale", "bias")


def _attention_and_mlp(ours: str, attention: str, mlp: str) -> tuple[Entry, ...]:
    return (
        *(
            entry
            for name in ("query", "key", "value", "out")
            for entry in _dense(f"{ours}/attn/{name}", f"{attention}/{name}")
        ),
        *_dense(f"{ours}/mlp/fc1", f"{mlp}/Dense_0"),
        *_dense(f"{ours}/mlp/fc2", f"{mlp}/Dense_1"),
    )


def _map_head(head: str) -> tuple[Entry, ...]:
    attention, mlp = f"{head}MultiHeadDotProductAttention_0", f"{head}MlpBlock_0"
    return (
        Entry("map_head/probe", f"{head}probe"),
        *_norm("map_head/norm", f"{head}LayerNorm_0"),
        *_attention_and_mlp("map_head", attention, mlp),
    )


def _entries(*, linen: bool) -> tuple[Entry, ...]:
    attention, mlp, norm2 = (
        ("MultiHeadDotProductAttention_0", "MlpBlock_0", "LayerNorm_1")
        if linen
        else ("MultiHeadDotProductAttention_1", "MlpBlock_3", "LayerNorm_2")
    )
    # The name has changed between releases; exports write the first one.
    posemb_names = ["pos_embedding", "Transformer/pos_embedding"]
    posemb_names.insert(2 if linen else 0, "Transformer/posembed_input/pos_embedding")
    ours = "encoder/block_{i}"
    return (
        Entry("cls", "cls"),
        *(Entry("pos_embedding", name) for name in posemb_names),
        *(entry for name in ("embedding", "pre_logits", "head") for entry in _dense(name, name)),
        *_norm("encoder/norm", "Transformer/encoder_norm"),
        *_norm(f"{ours}/norm1", f"{_BLOCK}/LayerNorm_0"),
        *_norm(f"{ours}/norm2", f"{_BLOCK}/{norm2}"),
        *_attention_and_mlp(ours, f"{_BLOCK}/{attention}", f"{_BLOCK}/{mlp}"),
        # big_vision's first files have the map head at the top level.
        *(entry for head in ("MAPHead_0/", "") for entry in _map_head(head)),
    )


PRE_LINEN, LINEN = _entries(linen=False), _entries(linen=True)


def recognises(files: CheckpointFiles) -> bool:
    """Returns whether the file has a Transformer in Google's names."""
    return any(re.search(r"(^|/)Transformer/encoder", name) for name in files.tensors)


def describe(files: CheckpointFiles, hints: Hints) -> Description:
    """See `Format`."""
    tensors, unused = tower(files)
    tensors = unstacked(
        tensors, r"Transformer/encoderblock/(.*)", "Transformer/encoderblock_{i}/{name}"
    )
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    try:
        facts = _facts(shapes)
    except (KeyError, IndexError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{files.path} looks like a checkpoint of Google's, but has no usable {error}."
        ) from error
    pre_linen = any("MultiHeadDotProductAttention_1" in name for name in shapes)
    siglip = "map" in (facts.get("pool"), hints.get("pool")) and not facts["num_classes"]
    conventions = {
        "ln_eps": 1e-6,
        "gelu": "tanh",
        "mlp": "gelu",
        "posemb_resize": "bilinear_corners",
        "preprocessing": "google" if pre_linen else "siglip" if siglip else "big_vision",
    }
    if "pool" not in facts:
        conventions["pool"] = "token" if "cls" in shapes else "gap"
    if "posemb" not in facts:
        conventions["posemb"] = "sincos2d"
    facts, assumed = hints.merge(facts, conventions)
    facts |= _positions(shapes, facts, hints, files)
    family = facts.pop("preprocessing")
    if "image_size" in facts and not hints.get("image_size"):
        assumed["image_size"] = facts["image_size"]
    config, assumed = complete_config(facts, assumed, hints, path=files.path)
    transforms = from_family(family, image_size=config.image_size)
    return Description(config, tensors, unused, transforms, assumed=assumed)


def tower(files: CheckpointFiles) -> tuple[Tensors, tuple[str, ...]]:
    """Returns the tensors of one model in a file, and patterns of tensors to ignore.

    Raises:
      CheckpointError: the file holds several models, or not the requested one.
    """
    # A text tower has none of these: its embedding of words has another name.
    first_layers = ("embedding/kernel", "conv_root/kernel", "stem/kernel", "root_block/kernel")
    prefixes = sorted(
        {
            name[: -len(layer)]
            for name in files.tensors
            for layer in first_layers
            if (name == layer or name.endswith(f"/{layer}")) and not of_optimizer(name)
        }
    )
    if files.submodel and prefixes == [""]:
        raise CheckpointError(
            f"{files.path} holds one model, without a name: omit :{files.submodel}."
        )
    selected = [p for p in prefixes if not files.submodel or p.endswith(f"{files.submodel}/")]
    if len(selected) != 1 or (not files.submodel and re.fullmatch(r"(params/)?img/", selected[0])):
        names = [p.rstrip("/").rpartition("/")[2] for p in prefixes]
        raise CheckpointError(
            f"{files.path} holds the models {', '.join(names) or '(none)'}: name one, as "
            f"{files.path}:{names[0] if names else 'img'}."
        )
    prefix = selected[0]
    unused = rf"(?!{re.escape(prefix)}).*" if files.submodel else r"(opt|optimizer|step)(/.*)?"
    return without_prefix(files.tensors, prefix), (unused,)


def _facts(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    kernel = shapes["embedding/kernel"]
    linen = f"{_BLOCK.format(i=0)}/MultiHeadDotProductAttention_0/query/kernel" in shapes
    block = _BLOCK.format(i=0)
    query = shapes[f"{block}/MultiHeadDotProductAttention_{0 if linen else 1}/query/kernel"]
    stem = None
    if "conv_root/kernel" in shapes:
        width_factor = shapes["conv_root/kernel"][3] / 64
        stem = StemConfig(units=units_of(shapes, resnet.GOOGLE), width_factor=width_factor)
    facts = {
        "patch_size": tuple(kernel[:2]),
        "stem": stem,
        "channels": shapes["conv_root/kernel"][2] if stem else kernel[2],
        "width": kernel[3],
        "depth": count(shapes, _LAYER),
        "mlp_dim": shapes[f"{block}/MlpBlock_{0 if linen else 3}/Dense_0/kernel"][1],
        "num_heads": query[1],
        "class_token": "cls" in shapes,
        "rope": "none",
        "rep_size": shapes["pre_logits/kernel"][1] if "pre_logits/kernel" in shapes else 0,
        "num_classes": shapes["head/kernel"][1] if "head/kernel" in shapes else 0,
    }
    if any(name.endswith("pos_embedding") for name in shapes):
        facts["posemb"] = "learned"
    return facts | ({"pool": "map"} if {"MAPHead_0/probe", "probe"} & shapes.keys() else {})


def _positions(
    shapes, facts: dict[str, Any], hints: Hints, files: CheckpointFiles
) -> dict[str, Any]:
    if facts["posemb"] != "learned":
        return {"image_size": size} if (size := hints.get("image_size")) else {}
    rows = next(s[1] for name, s in shapes.items() if name.endswith("pos_embedding"))
    prefixes = {"class": 1, "none": 0} if facts["class_token"] else {"none": 0}
    stride = facts["stem"].stride if facts["stem"] else 1
    pixels = (facts["patch_size"][0] * stride, facts["patch_size"][1] * stride)
    return infer_image_size(
        rows, prefixes, patch_size=pixels, image_size=hints.get("image_size"),
        path=files.path,
    )  # fmt: skip


def entries(config: VitConfig) -> tuple[Entry, ...]:
    """See `Format`."""
    stem = config.stem
    body = stem_entries(stem, resnet.GOOGLE, ours="stem/", theirs="") if stem else ()
    return (*PRE_LINEN, *LINEN, *body)


FORMAT = Format("Google .npz", recognises, describe, entries)
