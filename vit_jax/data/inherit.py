"""Transforms that a run inherits from the checkpoint of its `init_from`.

In `data.train_transforms` and `data.eval_transforms`, with t the checkpoint's own evaluation:

    {"op": "inherit"}                           stands for all of t,
    {"op": "inherit", "part": "decode"}         for its decoding: channels, EXIF orientation,
    {"op": "inherit", "part": "normalization"}  for its value_range or normalize,
    "method": "inherit"                         for the interpolation of its resize.

They are replaced before a run begins (`vit_jax.training.init_from`), so its config.json has plain
transforms, and the run depends on the checkpoint's files only once.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vit_jax.errors import ConfigError, did_you_mean

Entries = Sequence[Mapping[str, Any]]  # Of a config: dicts, or immutable ones.

INHERIT = "inherit"
PARTS = ("all", "decode", "normalization")
_NORMALIZATION = ("value_range", "normalize")
_RESIZE = ("resize", "resize_small")


def inherits(transforms: Iterable[Any]) -> bool:
    """Returns whether transforms of a config have a part that stands for a checkpoint's."""
    return any(isinstance(entry, Mapping) and INHERIT in entry.values() for entry in transforms)


def resolve(transforms: Entries, published: Entries, *, key: str) -> tuple[Any, ...]:
    """Returns the transforms with the checkpoint's in the place of what stands for them.

    Args:
      transforms: of a config.
      published: the checkpoint's evaluation transforms, for the run's image size.
      key: the config key of `transforms`, for messages.

    Raises:
      ConfigError: there is no such part, or the checkpoint lacks it.
    """
    resolved: list[Any] = []
    for i, entry in enumerate(transforms):
        if not inherits([entry]):
            resolved.append(entry)
        elif entry.get("op") == INHERIT:
            resolved += _part(entry, published, where=f"{key}[{i}]")
        else:
            methods = [op.get("method", "bilinear") for op in published if op["op"] in _RESIZE]
            method = methods[0] if methods else "bilinear"
            resolved.append({k: method if v == INHERIT else v for k, v in entry.items()})
    return tuple(resolved)


def keep(transforms: Entries, earlier: Entries) -> tuple[Any, ...]:
    """Returns the transforms of a run that is resumed, as they were resolved when it began.

    What `transforms` state themselves is kept, so that a change of the config shows.

    Args:
      transforms: of the config now.
      earlier: of the run's config.json.
    """
    kept: list[Any] = []
    extra = len(earlier) - len(transforms)  # "all" stands for several.
    for entry in transforms:
        rest = list(earlier[len(kept) :])
        if not inherits([entry]) or not rest:
            kept.append(entry)
        elif entry.get("op") != INHERIT:
            kept.append({k: rest[0].get(k, v) if v == INHERIT else v for k, v in entry.items()})
        else:
            kept += rest[: extra + 1] if entry.get("part", "all") == "all" else rest[:1]
    return tuple(kept)


def _part(entry: Mapping[str, Any], published: Entries, *, where: str) -> Entries:
    """Returns the part of a checkpoint's transforms that an entry stands for."""
    if unknown := entry.keys() - {"op", "part"}:
        raise ConfigError(f'{where} ("inherit") takes only part, not {", ".join(sorted(unknown))}.')
    part = entry.get("part", "all")
    if part == "all":
        return published
    if part == "decode":
        return published[:1]
    if part != "normalization":
        hint = did_you_mean(str(part), PARTS)
        raise ConfigError(f'{where} ("inherit"): there is no part "{part}". {hint}')
    found = [op for op in published if op["op"] in _NORMALIZATION]
    if not found:
        raise ConfigError(
            f"{where}: the checkpoint's preprocessing has no normalization to inherit: write "
            "value_range or normalize."
        )
    return tuple(found[-1:])
