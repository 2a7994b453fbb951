"""Values of a key of several configs as text; of transforms, only what differs."""

from collections.abc import Mapping, Sequence
from typing import Any

# A value that stands for no such argument, unlike None.
_ABSENT = object()


def cell_texts(values: Sequence[Any]) -> list[str]:
    """Returns the text of each value; "-" for None, which stands for no such key.

    Transforms are their operations in order, with the arguments in which the values differ. Equal
    texts mean equal values.

    Example:
      >>> resize = {"op": "resize", "size": [64, 64]}
      >>> cell_texts([[{"op": "decode"}, resize], [{"op": "decode"}, {**resize, "size": [32, 32]}]])
      ['decode, resize(size=[64, 64])', 'decode, resize(size=[32, 32])']
    """
    given = [value for value in values if value is not None]
    if not all(map(_are_transforms, given)):
        return ["-" if value is None else str(value) for value in values]
    lists = [_numbered(value) for value in given]
    texts = iter(
        ", ".join(_transform(key, op, lists) for key, op in each.items()) for each in lists
    )
    return ["-" if value is None else next(texts) or "none" for value in values]


def _are_transforms(value: Any) -> bool:
    elements = value if isinstance(value, list) else [value]
    return all(isinstance(element, Mapping) and "op" in element for element in elements)


def _numbered(value: Any) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Returns transforms by name, with a number for those of the same name."""
    numbered: dict[tuple[str, int], Mapping[str, Any]] = {}
    for transform in value if isinstance(value, list) else [value]:
        name = str(transform["op"])
        numbered[name, sum(other == name for other, _ in numbered)] = transform
    return numbered


def _transform(
    key: tuple[str, int],
    transform: Mapping[str, Any],
    lists: Sequence[Mapping[tuple[str, int], Mapping[str, Any]]],
) -> str:
    """Returns the name of a transform, with its arguments that differ in another list."""
    others = [each[key] for each in lists if key in each]
    differing = [
        f"{name}={value}"
        for name, value in transform.items()
        if any(other.get(name, _ABSENT) != value for other in others)
    ]
    return f"{key[0]}({', '.join(differing)})" if differing else key[0]
