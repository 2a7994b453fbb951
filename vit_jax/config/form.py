"""Checks a config against the base config: keys, types, and finite numbers.

A ConfigDict checks the type of a new value, but accepts None and NaN and, once it is unlocked,
missing keys; a config that is read from JSON has not been checked at all. A config that passes
these checks can be read, compared and written.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from vit_jax.config.durations import other_units
from vit_jax.errors import ConfigError, did_you_mean

_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    tuple: "a tuple",
    ConfigDict: "a section of keys",
}
_INT_LIMIT = 2**63  # NumPy and JAX do not accept larger integers.


def check_section(config: ConfigDict, base: ConfigDict, *, prefix: str = "") -> None:
    """Checks that a section has the keys of the base config's, and values of their types.

    Args:
      config: the section; a value may be None where it is None in `base`, or in
        another unit of the same duration.
      base: the same section of the base config.
      prefix: the section's name and a dot, for messages.

    Raises:
      ConfigError: it has not; the message names the key.
    """
    try:
        keys = list(config)
    except TypeError as error:  # ConfigDict sorts them.
        raise ConfigError(f"{prefix.rstrip('.')}: its keys must be text.") from error
    for key in keys:
        if key not in base:
            raise ConfigError(f'There is no config key "{prefix}{key}". {did_you_mean(key, base)}')
    for key in base:
        name = f"{prefix}{key}"
        units = other_units(key)
        if key not in config and any(other in config for other in units):
            continue  # A duration in another unit.
        if key not in config:
            raise ConfigError(
                f'The config lacks the key "{name}": it must be a changed '
                "vit_jax.config.base_config()."
            )
        value, default, expected = config[key], base[key], base.get_type(key)
        if value is None and (default is None or any(other in base for other in units)):
            continue
        if not _has_type(value, expected):
            raise ConfigError(
                f"{name} is {_short_repr(value)}: it must be {_TYPE_NAMES[expected]}."
            )
        if not (isinstance(value, ConfigDict) and isinstance(default, ConfigDict)):
            _check_plain(value, name)
        elif default:  # The base config's `evals` is empty: its keys are free names.
            check_section(value, default, prefix=f"{name}.")


def check_entries(section: ConfigDict, form: Callable[[Any], ConfigDict], *, prefix: str) -> None:
    """Checks a section whose keys are free names and whose values are sections of known types.

    Args:
      section: such as `config.evals`.
      form: maps the type of a value to a section that has its keys and their types.
      prefix: the section's name and a dot, for messages.

    Raises:
      ConfigError: a name, key or value is not accepted; the message names the key.
    """
    for name, value in section.items():
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(f"{prefix}{name}: a name has letters, digits and . _ - only.")
        if not isinstance(value, ConfigDict):
            raise ConfigError(
                f"{prefix}{name} is {_short_repr(value)}: it must be {_TYPE_NAMES[ConfigDict]}."
            )
        check_section(value, form(value.get("type")), prefix=f"{prefix}{name}.")


def _short_repr(value: Any) -> str:
    text = _TYPE_NAMES[ConfigDict] if isinstance(value, ConfigDict) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _has_type(value: Any, expected: type) -> bool:
    return isinstance(value, expected) and isinstance(value, bool) == (expected is bool)


def _check_plain(value: Any, name: str) -> None:
    """Raises ConfigError unless a value is valid JSON data, with finite numbers."""
    match value:
        case None | bool():
            return
        case int() if abs(value) >= _INT_LIMIT:
            raise ConfigError(f"{name} is {value:.3e}: it must be below 2^63 in absolute value.")
        case float() if not math.isfinite(value):
            raise ConfigError(f"{name} is {value}: it must be finite.")
        case str() if "\0" in value:
            raise ConfigError(f"{name} is {_short_repr(value)}: it contains a zero byte.")
        case int() | float() | str():
            return
        case tuple() | list():
            for i, item in enumerate(value):
                _check_plain(item, f"{name}[{i}]")
        case Mapping() | ConfigDict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise ConfigError(f"{name} has the key {key!r}: keys must be text.")
                _check_plain(item, f"{name}.{key}")
        case _:
            raise ConfigError(
                f"{name} is {_short_repr(value)}: write plain numbers, text, tuples and dicts, not "
                f"{type(value).__name__}."
            )
