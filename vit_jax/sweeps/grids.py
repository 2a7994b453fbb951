"""The points of a sweep: what `sweep()` of a config file builds its list from.

A point is a dict of what differs from the file's config: keys of the config ("optim.lr"), arguments
of its `get_config` with a colon in front (":model"), and two keys of the sweep itself: "name", of
the run's folder, and "branch_of", the run and the step whose state it goes on from.

    grid({":model": ("vit", "resnet")}, subset(60_000, (0.01, 0.1, 1)), {"seed": range(3)})

is 18 points. The functions take and return lists of points, so that they can be put together.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vit_jax.errors import ConfigError

Point = dict[str, Any]
Axes = Mapping[str, Iterable[Any]]

NAME, BRANCH_OF = "name", "branch_of"


def grid(*factors: Axes | Sequence[Point]) -> list[Point]:
    """Every combination: of the values of a dict's keys, and of the points of lists.

    Args:
      *factors: {key: values}, or points that another function here has made. The last one varies
        fastest.

    Raises:
      ConfigError: two factors set the same key.
    """
    lists = [points for factor in factors for points in _lists(factor)]
    combined = []
    for points in itertools.product(*lists):
        keys = [key for point in points for key in point]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise ConfigError(f"sweep: {', '.join(sorted(twice))} is set by two factors of a grid.")
        combined.append({key: value for point in points for key, value in point.items()})
    return combined


def _lists(factor: Axes | Sequence[Point]) -> list[list[Point]]:
    if isinstance(factor, Mapping):
        return [[{key: value} for value in values] for key, values in factor.items()]
    return [list(factor)]


def paired(axes: Axes) -> list[Point]:
    """The first values of all keys, the second values of all keys, and so on.

    Raises:
      ConfigError: the keys have different numbers of values.
    """
    columns = {key: list(values) for key, values in axes.items()}
    lengths = {key: len(values) for key, values in columns.items()}
    if len({*lengths.values()}) > 1:
        told = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise ConfigError(f"sweep: paired needs as many values of each key, and got {told}.")
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def chain(*lists: Iterable[Point]) -> list[Point]:
    """One list after the other; of points that are equal, the first."""
    points = []
    for point in itertools.chain(*lists):
        if point not in points:
            points.append(point)
    return points


def star(centre: Mapping[str, Any], axes: Axes) -> list[Point]:
    """A centre, and points that differ from it in one key: SoViT's sweep (arXiv 2305.13035).

    Args:
      centre: a value of each key.
      axes: the values that a key takes while the others have the centre's; the centre's own value
        may be among them.

    Raises:
      ConfigError: a key of `axes` is not one of the centre's.
    """
    if strangers := axes.keys() - centre.keys():
        raise ConfigError(f"sweep: star's centre has no {', '.join(sorted(strangers))}.")
    arms = ({**centre, key: value} for key, values in axes.items() for value in values)
    return chain([dict(centre)], arms)


def subset(num_examples: int, shares: Iterable[int | float]) -> list[Point]:
    """Parts of the training split. For a seed each is within all that are larger.

    Args:
      num_examples: in the whole split (`config.data.split`).
      shares: of it, each above 0 and at most 1.

    Raises:
      ConfigError: a share is not, or is less than one example.
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
    """Runs of several lengths for little more than the price of the longest.

    The learning rate must not know how long the run is until it is cooled down: schedule constant
    or rsqrt, warm-up in steps. Then the longest run, the trunk, has passed through the state at
    which the cooldown of each shorter one begins, and saves it; the shorter ones are branches, and
    equal what they would be without the trunk, to the bit.

    Args:
      point: what all of them have in common.
      steps: the lengths, in updates.
      cooldown: its share of a run, above 0 and below 1.

    Returns:
      The trunk and then its branches, the longest first. Their names are the point's, or what
      `point_name` makes of it, and the length.

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
        own = {
            NAME: f"{stem},steps={length}",
            "total_steps": length,
            "optim.schedule.cooldown_steps": cooldowns[length],
        }
        if length == lengths[0]:
            kept = sorted(length - cooldowns[length] for length in lengths[1:])
            own["checkpoint.keep_steps"] = tuple(kept)
        else:
            own[BRANCH_OF] = (trunk, start)
        points.append({**point, **own})
    return points


def point_name(point: Mapping[str, Any]) -> str:
    """A name for a point's run: the ends of its keys, and their values; fit for a folder."""
    parts = []
    for key, value in point.items():
        if key not in (NAME, BRANCH_OF):
            values = value if isinstance(value, tuple | list) else (value,)
            parts.append(f"{key.rpartition('.')[2].lstrip(':')}={'x'.join(map(str, values))}")
    return ",".join(parts).replace("/", "-") or "run"
