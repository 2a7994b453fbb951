"""Where every parameter of a foreign checkpoint is, known before a tensor is read."""

import dataclasses
import difflib
import os
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax

from vit_jax.errors import CheckpointError, ConfigError, VitJaxError, did_you_mean
from vit_jax.models import ModelConfig, param_shapes
from vit_jax.optim.losses import LOSSES
from vit_jax.parallel.rules import path_name
from vit_jax.pretrained.checkpoint_file import open_foreign
from vit_jax.pretrained.formats import FORMATS, Description, Foreign, Format, Hints
from vit_jax.pretrained.formats import entries as tables
from vit_jax.pretrained.formats.names import Renamed

# problem_type, of transformers' config.json -> the loss that a head was trained with.
PROBLEM_TYPES = {
    "single_label_classification": "softmax_xent",
    "multi_label_classification": "sigmoid_xent",
    "regression": "",
}
REGRESSION = "regression"  # The hint for a head of no loss here.


def head_loss(config: Mapping[str, Any], num_classes: int) -> str:
    """The loss that a head was trained with, as transformers' pipelines conclude it.

    Args:
      config: of config.json; problem_type may be missing or null.
      num_classes: of the head; a single class is a sigmoid's.

    Returns:
      softmax_xent, sigmoid_xent, or "" for a regression, whose outputs are not of classes.

    Raises:
      CheckpointError: there is no such problem_type.
    """
    problem = config.get("problem_type") or "single_label_classification"
    if not isinstance(problem, str) or problem not in PROBLEM_TYPES:
        raise CheckpointError(
            f"config.json has problem_type={problem!r}. "
            + did_you_mean(str(problem), PROBLEM_TYPES)
        )
    loss = PROBLEM_TYPES[problem]
    return "sigmoid_xent" if loss and num_classes == 1 else loss


@dataclasses.dataclass(frozen=True)
class CheckpointMap:
    """Where every parameter of a model comes from, before a tensor is read."""

    foreign: Foreign
    format: Format
    description: Description
    loss: str  # That its head was trained with: see `head_loss`.
    sources: Mapping[str, tables.TensorLocation]
    fresh: tuple[str, ...]  # Paths that the caller left out: they get initial values.
    left_out: tuple[str, ...]


def map_checkpoint(
    path: str | os.PathLike,
    *,
    hints: Mapping[str, Any] | None = None,
    leave_out: Collection[str] = (),
) -> CheckpointMap:
    """Recognises a checkpoint and accounts for all its tensors, without reading them.

    Raises:
      CheckpointError: see `load_pretrained`.
      ConfigError: a hint or a pattern is none, or a pattern matches nothing.
    """
    patterns = _compiled(leave_out)
    foreign = open_foreign(path)
    found = next((format_ for format_ in FORMATS if format_.recognises(foreign)), None)
    if found is None:
        some = ", ".join(list(foreign.tensors)[:6])
        raise CheckpointError(
            f"{path} holds {len(foreign.tensors):,} tensors ({some}, ...), of no known format: "
            f"{', '.join(format_.name for format_ in FORMATS)}."
        )
    hints = Hints(hints)
    try:
        description = found.describe(foreign, hints)
    except VitJaxError:
        raise
    except Exception as error:  # Whatever looking up something in a stranger's JSON raises.
        raise CheckpointError(
            f"{path} has the names of {found.name}, but its tensors or its config.json are not as "
            f"they are there ({type(error).__name__}: {str(error)[:200]}). Download it again."
        ) from error
    loss = _loss(foreign, hints, description.config.num_classes)
    hints.check_all_used(f"a checkpoint of {found.name}")
    return _account(CheckpointMap(foreign, found, description, loss, {}, (), ()), patterns)


def _loss(foreign: Foreign, hints: Hints, num_classes: int) -> str:
    """The loss of a head: what config.json says, or else the hint, or else the usual one."""
    usual = head_loss(foreign.config, num_classes)
    hinted = hints.get("loss") if num_classes else None
    if hinted is None:
        return usual
    accepted = {**dict.fromkeys(LOSSES), REGRESSION: None}
    if hinted not in accepted:
        raise ConfigError(f"The hint loss={hinted!r}: {did_you_mean(hinted, accepted)}")
    loss = "" if hinted == REGRESSION else hinted
    if foreign.config.get("problem_type") and loss != usual:
        raise CheckpointError(
            f"The hint loss={hinted!r} contradicts config.json, which has problem_type="
            f"{foreign.config['problem_type']!r}. Leave the hint out, or correct config.json."
        )
    return loss


def _compiled(leave_out: Collection[str]) -> list[re.Pattern[str]]:
    if isinstance(leave_out, str):
        raise ConfigError(f"leave_out={leave_out!r}: write a list of patterns.")
    try:
        return [re.compile(pattern) for pattern in leave_out]
    except re.error as error:
        raise ConfigError(
            f"leave_out (--leave_out) has {error.pattern!r}, which is no regular expression: "
            f"{error}. A pattern matches whole names, such as head/.* or .*\\.bias."
        ) from error


def _account(mapping: CheckpointMap, wanted: Collection[re.Pattern[str]]) -> CheckpointMap:
    """Finds a source for every parameter, and a use or a name for every tensor."""
    description, tensors = mapping.description, mapping.description.tensors
    unused = wanted + [re.compile(pattern) for pattern in description.unused]
    shapes = unrolled_shapes(description.config)
    entries = mapping.format.entries(description.config)
    sources, missing = tables.find(entries, shapes, tensors)
    _check_use(wanted, (*shapes, *tensors, *mapping.foreign.tensors))
    fresh = tuple(
        path
        for path in shapes
        if _matches(wanted, path) or (path in sources and _matches(wanted, sources[path].theirs))
    )
    sources = {path: source for path, source in sources.items() if path not in fresh}

    used = {source.theirs for source in sources.values()}
    others = {name: tensors[name].shape for name in tensors if name not in used}
    others |= {name: mapping.foreign.tensors[name].shape for name in _beside(mapping)}
    # An empty tensor, such as no registers, says nothing.
    left_out = tuple(name for name, shape in others.items() if 0 in shape or _matches(unused, name))
    lines = [(name, others[name], "-", None) for name in others if name not in left_out]
    lines += [("-", None, path, shapes[path]) for path in missing if path not in fresh]
    for path, source in sources.items():
        theirs = tensors[source.theirs].shape
        if not tables.fits(source, theirs, shapes[path]):
            lines.append((source.theirs, theirs, path, shapes[path]))
        _check_dtype(mapping, source.theirs)
    if lines:
        raise CheckpointError(
            f"{mapping.foreign.path} ({mapping.format.name}) does not fit the model that it "
            f"describes, {describe_briefly(description.config)}:\n{_table(lines)}\n"
            "Name in leave_out (--leave_out) what may be missing or is of no use."
        )
    return dataclasses.replace(mapping, sources=sources, fresh=fresh, left_out=left_out)


def _check_use(wanted: Collection[re.Pattern[str]], names: Collection[str]) -> None:
    """A pattern that matches nothing is a slip: what it was to leave out would be loaded."""
    for pattern in wanted:
        if not any(pattern.fullmatch(name) for name in names):
            near = difflib.get_close_matches(pattern.pattern, set(names), n=3, cutoff=0)
            raise ConfigError(
                f'leave_out (--leave_out): "{pattern.pattern}" matches no whole name of a tensor '
                f"or a parameter. There are {', '.join(near)}, ..."
            )


def _check_dtype(mapping: CheckpointMap, name: str) -> None:
    """Whole numbers are no parameters until they are scaled, which no format here describes."""
    dtype = mapping.description.tensors[name].dtype
    if dtype.kind in "iub":
        raise CheckpointError(
            f"{mapping.foreign.path}: {name} is of {dtype}, as in a quantised checkpoint. Take the "
            "one of floating-point numbers that it was made of."
        )


def _matches(patterns: Collection[re.Pattern[str]], name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in patterns)


def _beside(mapping: CheckpointMap) -> list[str]:
    """The tensors of the file that are not under the model's prefix."""
    layer, seen = mapping.description.tensors, set(mapping.foreign.tensors)
    while isinstance(layer, Renamed):  # Stacked blocks are renamed twice.
        names = {theirs for theirs, _ in layer.original.values()}
        if layer.below is mapping.foreign.tensors:
            return sorted(seen - names)
        layer = layer.below
    return []


def describe_briefly(config: ModelConfig) -> str:
    """A model in a few words: sizes."""
    fields = ("width", "depth", "mlp_dim", "num_heads", "num_classes")
    return ", ".join(f"{f} {getattr(config, f)}" for f in fields if hasattr(config, f))


def _table(lines) -> str:
    """Their tensors and our parameters side by side, at most twenty lines."""
    rows = [("tensor", "shape", "parameter", "shape")]
    rows += [(a, _shape(b), c, _shape(d)) for a, b, c, d in lines[:20]]
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    text = ["  " + "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
    more = [f"  ... and {len(lines) - 20} more"] if len(lines) > 20 else []
    return "\n".join([line.rstrip() for line in text] + more)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else "x".join(map(str, shape)) or "scalar"


def unrolled_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's parameters by path, blocks one by one."""
    if hasattr(config, "scan"):
        config = dataclasses.replace(config, scan=False)
    leaves = jax.tree_util.tree_leaves_with_path(param_shapes(config))
    return {path_name(path): leaf.shape for path, leaf in leaves}
