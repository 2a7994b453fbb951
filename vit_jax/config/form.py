"""Whether a config has the form of the base config: keys, types, and finite numbers.

A ConfigDict checks the type of a value that replaces another one, but lets a key be None, NaN or,
once it is unlocked, missing; and nothing has checked the values of a JSON file. A config that
passes here can be read, compared and written.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vit_jax.errors import ConfigError, did_you_mean

_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    tuple: "a tuple",
    ConfigDict: "a section of keys",
}
_LARGEST = 2**63  # Beyond it neither NumPy nor JAX take whole numbers.


def check_section(config: ConfigDict, base: ConfigDict, *, where: str = "") -> None:
    """Checks that a section has the keys of the base config's, and values of their types.

    Args:
      config: the section; None is accepted for what is None in `base`.
      base: the same section of the base config.
      where: the section's name and a dot, for messages.

    Raises:
      ConfigError: naming the key.
    """
    try:
        keys = list(config)
    except TypeError as error:  # ConfigDict sorts them.
        raise ConfigError(f"{where.rstrip('.')}: its keys must be text.") from error
    for key in keys:
        if key not in base:
            raise ConfigError(f'There is no config key "{where}{key}". {did_you_mean(key, base)}')
    for key in base:
        name = f"{where}{key}"
        if key not in config:
            raise ConfigError(
                f'The config lacks the key "{name}": it must be what '
                "vit_jax.config.base_config() gives, changed."
            )
        value, kind = config[key], base.get_type(key)
        if value is None and base[key] is None:
            continue
        if not _is(value, kind):
            raise ConfigError(f"{name} is {_shown(value)}: it must be {_KINDS[kind]}.")
        if kind is not ConfigDict:
            _check_plain(value, name)
        elif base[key]:  # config.evals is empty there: its keys are names.
            check_section(value, base[key], where=f"{name}.")


def check_entries(section: ConfigDict, entry: ConfigDict, *, where: str) -> None:
    """Checks a section whose keys are names and whose values are sections of one form.

    Args:
      section: such as `config.evals`.
      entry: the form of each.
      where: the section's name and a dot, for messages.

    Raises:
      ConfigError: naming the key.
    """
    for name, value in section.items():
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(f"{where}{name}: a name has letters, digits and . _ - only.")
        if not _is(value, ConfigDict):
            raise ConfigError(f"{where}{name} is {_shown(value)}: it must be {_KINDS[ConfigDict]}.")
        check_section(value, entry, where=f"{where}{name}.")


def _shown(value: Any) -> str:
    text = _KINDS[ConfigDict] if isinstance(value, ConfigDict) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)


def _check_plain(value: Any, name: str) -> None:
    """Raises ConfigError unless a value can be written as JSON and used as it is."""
    match value:
        case None | bool():
            return
        case int() if abs(value) >= _LARGEST:
            raise ConfigError(f"{name} is {value:.3e}: that is larger than a whole number may be.")
        case float() if not math.isfinite(value):
            raise ConfigError(f"{name} is {value}: it must be finite.")
        case str() if "\0" in value:
            raise ConfigError(f"{name} is {_shown(value)}: there is a zero byte in it.")
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
                f"{name} is {_shown(value)}: write plain numbers, text, tuples and dicts, no "
                f"{type(value).__name__}."
            )
