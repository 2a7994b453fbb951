"""Rules by parameter path: a pattern that must match the whole of "encoder/blocks/mlp/fc1/kernel".

A rule that has no effect is a mistake that trains on silently, so it is an error here.
"""

import difflib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from vit_jax.config import check_pattern
from vit_jax.errors import ConfigError
from vit_jax.parallel.rules import named_leaves, path_name


def map_with_path(fn: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """The tree of fn("encoder/norm/scale", leaf)."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: fn(path_name(path), leaf), tree)


def matches(params: PyTree, patterns: Sequence[str], *, key: str) -> PyTree:
    """Which parameters match one of the patterns.

    Args:
      params: parameters, or their shapes.
      patterns: regular expressions for whole paths.
      key: the config key they come from, for error messages.

    Returns:
      A tree of bool.

    Raises:
      ConfigError: a pattern matches no parameter, or is not a regular expression.
    """
    names = _names(params)
    hits = set()
    for pattern in patterns:
        hits |= matching(pattern, names, key=key)
    return map_with_path(lambda name, _: name in hits, params)


def multipliers(params: PyTree, rules: Sequence[Any], *, key: str, default: float) -> PyTree:
    """The multiplier of every parameter: that of the first rule that matches, else the default.

    Args:
      params: parameters, or their shapes.
      rules: pairs (regular expression for a whole path, multiplier).
      key: the config key they come from, for error messages.
      default: where no rule matches.

    Returns:
      A tree of float.

    Raises:
      ConfigError: a pattern matches no parameter, or only ones that earlier rules took, or is
        not a regular expression; or a multiplier is negative.
    """
    names = _names(params)
    found: dict[str, float] = {}
    for rule in rules:
        if (
            not isinstance(rule, tuple | list)
            or len(rule) != 2
            or type(rule[1]) not in (int, float)
        ):
            raise ConfigError(
                f"{key}: {rule!r} is no rule: write pairs (pattern, multiplier), such as "
                '((".*/kernel", 1.0),).'
            )
        pattern, value = rule
        if not 0 <= value < math.inf:
            raise ConfigError(
                f"{key}: the multiplier {value} of {pattern!r} must be finite and not negative."
            )
        hits = matching(pattern, names, key=key)
        if hits <= found.keys():
            raise ConfigError(
                f"{key}: the first rule that matches counts, and every parameter that {pattern!r} "
                "matches is taken by an earlier rule. Put it further to the front or remove it."
            )
        found = dict.fromkeys(hits, float(value)) | found
    return map_with_path(lambda name, _: found.get(name, default), params)


def _names(params: PyTree) -> list[str]:
    return list(named_leaves(params))


def matching(pattern: str, names: list[str], *, key: str) -> set[str]:
    """The paths that a pattern matches as a whole.

    Args:
      pattern: regular expression.
      names: paths of parameters.
      key: the config key it comes from, for error messages.

    Raises:
      ConfigError: it matches none of them, or is not a regular expression.
    """
    check_pattern(pattern, key=key)
    hits = {name for name in names if re.fullmatch(pattern, name)}
    if not hits:
        plain = re.sub(r"[^\w/]", "", pattern)
        near = difflib.get_close_matches(plain, names, n=3, cutoff=0.0)
        raise ConfigError(
            f"{key}: {pattern!r} matches the whole path of no parameter. "
            f"The nearest of {len(names)} paths: {', '.join(near)}."
        )
    return hits
