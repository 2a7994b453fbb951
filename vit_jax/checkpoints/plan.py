"""Where every parameter of a foreign checkpoint is, known before a tensor is read."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax

from vit_jax.checkpoints.foreign import open_foreign
from vit_jax.checkpoints.formats import FORMATS, Description, Foreign, Format, Hints
from vit_jax.checkpoints.formats import entries as tables
from vit_jax.checkpoints.formats.names import Renamed
from vit_jax.errors import CheckpointError
from vit_jax.models import ModelConfig, param_shapes
from vit_jax.parallel.rules import path_name


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where every parameter of a model comes from, before a tensor is read."""

    foreign: Foreign
    format: Format
    description: Description
    sources: Mapping[str, tables.Source]
    fresh: tuple[str, ...]  # Paths that the caller left out: they get initial values.
    left_out: tuple[str, ...]


def make_plan(
    path: str, *, hints: Mapping[str, Any] | None = None, leave_out: Collection[str] = ()
) -> Plan:
    """Recognises a checkpoint and accounts for all its tensors, without reading them.

    Raises:
      CheckpointError: see `load_pretrained`.
    """
    foreign = open_foreign(path)
    found = next((format_ for format_ in FORMATS if format_.recognises(foreign)), None)
    if found is None:
        some = ", ".join(list(foreign.tensors)[:6])
        raise CheckpointError(
            f"{path} holds {len(foreign.tensors):,} tensors ({some}, ...), of no known format: "
            f"{', '.join(format_.name for format_ in FORMATS)}."
        )
    description = found.describe(foreign, Hints(hints))
    return _account(Plan(foreign, found, description, {}, (), ()), leave_out)


def _account(plan: Plan, leave_out: Collection[str]) -> Plan:
    """Finds a source for every parameter, and a use or a name for every tensor."""
    description, tensors = plan.description, plan.description.tensors
    wanted = [re.compile(pattern) for pattern in leave_out]
    unused = wanted + [re.compile(pattern) for pattern in description.unused]
    shapes = unrolled_shapes(description.config)
    entries = plan.format.entries(description.config)
    sources, missing = tables.find(entries, shapes, tensors)
    fresh = tuple(path for path in shapes if _matches(wanted, path))
    sources = {path: source for path, source in sources.items() if path not in fresh}

    used = {source.theirs for source in sources.values()}
    others = {name: tensors[name].shape for name in tensors if name not in used}
    others |= {name: plan.foreign.tensors[name].shape for name in _beside(plan)}
    # An empty tensor, such as no registers, says nothing.
    left_out = tuple(name for name, shape in others.items() if 0 in shape or _matches(unused, name))
    lines = [(name, others[name], "-", None) for name in others if name not in left_out]
    lines += [("-", None, path, shapes[path]) for path in missing if path not in fresh]
    for path, source in sources.items():
        theirs = tensors[source.theirs].shape
        if not tables.fits(source, theirs, shapes[path]):
            lines.append((source.theirs, theirs, path, shapes[path]))
    if lines:
        raise CheckpointError(
            f"{plan.foreign.path} ({plan.format.name}) does not fit the model that it describes, "
            f"{describe_briefly(description.config)}:\n{_table(lines)}\n"
            "Name in leave_out (--leave_out) what may be missing or is of no use."
        )
    return dataclasses.replace(plan, sources=sources, fresh=fresh, left_out=left_out)


def _matches(patterns: Collection[re.Pattern[str]], name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in patterns)


def _beside(plan: Plan) -> list[str]:
    """The tensors of the file that are not under the model's prefix."""
    layer, seen = plan.description.tensors, set(plan.foreign.tensors)
    while isinstance(layer, Renamed):  # Stacked blocks are renamed twice.
        names = {theirs for theirs, _ in layer.original.values()}
        if layer.below is plan.foreign.tensors:
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
