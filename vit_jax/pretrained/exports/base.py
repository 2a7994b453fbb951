"""Helpers of all exports: parameters under a format's names, and what a format cannot express."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import PyTree, Shaped

from vit_jax.config.fields import Role, declarations, has_effect
from vit_jax.errors import CheckpointError
from vit_jax.models import MixerConfig, ModelConfig, VitConfig
from vit_jax.models.positions import sincos2d
from vit_jax.parallel.rules import path_name
from vit_jax.pretrained.formats import entries as tables
from vit_jax.pretrained.formats.entries import Entry
from vit_jax.pretrained.load import RUN_FORMAT
from vit_jax.pretrained.mapping import unrolled_shapes
from vit_jax.pretrained.model import Pretrained

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True)
class Reasons:
    """Reasons why a format cannot express a model.

    Attributes:
      impossible: what the format cannot represent; outputs would be those of another model.
      preprocessing: how its library prepares images slightly differently; outputs for the same
        pixels do not change. The user may accept that.
      approximate: what its library computes slightly differently from the same pixels; the user may
        accept that.
      notes: remarks for the user, which do not prevent the export.
    """

    impossible: tuple[str, ...] = ()
    preprocessing: tuple[str, ...] = ()
    approximate: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __add__(self, other: "Reasons") -> "Reasons":
        return Reasons(
            self.impossible + other.impossible,
            self.preprocessing + other.preprocessing,
            self.approximate + other.approximate,
            self.notes + other.notes,
        )

    @property
    def accepted(self) -> tuple[str, ...]:
        """What the user of a written model should know."""
        return self.preprocessing + self.approximate + self.notes

    def check(self, pretrained: Pretrained, *, to: str, change_numerics: bool) -> None:
        """Raises CheckpointError with all reasons.

        Args:
          pretrained: the model; only the owner of a run can change its settings.
          to: the format.
          change_numerics: whether the user accepts other preprocessing and other numerics.
        """
        is_run = pretrained.format == RUN_FORMAT
        sections = "\n".join(self._sections())
        if self.impossible:
            train = "Train with the values named above, or use" if is_run else "Use"
            raise CheckpointError(
                f"This model cannot be written in the format {to}:\n{sections}\n"
                f"{train} the format orbax, stablehlo or onnx."
            )
        if change_numerics or not self.preprocessing + self.approximate:
            return
        only_way = (
            " A finished run can be written in no other way; to avoid the differences, train a new "
            "run with the values named above in data.eval_transforms and model."
            if is_run else ""
        )  # fmt: skip
        raise CheckpointError(
            f"This model cannot be written in the format {to} without differences.\n{sections}\n"
            "Pass change_numerics=True (--change_numerics) to write it all the same, with these "
            f"differences.{only_way}"
        )

    def _sections(self) -> Iterator[str]:
        """Yields all reasons and notes, by kind."""
        if self.impossible:
            yield _lines(self.impossible)
        if self.preprocessing:
            yield f"In its preprocessing:\n{_lines(self.preprocessing)}"
        if self.approximate:
            yield f"In its outputs for the same pixels:\n{_lines(self.approximate)}"
        elif not self.impossible:
            yield "Its outputs for the same pixels are equal."
        if self.notes:
            yield f"Notes, which alone prevent nothing:\n{_lines(self.notes)}"


def _lines(reasons: tuple[str, ...]) -> str:
    return "\n".join(f"  {reason}" for reason in reasons)


class Anything:
    """Stands for every value of a field that a format can express without limits."""


ANYTHING = Anything()
Values = tuple[Any, ...] | Anything  # Of a field, which a format can express.
BOTH = (True, False)


# Libraries by target, for messages.
_LIBRARIES = {
    "hf": "transformers",
    "timm": "timm",
    "google": "vision_transformer",
    "big_vision": "big_vision",
}
# Why a library lacks a value of a field, where the value alone does not say it.
_WHY = {
    "ln_eps": "transformers' own ViTs have 1e-12, so each of them differs",
    "pool": "no other input of a classifier",
    "rep_size": "no tanh layer before a classifier",
    "num_classes": "no classifier for this model; num_classes=0 writes its body",
}
# Of the LayerNorm of transformers' ViT and DeiT; timm and Google's code have 1e-6.
_TRANSFORMERS_EPS = 1e-12


def compare(config: ModelConfig, expressible: Mapping[str, Values], *, to: str) -> Reasons:
    """Returns the reasons why a format cannot express a model's architecture.

    Every format can express sizes, except for limits in `expressible`. Another field that is absent
    from `expressible` must have its default, so a new field is refused until a format supports it.
    A kernel that resizes positions has no effect on images of the model's own size: it is a note.

    Raises:
      CheckpointError: the format supports only ViTs, and this is another model.
    """
    if not isinstance(config, VitConfig):
        raise no_export(config, to=to)
    reasons = {Role.ARCHITECTURE: [], Role.NUMERICS: [], Role.SIZE: []}
    notes = []
    for field, declaration in declarations(config):
        fixed = declaration.role in (Role.ARCHITECTURE, Role.NUMERICS)
        accepted = expressible.get(field.name, (field.default,) if fixed else ANYTHING)
        value = getattr(config, field.name)
        if (
            isinstance(accepted, Anything)
            or value in accepted
            or not has_effect(config, field.name)
        ):
            continue
        if field.name == "posemb_resize":
            notes.append(
                f"for other image sizes {_LIBRARIES[to]} resizes the position embedding by "
                f"{' or '.join(accepted)}, vit_jax by {value}"
            )
        else:
            reasons[declaration.role].append(_reason(field.name, value, accepted, to=to))
    architecture = reasons[Role.ARCHITECTURE] + reasons[Role.SIZE]
    return Reasons(
        impossible=tuple(architecture),
        approximate=tuple(reasons[Role.NUMERICS]),
        notes=tuple(notes),
    )


def _reason(name: str, value: Any, accepted: tuple[Any, ...], *, to: str) -> str:
    """Returns a sentence: what the model has, and what the library has."""
    if name == "stem":
        return f"its patches are of a ResNet's feature map; {_LIBRARIES[to]} has no such hybrid"
    values = " or ".join(map(repr, accepted))
    why = f" ({_WHY[name]})" if name in _WHY else ""
    if (name, value) == ("ln_eps", _TRANSFORMERS_EPS) and to != "hf":
        why = " (ViT checkpoints of transformers have 1e-12: they always need change_numerics)"
    return f"model.{name} is {value!r}; {_LIBRARIES[to]} has only {values}{why}"


def no_export(config: ModelConfig, *, to: str) -> CheckpointError:
    """Returns the error for a kind of model that a target does not write."""
    kind = "an MLP-Mixer" if isinstance(config, MixerConfig) else "a BiT ResNet"
    return CheckpointError(
        f"The format {to} has ViTs only, and this is {kind}. Use the format big_vision, orbax, "
        "stablehlo or onnx."
    )


class HostParameters(Mapping[str, np.ndarray]):
    """A model's parameters by path, with unstacked blocks; each is copied to the host on access."""

    def __init__(self, params: PyTree, config: ModelConfig):
        self.shapes = unrolled_shapes(config)
        leaves = jax.tree_util.tree_leaves_with_path(params)
        self._leaves = {path_name(path): leaf for path, leaf in leaves}

    def __getitem__(self, path: str) -> np.ndarray:
        if path in self._leaves:
            return np.asarray(self._leaves[path])
        before, _, after = path.partition("/block_")
        i, _, rest = after.partition("/")
        return np.asarray(self._leaves[f"{before}/blocks/{rest}"][int(i)])

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def with_learned_positions(params: PyTree, config: VitConfig) -> tuple[PyTree, VitConfig]:
    """Converts a model with sincos2d positions to one with a table of the same values."""
    if config.posemb != "sincos2d":
        return params, config
    table = sincos2d(config.grid, config.width)
    return (
        {**params, "pos_embedding": table},
        dataclasses.replace(config, posemb="learned", posemb_prefix="none"),
    )


def with_class_row(params: PyTree, config: VitConfig) -> tuple[PyTree, VitConfig]:
    """Converts a model whose class token has no position to one whose position is zero."""
    rows = config.num_prefix - config.registers - config.posemb_rows
    if config.posemb != "learned" or rows <= 0:
        return params, config
    table = params["pos_embedding"]
    zeros = jnp.zeros((1, rows, config.width), table.dtype)
    return (
        {**params, "pos_embedding": jnp.concatenate([zeros, table], axis=1)},
        dataclasses.replace(config, posemb_prefix="class"),
    )


def without_class_row(params: PyTree, config: VitConfig) -> tuple[PyTree, VitConfig]:
    """Converts a model to one without a position of the class token, by adding it to the token."""
    if config.posemb != "learned" or config.posemb_prefix != "class" or config.distilled:
        return params, config
    table = params["pos_embedding"]
    return (
        {**params, "cls": params["cls"] + table[:, :1], "pos_embedding": table[:, 1:]},
        dataclasses.replace(config, posemb_prefix="none"),
    )


def export_tensors(
    params: PyTree, config: ModelConfig, entries: Iterable[Entry], *, dtype: str, to: str
) -> Iterator[tuple[str, Shaped[np.ndarray, "..."]]]:
    """Yields the names and arrays of an export, one tensor at a time.

    The first of the format's `entries` for a parameter decides its name; `to` is for errors.

    Raises:
      CheckpointError: the format has no name for a parameter, or a tensor would lack a part.
    """
    ours, entries = HostParameters(params, config), tuple(entries)
    parts: dict[str, dict[int, tuple[str, tables.TensorLocation]]] = {}
    for path in ours:
        source = tables.export_location(entries, path)
        if source is None:
            raise CheckpointError(f"The format {to} has no name for the parameter {path}.")
        parts.setdefault(source.theirs, {})[source.part[0]] = (path, source)
    for name, by_index in parts.items():
        missing = set(range(next(iter(by_index.values()))[1].part[1])) - set(by_index)
        if missing:
            raise CheckpointError(
                f"Format {to}: the tensor {name} has a part for which this model has no parameter."
            )
        arrays = [tables.save(ours[path], source) for _, (path, source) in sorted(by_index.items())]
        whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        yield name, np.ascontiguousarray(whole.astype(DTYPES[dtype]))
