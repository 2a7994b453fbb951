"""The interface of a checkpoint format, and helpers that the formats share."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from vit_jax.config.fields import declarations, has_effect
from vit_jax.data.recipes import Transforms
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.models import VARIANTS, ModelConfig, VitConfig
from vit_jax.pretrained.formats.entries import Entry
from vit_jax.pretrained.formats.hints import Hints
from vit_jax.pretrained.tensors import Tensors


@dataclasses.dataclass(frozen=True)
class CheckpointFiles:
    """The opened files of a checkpoint.

    Attributes:
      path: local file or folder.
      tensors: the tensors of all files.
      config: content of config.json; {} if it does not exist.
      preprocessor: content of preprocessor_config.json; {} if it does not exist.
      submodel: "img" of FILE.npz:img; "" without a colon.
    """

    path: pathlib.Path
    tensors: Tensors
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    submodel: str = ""


@dataclasses.dataclass(frozen=True)
class Description:
    """The model in a checkpoint, described before a tensor is read.

    Attributes:
      config: the config of the published model.
      tensors: the tensors, under the names that the format's entries use.
      unused: patterns of tensors that an image model does not need: optimizer states, decoders,
        mask tokens.
      transforms: the publisher's preprocessing, for the published image size.
      labels: class names, or None.
      notes: remarks for the user.
      kind: the variant of the format, for `vit_jax.inspect`, such as "model_type vit".
      assumed: fields that neither the file nor a hint states, with the assumed values. If one is
        wrong, the outputs are wrong.
    """

    config: ModelConfig
    tensors: Tensors
    unused: tuple[str, ...]
    transforms: Transforms
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    kind: str = ""
    assumed: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def assumption(self) -> str:
        """`assumed` as text; "" if nothing is assumed."""
        return ", ".join(f"{field}={_shown(value)}" for field, value in self.assumed.items())

    @property
    def all_notes(self) -> tuple[str, ...]:
        """The notes, with one about assumed fields."""
        if not self.assumed:
            return self.notes
        note = f"assumed, as the file does not state it (hints change it): {self.assumption}"
        return (*self.notes, note)


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of published checkpoints.

    Attributes:
      name: shown to the user.
      recognises: returns whether a checkpoint has this format, from its contents.
      describe: returns the model of a checkpoint; raises CheckpointError if it is undetermined.
      entries: returns the tensor names of a model's parameters.
    """

    name: str
    recognises: Callable[[CheckpointFiles], bool]
    describe: Callable[[CheckpointFiles, Hints], Description]
    entries: Callable[[Any], tuple[Entry, ...]]


# (width, depth, mlp_dim, gated) -> number of heads of published models; no tensor shape shows it.
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
_PUBLISHED_SIZE = (224, 224)  # Image size of published models without a position embedding.


def complete_config(
    facts: dict[str, Any], assumed: Mapping[str, Any], hints: Hints, *, path: pathlib.Path
) -> tuple[VitConfig, dict[str, Any]]:
    """Returns a model's config; missing fields are those of the published model of its shape.

    Args:
      facts: known fields: from the file, from hints, and assumed ones.
      assumed: the assumed ones of these.
      hints: the caller's hints; those without an effect on this model are discarded.
      path: for errors.

    Returns:
      The config, and the assumed fields that have an effect, including those of the published
      model.

    Raises:
      CheckpointError: a field is missing, or the fields are invalid.
    """
    gated = facts.get("mlp", "gelu") in ("swiglu", "geglu")
    shape = (facts["width"], facts["depth"], facts["mlp_dim"], gated)
    heads = _HEADS.get(shape)
    if heads is not None:
        published = {"num_heads": heads, "image_size": _PUBLISHED_SIZE}
        added = {field: value for field, value in published.items() if field not in facts}
        facts, assumed = facts | added, {**assumed, **added}
    missing = [name for name in ("num_heads", "image_size") if name not in facts]
    if missing:
        raise CheckpointError(
            f"{path} does not state {' and '.join(missing)}, and no published model has its shape "
            f"(width {shape[0]}, depth {shape[1]}, mlp_dim {shape[2]:,}). Give hints: "
            f"hints={{{', '.join(f'{name!r}: ...' for name in missing)}}}, or "
            f"--hints={','.join(f'{name}=...' for name in missing)}."
        )
    if facts.get("pool") in ("token", "token_gap"):
        facts = facts | {"class_token": False}  # These poolings imply a class token.
    try:
        config = VitConfig(**facts)
    except ConfigError as error:
        raise CheckpointError(f"{path} describes no model that can be built: {error}") from error
    without_effect = {
        field.name for field, _ in declarations(config) if not has_effect(config, field.name)
    }
    if config.mlp in ("silu", "swiglu") and not config.pool.startswith("map"):
        without_effect.add("gelu")
    hints.discard(without_effect)
    return config, {field: value for field, value in assumed.items() if field not in without_effect}


def infer_image_size(
    rows: int,
    prefixes: Mapping[str, int],
    *,
    patch_size: tuple[int, int],
    image_size: tuple[int, int] | None,
    path: pathlib.Path,
) -> dict[str, Any]:
    """Returns `image_size` and `posemb_prefix` that fit the rows of a position embedding.

    Args:
      rows: number of rows of the position embedding.
      prefixes: possible values of `posemb_prefix`, the likeliest first, and their numbers of rows.
      patch_size: (height, width) in pixels.
      image_size: (height, width) in pixels; None: the image is a square.
      path: for errors.

    Raises:
      CheckpointError: the rows fit no grid, or squares of several sizes.
    """
    if image_size is not None:
        grid = tuple(side // patch for side, patch in zip(image_size, patch_size, strict=True))
        for name, prefix in prefixes.items():
            if rows - prefix == math.prod(grid):
                return {"image_size": image_size, "posemb_prefix": name}
        raise CheckpointError(
            f"{path}: its position embedding has {rows:,} rows, which the image size "
            f"{image_size[0]}x{image_size[1]} with patches of {patch_size[0]}x{patch_size[1]} does "
            f"not give ({math.prod(grid):,} patches). image_size in config.json or in a hint is "
            "the stored size; to load another size, pass image_size as an argument of its own."
        )
    squares: dict[tuple[int, int], str] = {}
    for name, prefix in prefixes.items():
        side = math.isqrt(max(rows - prefix, 0))
        if side and side * side == rows - prefix:
            squares.setdefault((side * patch_size[0], side * patch_size[1]), name)
    if len(squares) == 1:
        ((size, name),) = squares.items()
        return {"image_size": size, "posemb_prefix": name}
    fits = " or ".join(map(_shown, squares)) or "no square grid"
    raise CheckpointError(
        f"{path}: its position embedding has {rows:,} rows, of {fits}. Give its image "
        "size: hints={'image_size': (height, width)}, or --hints=image_size=HEIGHTxWIDTH."
    )


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
