"""Finds the source of every parameter in a published checkpoint before a tensor is read."""

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
from vit_jax.pretrained.checkpoint_file import open_checkpoint
from vit_jax.pretrained.formats import FORMATS, CheckpointFiles, Description, Format, Hints
from vit_jax.pretrained.formats import entries as tables
from vit_jax.pretrained.formats.names import Renamed

# problem_type in transformers' config.json -> the loss that the head was trained with.
PROBLEM_TYPES = {
    "single_label_classification": "softmax_xent",
    "multi_label_classification": "sigmoid_xent",
    "regression": "",
}
REGRESSION = "regression"  # The hint loss=regression, for a head without a loss in vit_jax.


def head_loss(config: Mapping[str, Any], num_classes: int) -> str:
    """Returns the loss that a head was trained with, by the rule of transformers' pipelines.

    Args:
      config: content of config.json; problem_type may be missing or null.
      num_classes: number of outputs; a single one has a sigmoid.

    Returns:
      softmax_xent, sigmoid_xent, or "" for a regression, whose outputs are not of classes.

    Raises:
      CheckpointError: problem_type is unknown.
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
    """The source of every parameter of a model."""

    files: CheckpointFiles
    format: Format
    description: Description
    loss: str  # See `head_loss`.
    sources: Mapping[str, tables.TensorLocation]  # By parameter path.
    fresh: tuple[str, ...]  # Parameter paths that the caller left out: they get initial values.
    left_out: tuple[str, ...]  # Names of tensors that are not read.


def map_checkpoint(
    path: str | os.PathLike,
    *,
    hints: Mapping[str, Any] | None = None,
    leave_out: Collection[str] = (),
) -> CheckpointMap:
    """Recognises a checkpoint and accounts for all its tensors, without reading them.

    The arguments are those of `load_pretrained`.

    Raises:
      CheckpointError: see `load_pretrained`.
      ConfigError: a hint or a pattern is invalid, or a pattern matches nothing.
    """
    patterns = _compiled(leave_out)
    files = open_checkpoint(path)
    format_ = next((format_ for format_ in FORMATS if format_.recognises(files)), None)
    if format_ is None:
        names = ", ".join(list(files.tensors)[:6])
        raise CheckpointError(
            f"{path} holds {len(files.tensors):,} tensors ({names}, ...), of no known format: "
            f"{', '.join(format_.name for format_ in FORMATS)}."
        )
    tracked_hints = Hints(hints)
    try:
        description = format_.describe(files, tracked_hints)
    except VitJaxError:
        raise
    except Exception as error:  # Look-ups in an invalid config.json raise nearly every type.
        raise CheckpointError(
            f"{path} has the names of {format_.name}, but its tensors or its config.json do not "
            f"follow that format ({type(error).__name__}: {str(error)[:200]}). Download it again."
        ) from error
    loss = _loss(files, tracked_hints, description.config.num_classes)
    tracked_hints.check_all_used(f"a checkpoint of {format_.name}")
    return _account(CheckpointMap(files, format_, description, loss, {}, (), ()), patterns)


def _loss(files: CheckpointFiles, hints: Hints, num_classes: int) -> str:
    """Returns the loss of a head: from config.json, else from the hint, else softmax."""
    from_config = head_loss(files.config, num_classes)
    hinted = hints.get("loss") if num_classes else None
    if hinted is None:
        return from_config
    accepted = {**dict.fromkeys(LOSSES), REGRESSION: None}
    if hinted not in accepted:
        raise ConfigError(f"The hint loss={hinted!r}: {did_you_mean(hinted, accepted)}")
    loss = "" if hinted == REGRESSION else hinted
    if files.config.get("problem_type") and loss != from_config:
        raise CheckpointError(
            f"The hint loss={hinted!r} contradicts config.json, which has problem_type="
            f"{files.config['problem_type']!r}. Leave the hint out, or correct config.json."
        )
    return loss


def _compiled(leave_out: Collection[str]) -> list[re.Pattern[str]]:
    if isinstance(leave_out, str):
        raise ConfigError(f"leave_out={leave_out!r}: write a list of patterns.")
    try:
        return [re.compile(pattern) for pattern in leave_out]
    except re.error as error:
        raise ConfigError(
            f"leave_out (--leave_out) has {error.pattern!r}, which is not a regular expression: "
            f"{error}. A pattern matches whole names, such as head/.* or .*\\.bias."
        ) from error


def _account(mapping: CheckpointMap, leave_out: list[re.Pattern[str]]) -> CheckpointMap:
    """Finds the source of every parameter, and raises an error for a tensor without a use."""
    description, tensors = mapping.description, mapping.description.tensors
    unused = leave_out + [re.compile(pattern) for pattern in description.unused]
    shapes = unrolled_shapes(description.config)
    entries = mapping.format.entries(description.config)
    sources, missing = tables.find_locations(entries, shapes, tensors)
    _check_matches(leave_out, (*shapes, *tensors, *mapping.files.tensors))
    fresh = tuple(
        path
        for path in shapes
        if _matches(leave_out, path)
        or (path in sources and _matches(leave_out, sources[path].theirs))
    )
    sources = {path: source for path, source in sources.items() if path not in fresh}

    used = {source.theirs for source in sources.values()}
    others = {name: tensors[name].shape for name in tensors if name not in used}
    others |= {name: mapping.files.tensors[name].shape for name in _outside_prefix(mapping)}
    # An empty tensor (registers of a model without them) holds no values to use.
    left_out = tuple(name for name, shape in others.items() if 0 in shape or _matches(unused, name))
    lines: list[tuple[str, tuple[int, ...] | None, str, tuple[int, ...] | None]] = [
        (name, others[name], "-", None) for name in others if name not in left_out
    ]
    lines += [("-", None, path, shapes[path]) for path in missing if path not in fresh]
    for path, source in sources.items():
        theirs = tensors[source.theirs].shape
        if not tables.fits(source, theirs, shapes[path]):
            lines.append((source.theirs, theirs, path, shapes[path]))
        _check_dtype(mapping, source.theirs)
    if lines:
        raise CheckpointError(
            f"{mapping.files.path} ({mapping.format.name}) does not fit the model that it "
            f"describes, {_sizes(description.config)}:\n{_table(lines)}\n"
            "Name in leave_out (--leave_out) the tensors without a use, and the parameters to "
            "initialise."
        )
    return dataclasses.replace(mapping, sources=sources, fresh=fresh, left_out=left_out)


def _check_matches(patterns: Collection[re.Pattern[str]], names: Collection[str]) -> None:
    """Raises ConfigError for a pattern that matches no name: it is misspelt."""
    for pattern in patterns:
        if not any(pattern.fullmatch(name) for name in names):
            similar = difflib.get_close_matches(pattern.pattern, set(names), n=3, cutoff=0)
            raise ConfigError(
                f'leave_out (--leave_out): "{pattern.pattern}" matches no whole name of a tensor '
                f"or a parameter. There are {', '.join(similar)}, ..."
            )


def _check_dtype(mapping: CheckpointMap, name: str) -> None:
    """Raises CheckpointError for integers: no format here describes how to dequantise them."""
    dtype = mapping.description.tensors[name].dtype
    if dtype.kind in "iub":
        raise CheckpointError(
            f"{mapping.files.path}: {name} has the dtype {dtype}, as in a quantised checkpoint. "
            "Use the floating-point checkpoint that it was made from."
        )


def _matches(patterns: Collection[re.Pattern[str]], name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in patterns)


def _outside_prefix(mapping: CheckpointMap) -> list[str]:
    """Returns the names of the file's tensors that are not under the model's prefix."""
    view = mapping.description.tensors
    while isinstance(view, Renamed):  # Stacked blocks are renamed twice.
        names = {theirs for theirs, _ in view.original.values()}
        if view.below is mapping.files.tensors:
            return sorted(set(mapping.files.tensors) - names)
        view = view.below
    return []


def _sizes(config: ModelConfig) -> str:
    fields = ("width", "depth", "mlp_dim", "num_heads", "num_classes")
    return ", ".join(f"{f} {getattr(config, f)}" for f in fields if hasattr(config, f))


def _table(lines) -> str:
    """Formats tensors and parameters side by side, in at most twenty lines."""
    rows = [("tensor", "shape", "parameter", "shape")]
    rows += [(a, _shape(b), c, _shape(d)) for a, b, c, d in lines[:20]]
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    text = ["  " + "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
    more = [f"  ... and {len(lines) - 20} more"] if len(lines) > 20 else []
    return "\n".join([line.rstrip() for line in text] + more)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else "x".join(map(str, shape)) or "scalar"


def unrolled_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a model's parameters by path, with unstacked blocks."""
    if hasattr(config, "scan"):
        config = dataclasses.replace(config, scan=False)
    leaves = jax.tree_util.tree_leaves_with_path(param_shapes(config))
    return {path_name(path): leaf.shape for path, leaf in leaves}
