"""What a foreign format has to say of a checkpoint, and what it may ask the caller."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vit_jax.checkpoints.formats.entries import Entry
from vit_jax.checkpoints.tensors import Tensors
from vit_jax.data.recipes import Transforms
from vit_jax.errors import CheckpointError, ConfigError, did_you_mean
from vit_jax.models import VARIANTS, ModelConfig, VitConfig
from vit_jax.optim.losses import LOSSES


@dataclasses.dataclass(frozen=True)
class Foreign:
    """What lies on the disk.

    Attributes:
      path: as the caller named it.
      tensors: of all files together.
      config: of config.json beside them; {} if there is none.
      preprocessor: of preprocessor_config.json; {} if there is none.
      submodel: what stood behind a colon: "img" of FILE.npz:img; "" if nothing.
    """

    path: pathlib.Path
    tensors: Tensors
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    submodel: str = ""


@dataclasses.dataclass(frozen=True)
class Description:
    """What a checkpoint is, before one of its tensors is read.

    Attributes:
      config: of the model as it was published.
      tensors: under the names that the format's entries use.
      unused: patterns of names that no model for images needs: optimizer states, decoders, masks.
      transforms: how its publisher prepares pictures for it, for its own image size.
      labels: names of its classes, or None.
      notes: what a reader should know of it.
    """

    config: ModelConfig
    tensors: Tensors
    unused: tuple[str, ...]
    transforms: Transforms
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Format:
    """A foreign format.

    Attributes:
      name: as it is shown.
      recognises: whether a checkpoint is in it, from its contents.
      describe: what the checkpoint is; raises CheckpointError if that cannot be told.
      entries: where a model's parameters are in such a file.
    """

    name: str
    recognises: Callable[[Foreign], bool]
    describe: Callable[[Foreign, "Hints"], Description]
    entries: Callable[[Any], tuple[Entry, ...]]


# Names that a hint may have: those of the goldens' manifest, and what they are called here. None:
# they follow from the file, and are only taken for what they say.
_HINTS: dict[str, str | None] = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "width": "width",
    "depth": "depth",
    "mlp_dim": "mlp_dim",
    "num_heads": "num_heads",
    "num_classes": "num_classes",
    "representation_size": "rep_size",
    "pool": "pool",
    "posemb": "posemb",
    "ln_eps": "ln_eps",
    "gelu": "gelu",
    "rope": "rope",
    "rope_theta": "rope_theta",
    "rope_grid": "rope_grid",
} | dict.fromkeys(
    (
        "block_units", "channels_mlp_dim", "class_token", "constructor_kwargs", "family", "ffn",
        "final_norm", "grid", "group_norm", "hidden_act", "layer_scale", "map_head",
        "no_embed_class", "num_prefix_tokens", "num_register_tokens", "padding", "pooling",
        "posemb_on_cls", "pre_norm", "pre_logits_activation", "qk_norm", "qkv_bias", "resnet",
        "root_width", "scan", "sincos2d", "softmax_dtype", "timm_class", "timm_kwargs",
        "tokens_mlp_dim", "weight_standardization", "width_factor",
    )
)  # fmt: skip
# What a file has that tells nothing of it.
_PLAIN = {"rope": "none", "registers": 0, "rep_size": 0}
_POOLS = {"tok": "token", "cls": "token", "avg": "gap", "learn": "learned"}


class Hints:
    """What the caller knows of a checkpoint, in the fields of `VitConfig`.

    Attributes:
      loss: that its head was trained with, a key of `vit_jax.optim.losses.LOSSES`; "" if not
        hinted.

    Raises:
      ConfigError: there is no such hint, or a value is not one.
    """

    def __init__(self, hints: Mapping[str, Any] | None):
        if not isinstance(hints or {}, Mapping):
            raise ConfigError(f"hints={hints!r}: write a dict, such as {{'num_heads': 12}}.")
        self._values: dict[str, Any] = {}
        self.loss = _loss(dict(hints or {}))
        for name, value in (hints or {}).items():
            if name == "loss":
                continue
            if name not in _HINTS:
                known = (*_HINTS, "loss")
                raise ConfigError(f'There is no hint "{name}". {did_you_mean(name, known)}')
            field = _HINTS[name]
            if field is None or (value is None and field not in ("num_classes", "rep_size")):
                continue
            if field == "rope" and isinstance(value, Mapping):
                self._values |= _rope(value)
            else:
                self._values[field] = _value(field, value)

    def get(self, field: str) -> Any:
        """The value of a field, or None."""
        return self._values.get(field)

    def over(self, facts: Mapping[str, Any], *, choices: tuple[str, ...] = ()) -> dict[str, Any]:
        """Facts with what is hinted beside them.

        Args:
          facts: fields that the file tells.
          choices: those among them that are only the usual choice: a hint goes before them.

        Raises:
          CheckpointError: a hint contradicts a fact.
        """
        merged = dict(facts)
        for field, value in self._values.items():
            known = facts.get(field, _PLAIN.get(field, value))
            if field not in choices and known != value:
                raise CheckpointError(
                    f"The hint {field}={value!r} contradicts the checkpoint, which has "
                    f"{known!r}. Leave the hint out, or look whether it is the right file."
                )
            merged[field] = value
        return merged


def parse_hints(words: Sequence[str]) -> dict[str, Any]:
    """["num_heads=5", "image_size=32x48", "gelu=erf"] as a dict of hints.

    Raises:
      ConfigError: a word is none.
    """
    hints: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--hints={word}: write NAME=VALUE, such as num_heads=12.")
        hints[name] = _parse(value)
    return hints


def _parse(value: str) -> Any:
    if match := re.fullmatch(r"(\d+)x(\d+)", value):
        return int(match[1]), int(match[2])
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _loss(hints: Mapping[str, Any]) -> str:
    loss = hints.get("loss") or ""
    if loss and loss not in LOSSES:
        raise ConfigError(f"The hint loss={loss!r}: {did_you_mean(str(loss), LOSSES)}")
    return loss


def _value(field: str, value: Any) -> Any:
    if field in ("image_size", "patch_size", "rope_grid"):
        sides = tuple(value) if isinstance(value, list | tuple) else (value, value)
        if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
            raise ConfigError(f"The hint {field}={value!r}: write pixels, 224 or (height, width).")
        return sides
    if field in ("ln_eps", "rope_theta"):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ConfigError(f"The hint {field}={value!r}: write a number above 0.")
        return float(value)
    if field in ("pool", "posemb", "gelu", "rope"):
        if not isinstance(value, str):
            raise ConfigError(f"The hint {field}={value!r}: write a name.")
        return _POOLS.get(value, value)
    if value is None:
        return 0
    if type(value) is not int or value < 0:
        raise ConfigError(f"The hint {field}={value!r}: write a whole number.")
    return value


def _rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a rotary embedding that a manifest's table, or timm's arguments, describe."""
    fields: dict[str, Any] = {}
    if "rope_grid_indexing" in rope:
        fields["rope"] = f"axial_{rope['rope_grid_indexing']}"
    if rope.get("rope_type") == "dinov3":
        fields["rope"] = "dinov3"
    theta = rope.get("theta", rope.get("rope_temperature"))
    return fields | ({"rope_theta": _value("rope_theta", theta)} if theta else {})


# (width, depth, mlp_dim, gated) -> heads, of models that were published: the file does not say.
_HEADS = {
    (v.width, v.depth, v.mlp_dim, False): v.num_heads for v in VARIANTS.values() if not v.parallel
} | {
    (1536, 40, 4096, True): 24,  # DINOv2 g
    (384, 12, 1536, True): 6,  # DINOv3 S+
    (1280, 32, 5120, True): 20,  # DINOv3 H+
    (4096, 40, 8192, True): 32,  # DINOv3 7B
    (192, 12, 512, True): 3,  # EVA-02, the next four
    (384, 12, 1024, True): 6,
    (768, 12, 2048, True): 12,
    (1024, 24, 2730, True): 16,
    (832, 21, 2176, False): 13,  # timm's SoViT-150m2
    (384, 36, 1536, False): 6,  # DeiT-III's and timm's deeper or wider shapes, the next three
    (768, 18, 3072, False): 12,
    (768, 36, 3072, False): 12,
    (1024, 48, 4096, False): 16,
    (1408, 40, 6144, False): 16,
}
_PUBLISHED_SIZE = (224, 224)  # Of published models that have no position embedding to tell it.


def complete(facts: dict[str, Any], *, path: pathlib.Path) -> VitConfig:
    """A model's config from what is known of it, and from the published model of its shape.

    Raises:
      CheckpointError: what is still missing, or is impossible, is named.
    """
    shape = (
        facts["width"], facts["depth"], facts["mlp_dim"], facts.get("mlp", "gelu") != "gelu"
    )  # fmt: skip
    published = _HEADS.get(shape)
    if published is not None:
        facts = {"num_heads": published, "image_size": _PUBLISHED_SIZE} | facts
    missing = [name for name in ("num_heads", "image_size") if name not in facts]
    if missing:
        raise CheckpointError(
            f"{path} does not tell {' and '.join(missing)}, and no published model has its shape "
            f"(width {shape[0]}, depth {shape[1]}, mlp_dim {shape[2]:,}). Say so: "
            f"hints={{{', '.join(f'{name!r}: ...' for name in missing)}}}, or "
            f"--hints={','.join(f'{name}=...' for name in missing)}."
        )
    if facts.get("pool") in ("token", "token_gap"):
        facts = facts | {"class_token": False}  # It follows from what the head reads.
    try:
        return VitConfig(**facts)
    except ConfigError as error:
        raise CheckpointError(f"{path} describes no model that can be built: {error}") from error


def place(
    rows: int,
    prefixes: Mapping[str, int],
    *,
    patch_size: tuple[int, int],
    image_size: tuple[int, int] | None,
    path: pathlib.Path,
) -> dict[str, Any]:
    """The image size, and which prefix tokens have rows, from a position embedding's rows.

    Args:
      rows: of the position embedding.
      prefixes: values of `posemb_prefix` that may be, the likeliest first, and their rows.
      patch_size: of the model.
      image_size: if the caller told; else a square is looked for.
      path: for errors.

    Raises:
      CheckpointError: the rows fit no grid.
    """
    if image_size is not None:
        grid = tuple(side // patch for side, patch in zip(image_size, patch_size, strict=True))
        for name, prefix in prefixes.items():
            if rows - prefix == math.prod(grid):
                return {"image_size": image_size, "posemb_prefix": name}
        raise CheckpointError(
            f"{path}: its position embedding has {rows:,} rows, which the image size "
            f"{image_size[0]}x{image_size[1]} with patches of {patch_size[0]}x{patch_size[1]} does "
            f"not give ({math.prod(grid):,} patches). image_size, of its config.json or a hint, is "
            "that of the checkpoint as it is stored; another wanted size is an argument of its own."
        )
    for name, prefix in prefixes.items():
        side = math.isqrt(max(rows - prefix, 0))
        if side and side * side == rows - prefix:
            size = (side * patch_size[0], side * patch_size[1])
            return {"image_size": size, "posemb_prefix": name}
    raise CheckpointError(
        f"{path}: its position embedding has {rows:,} rows, of no square grid. Give its image "
        "size: hints={'image_size': (height, width)}, or --hints=image_size=HEIGHTxWIDTH."
    )
