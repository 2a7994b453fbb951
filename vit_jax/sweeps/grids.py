"""Builds the points of a sweep, for the function `sweep()` of a config file.

A point is a dict of changes to the file's config: keys of the config ("optim.lr"), arguments of its
`get_config` with a leading colon (":model"), and two keys of the sweep itself: "name", the name of
the run's folder, and "branch_of", the run and the step whose state the run starts from.

    grid({":model": ("vit", "resnet")}, subset(60_000, (0.01, 0.1, 1)), {"seed": range(3)})

makes 18 points. The functions take and return lists of points, so they can be combined.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vit_jax.errors import ConfigError

Point = dict[str, Any]
Axes = Mapping[str, Iterable[Any]]

NAME, BRANCH_OF = "name", "branch_of"


def grid(*factors: Axes | Sequence[Point]) -> list[Point]:
    """Returns every combination of values and points (the Cartesian product).

    Args:
      *factors: {key: values}, or points by another function of this module. The last factor varies
        fastest.

    Raises:
      ConfigError: two factors set the same key.
    """
    lists = [points for factor in factors for points in _lists(factor)]
    combined = []
    for points in itertools.product(*lists):
        keys = [key for point in points for key in point]
        if duplicates := {key for key in keys if keys.count(key) > 1}:
            raise ConfigError(
                f"sweep: {', '.join(sorted(duplicates))} is set by two factors of a grid."
            )
        combined.append({key: value for point in points for key, value in point.items()})
    return combined


def _lists(factor: Axes | Sequence[Point]) -> list[list[Point]]:
    if isinstance(factor, Mapping):
        return [[{key: value} for value in values] for key, values in factor.items()]
    return [list(factor)]


def paired(axes: Axes) -> list[Point]:
    """Returns one point of the first values of all keys, one of the second values, and so on.

    Raises:
      ConfigError: the keys have different numbers of values.
    """
    columns = {key: list(values) for key, values in axes.items()}
    lengths = {key: len(values) for key, values in columns.items()}
    if len({*lengths.values()}) > 1:
        counts = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise ConfigError(f"sweep: paired needs equally many values of each key, and got {counts}.")
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def chain(*lists: Iterable[Point]) -> list[Point]:
    """Concatenates lists of points; keeps only the first of equal points."""
    points = []
    for point in itertools.chain(*lists):
        if point not in points:
            points.append(point)
    return points


def star(centre: Mapping[str, Any], axes: Axes) -> list[Point]:
    """Returns a centre and points that differ from it in one key: SoViT's sweep (arXiv 2305.13035).

    Args:
      centre: a value for each key.
      axes: for each key, the values that it takes while the others have the centre's values; may
        include the centre's value.

    Raises:
      ConfigError: a key of `axes` is not one of the centre's.
    """
    if unknown := axes.keys() - centre.keys():
        raise ConfigError(f"sweep: star's centre has no {', '.join(sorted(unknown))}.")
    arms = ({**centre, key: value} for key, values in axes.items() for value in values)
    return chain([dict(centre)], arms)


def subset(num_examples: int, shares: Iterable[int | float]) -> list[Point]:
    """Returns points with parts of the training split (nested for each seed).

    Args:
      num_examples: number of examples of the whole split (`config.data.split`).
      shares: shares of the split, above 0 and at most 1.

    Raises:
      ConfigError: a share is out of range, or less than one example.
    """
    points = []
    for share in shares:
        examples = round(num_examples * share) if 0 < share <= 1 else 0
        if not examples:
            raise ConfigError(
                f"sweep: a subset of {share} of {num_examples:,} examples: write shares such as "
                "0.1, above 0 and at most 1."
            )
        points.append({"data.examples": examples})
    return points


def durations(point: Mapping[str, Any], steps: Iterable[int], *, cooldown: float) -> list[Point]:
    """Returns runs of several lengths that cost little more than the longest one.

    The learning rate before the cooldown must not depend on the length of the run: use the schedule
    constant or rsqrt, with a warm-up in steps. The longest run (the trunk) saves the states at
    which the cooldowns of the shorter runs begin. The shorter runs (branches) start from these
    states and equal, to the bit, the same runs without a trunk.

    Args:
      point: the settings that all runs share.
      steps: the lengths, in updates.
      cooldown: the cooldown's share of a run, above 0 and below 1.

    Returns:
      The trunk and then its branches, the longest first. Their names are the point's name, or
      `point_name` of the point, and the length.

    Raises:
      ConfigError: there is no length.
    """
    lengths = sorted({*steps}, reverse=True)
    if not lengths:
        raise ConfigError(f"durations(): no length for {point.get(NAME) or point_name(point)}.")
    cooldowns = {length: max(1, round(length * cooldown)) for length in lengths}
    stem = point.get(NAME) or point_name(point)
    trunk, points = f"{stem},steps={lengths[0]}", []
    for length in lengths:
        start = length - cooldowns[length]
        changes = {
            NAME: f"{stem},steps={length}",
            "total_steps": length,
            "optim.schedule.cooldown_steps": cooldowns[length],
        }
        if length == lengths[0]:
            starts = sorted(length - cooldowns[length] for length in lengths[1:])
            changes["checkpoint.keep_steps"] = tuple(starts)
        else:
            changes[BRANCH_OF] = (trunk, start)
        points.append({**point, **changes})
    return points


def point_name(point: Mapping[str, Any]) -> str:
    """Returns a folder name for a point: the last parts of its keys, with their values."""
    parts = []
    for key, value in point.items():
        if key not in (NAME, BRANCH_OF):
            values = value if isinstance(value, tuple | list) else (value,)
            parts.append(f"{key.rpartition('.')[2].lstrip(':')}={'x'.join(map(str, values))}")
    return ",".join(parts).replace("/", "-") or "run"
