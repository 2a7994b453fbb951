"""MLP-Mixer in the names of google-research/vision_transformer and big_vision, and in timm's."""

import math
import re
from typing import Any

from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.models import MixerConfig
from vit_jax.pretrained.formats.base import CheckpointFiles, Description, Format
from vit_jax.pretrained.formats.entries import Entry, dense, norm
from vit_jax.pretrained.formats.hints import Hints
from vit_jax.pretrained.formats.names import count, renamed
from vit_jax.pretrained.preprocess import from_family, from_timm

_OURS = "encoder/block_{i}"
_PREFIX = re.compile(r"^(params/|opt/target/|model\.)+")


def recognises(files: CheckpointFiles) -> bool:
    """Returns whether there is a token-mixing block."""
    return any("token_mixing/" in name or ".mlp_tokens." in name for name in files.tensors)


def describe(files: CheckpointFiles, hints: Hints) -> Description:
    """See `Format`."""
    tensors = renamed(files.tensors, lambda name: _PREFIX.sub("", name))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    google = "stem/kernel" in shapes
    try:
        facts = _google(shapes) if google else _timm(shapes)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{files.path} is a Mixer without a usable {error}.") from error
    published = files.config.get("pretrained_cfg")
    facts["pool"] = "gap"  # The only pooling of a Mixer.
    conventions = {"gelu": "tanh" if google else "erf", "ln_eps": 1e-6}
    if published:
        facts["preprocessing"] = "pretrained_cfg"
    else:
        conventions["preprocessing"] = "google" if google else "timm"
    facts, assumed = hints.merge(facts, conventions)
    family, _ = facts.pop("preprocessing"), facts.pop("pool")
    facts["image_size"] = _image_size(facts, facts.pop("tokens"), hints, files)
    if not hints.get("image_size"):
        assumed["image_size"] = facts["image_size"]
    try:
        config = MixerConfig(**facts)
    except ConfigError as error:
        raise CheckpointError(f"{files.path} describes no Mixer: {error}") from error
    transforms = (
        from_timm(published) if published else from_family(family, image_size=config.image_size)
    )
    unused = (r"(opt|optimizer|step)(/.*)?",)
    return Description(config, tensors, unused, transforms, assumed=assumed)


def _google(shapes) -> dict[str, Any]:
    kernel, block = shapes["stem/kernel"], "MixerBlock_0"
    tokens, token_mlp_dim = shapes[f"{block}/token_mixing/Dense_0/kernel"]
    return {
        "patch_size": tuple(kernel[:2]),
        "channels": kernel[2],
        "width": kernel[3],
        "depth": count(shapes, r"MixerBlock_(\d+)/"),
        "mlp_dim": shapes[f"{block}/channel_mixing/Dense_0/kernel"][1],
        "token_mlp_dim": token_mlp_dim,
        "tokens": tokens,
        "num_classes": shapes["head/kernel"][1] if "head/kernel" in shapes else 0,
    }


def _timm(shapes) -> dict[str, Any]:
    width, channels, *patch = shapes["stem.proj.weight"]
    token_mlp_dim, tokens = shapes["blocks.0.mlp_tokens.fc1.weight"]
    return {
        "patch_size": tuple(patch),
        "channels": channels,
        "width": width,
        "depth": count(shapes, r"blocks\.(\d+)\."),
        "mlp_dim": shapes["blocks.0.mlp_channels.fc1.weight"][0],
        "token_mlp_dim": token_mlp_dim,
        "tokens": tokens,
        "num_classes": shapes["head.weight"][0] if "head.weight" in shapes else 0,
    }


def _image_size(facts, tokens: int, hints: Hints, files: CheckpointFiles) -> tuple[int, int]:
    """Returns the only image size that a Mixer accepts: the token-mixing layer has fixed inputs."""
    hinted, patch = hints.get("image_size"), facts["patch_size"]
    if hinted is not None:
        return hinted
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise CheckpointError(
            f"{files.path} mixes {tokens:,} tokens, which is not a square. Give its image size: "
            "hints={'image_size': (height, width)}, or --hints=image_size=HEIGHTxWIDTH."
        )
    return side * patch[0], side * patch[1]


def entries(config: MixerConfig) -> tuple[Entry, ...]:
    """See `Format`."""
    del config  # All sizes have the same names.
    return _ENTRIES


def _google_dense(ours: str, theirs: str) -> tuple[Entry, ...]:
    return tuple(Entry(f"{ours}/{leaf}", f"{theirs}/{leaf}") for leaf in ("kernel", "bias"))


def _google_norm(ours: str, theirs: str) -> tuple[Entry, ...]:
    return tuple(Entry(f"{ours}/{leaf}", f"{theirs}/{leaf}") for leaf in ("scale", "bias"))


_ENTRIES = (
    *_google_dense("embedding", "stem"),
    *_google_norm(f"{_OURS}/norm1", "MixerBlock_{i}/LayerNorm_0"),
    *_google_norm(f"{_OURS}/norm2", "MixerBlock_{i}/LayerNorm_1"),
    *(
        entry
        for ours, theirs in (("token_mlp", "token_mixing"), ("mlp", "channel_mixing"))
        for k in (0, 1)
        for entry in _google_dense(
            f"{_OURS}/{ours}/fc{k + 1}", f"MixerBlock_{{i}}/{theirs}/Dense_{k}"
        )
    ),
    *_google_norm("encoder/norm", "pre_head_layer_norm"),
    *_google_dense("head", "head"),
    Entry("embedding/kernel", "stem.proj.weight", "conv"),
    Entry("embedding/bias", "stem.proj.bias"),
    *norm(f"{_OURS}/norm1", "blocks.{i}.norm1"),
    *norm(f"{_OURS}/norm2", "blocks.{i}.norm2"),
    *(
        entry
        for ours, theirs in (("token_mlp", "mlp_tokens"), ("mlp", "mlp_channels"))
        for k in ("fc1", "fc2")
        for entry in dense(f"{_OURS}/{ours}/{k}", f"blocks.{{i}}.{theirs}.{k}")
    ),
    *norm("encoder/norm", "norm"),
    *dense("head", "head"),
)

FORMAT = Format("MLP-Mixer", recognises, describe, entries)
