"""Rules by parameter path: patterns that match whole paths, "encoder/blocks/mlp/fc1/kernel".

A rule without effect is an error: otherwise a mistyped pattern would go unnoticed.
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
    """Returns the tree of fn(path, leaf), with paths such as "encoder/norm/scale"."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: fn(path_name(path), leaf), tree)


def matches(params: PyTree, patterns: Sequence[str], *, key: str) -> PyTree:
    """Returns a tree of bool: whether the parameter's path matches one of the patterns.

    Args:
      params: parameters, or their shapes.
      patterns: regular expressions for whole paths.
      key: the config key they come from, for error messages.

    Raises:
      ConfigError: a pattern matches no parameter, or is not a regular expression.
    """
    paths = list(named_leaves(params))
    matched = set()
    for pattern in patterns:
        matched |= matching(pattern, paths, key=key)
    return map_with_path(lambda path, _: path in matched, params)


def multipliers(params: PyTree, rules: Sequence[Any], *, key: str, default: float) -> PyTree:
    """Returns a tree of float: the multiplier of the first matching rule, or else the default.

    Args:
      params: parameters, or their shapes.
      rules: pairs (regular expression for a whole path, multiplier).
      key: the config key they come from, for error messages.
      default: for parameters that no rule matches.

    Raises:
      ConfigError: a pattern matches no parameter, or only ones that earlier rules match, or is not
        a regular expression; or a multiplier is negative or infinite.
    """
    paths = list(named_leaves(params))
    multiplier_of: dict[str, float] = {}
    for rule in rules:
        if (
            not isinstance(rule, tuple | list)
            or len(rule) != 2
            or type(rule[1]) not in (int, float)
        ):
            raise ConfigError(
                f"{key}: {rule!r} is not a rule: write pairs (pattern, multiplier), such as "
                '((".*/kernel", 1.0),).'
            )
        pattern, value = rule
        if not 0 <= value < math.inf:
            raise ConfigError(
                f"{key}: the multiplier {value} of {pattern!r} must be finite and not negative."
            )
        matched = matching(pattern, paths, key=key)
        if matched <= multiplier_of.keys():
            raise ConfigError(
                f"{key}: {pattern!r} has no effect, because earlier rules match all its parameters "
                "and the first match counts. Move it further to the front or remove it."
            )
        multiplier_of = dict.fromkeys(matched, float(value)) | multiplier_of
    return map_with_path(lambda path, _: multiplier_of.get(path, default), params)


def matching(pattern: str, paths: list[str], *, key: str) -> set[str]:
    """Returns the parameter paths that a regular expression matches as a whole.

    Args:
      pattern: regular expression.
      paths: of the parameters.
      key: the config key that `pattern` comes from, for error messages.

    Raises:
      ConfigError: it matches no path, or is not a regular expression.
    """
    check_pattern(pattern, key=key)
    matched = {path for path in paths if re.fullmatch(pattern, path)}
    if not matched:
        plain = re.sub(r"[^\w/]", "", pattern)
        nearest = difflib.get_close_matches(plain, paths, n=3, cutoff=0.0)
        raise ConfigError(
            f"{key}: {pattern!r} does not match the whole path of any parameter. "
            f"The nearest of {len(paths)} paths: {', '.join(nearest)}."
        )
    return matched
