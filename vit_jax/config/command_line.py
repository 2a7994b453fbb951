"""Parsers of the config's flags, and explanations of mistakes in a command line."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from vit_jax.config.file import make_config
from vit_jax.config.listing import key_docs
from vit_jax.errors import ConfigError, did_you_mean

_ACCEPTED = {
    int: "a whole number, such as {}",
    float: "a number, such as {}",
    bool: "true or false",
    tuple: "a tuple, such as '(1, 2)'",
    ConfigDict: "its keys one by one, --config.SECTION.KEY=VALUE",
}
# Flags of one meaning that have different names in different commands.
_SYNONYMS = {
    **{"workdir": "checkpoint", "checkpoint": "workdir", "model": "checkpoint"},
    **{"out": "output", "output": "out", "data_dir": "data"},
}


class OptionalParser(flags.ArgumentParser):
    """Accepts the values of another parser, and None, which unsets a key."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser

    def parse(self, argument: Any) -> Any:
        return None if argument in (None, "None") else self._parser.parse(argument)

    def flag_type(self) -> str:
        return self._parser.flag_type()


class ConfigFileParser(flags.ArgumentParser):
    """Loads a config file; unlike ml_collections' parser it does not hide the file's errors.

    Attributes:
      config: the config that was loaded last; overrides change it.
    """

    config: ConfigDict | None = None

    def parse(self, argument: str) -> ConfigDict:
        """Runs FILE.py or FILE.py:ARGUMENT."""
        self.config = make_config(argument).lock()
        return self.config


def explain_flag(values: flags.FlagValues, error: flags.Error) -> str:
    """Rewrites absl's message about a flag, with what is accepted in its place."""
    message = str(error)
    if isinstance(error, flags.UnrecognizedFlagError):
        return _explain_unknown(values, error.flagname)
    if part := re.match(r"Type <class .*?> of field (config\.\S+) is not supported", message):
        return f"--{part[1]}: write its keys one by one, --{part[1]}.KEY=VALUE."
    match = re.match(r"flag (--config\.(?P<key>[^=]+)=.*?): ", message, flags=re.DOTALL)
    if match and (kind := _look_up(values, match["key"])[1]) in _ACCEPTED:
        return f"{match[1]}: write {_ACCEPTED[kind].format(_example(values, match['key'], kind))}."
    enum = re.match(r"flag --(?P<name>\w+)=(?P<value>.*?): value should be one of <", message)
    if enum and isinstance(parser := values[enum["name"]].parser, flags.EnumParser):
        hint = did_you_mean(enum["value"], parser.enum_values)
        return f"--{enum['name']}={enum['value']}: {hint}"
    return f"{message}\nSee --help."


def _example(values: flags.FlagValues, key: str, kind: type | None) -> str:
    """Returns a number that a key accepts: its value, or if it is unset, a usual one."""
    parser = values["config"].parser
    assert isinstance(parser, ConfigFileParser)  # See vit_jax.cli.define_config.
    node: Any = parser.config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, ConfigDict) else None
    if isinstance(node, int | float):
        return f"{node:g}"
    return "0.1" if kind is float and key.endswith("_percent") else "10"


def _explain_unknown(values: flags.FlagValues, name: str) -> str:
    """Returns a message about a flag that a command lacks, with the nearest flags that it has."""
    known = sorted(f"--{flag}" for flag in values if not flag.startswith("config."))
    message = f"There is no flag --{name}. "
    if known:
        synonym = f"--{_SYNONYMS.get(name)}"
        message += did_you_mean(synonym if synonym in known else f"--{name}", known, see="--help")
    keys = [f"--config.{key}=..." for key in key_docs() if name in key]
    if "config" in values and keys:
        message += f" A key of the config: {', '.join(keys[:4])}."
    return f"{message.rstrip()}\nSee --help."


def explain_key(values: flags.FlagValues, argv: Sequence[str]) -> str | None:
    """Returns a message about the first override of a key that does not exist; None without one."""
    for flag in argv:
        match = re.match(r"--?(no)?config\.(?P<key>[^=]+)", flag)
        problem, _ = _look_up(values, match["key"]) if match else (None, None)
        if problem:
            return f"{flag}: {problem}"
    return None


def _look_up(values: flags.FlagValues, key: str) -> tuple[str | None, type | None]:
    """Looks up a key such as model.image_size[0]; returns (error message, None) or (None, type)."""
    parser = values["config"].parser
    assert isinstance(parser, ConfigFileParser)  # See vit_jax.cli.define_config.
    node, kind = parser.config, ConfigDict
    for part in filter(None, re.split(r"[.\[\]]", key)):
        part = part.strip("'\"")
        if isinstance(node, ConfigDict) and part in node:
            node, kind = node[part], node.get_type(part)
        elif isinstance(node, ConfigDict):
            hint = did_you_mean(part, node, see="--show_config")
            return f'there is no config key "{part}". {hint}', None
        elif isinstance(node, Mapping) and part in node:
            node = node[part]
            kind = type(node)
        elif isinstance(node, tuple) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
            kind = type(node)
        elif isinstance(node, tuple):
            return f"there is no [{part}]: indices range from [0] to [{len(node) - 1}].", None
        else:
            return f'there is no "{part}" in {node!r}.', None
    return None, kind


def parse(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parses a command line and returns its arguments that are no flags.

    Raises:
      ConfigError: for any mistake in it.
    """
    try:
        return values(argv)
    except flags.Error as error:
        # absl wraps a ValueError, such as ConfigError, in its own error.
        if isinstance(error.__context__, ConfigError):
            raise error.__context__ from None
        raise ConfigError(explain_flag(values, error)) from error
    except ConfigError:
        raise
    except Exception as error:  # ml_collections passes on any error of a key's lookup.
        raise ConfigError(
            explain_key(values, argv) or f"A --config.KEY=VALUE is wrong: {error}"
        ) from error
