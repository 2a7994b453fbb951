"""Lists the keys of a config with value, meaning and origin."""

import functools
import inspect
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax.config import base
from vit_jax.config.durations import DURATION_UNITS
from vit_jax.config.model import section_docs


def format_config(config: ConfigDict | FrozenConfigDict) -> str:
    """Returns a line for each key: `key = value  # meaning`."""
    docs = key_docs()
    return "\n".join(
        _line(f"{key} = {_plain(value)!r}", docs.get(key, "")) for key, value in _leaves(config)
    )


def listing(
    config: FrozenConfigDict, *, file: str, from_file: ConfigDict, overridden: Mapping[str, Any]
) -> str:
    """Returns a line for each key: `key = value  (origin)  # meaning`.

    Args:
      config: with its overrides.
      file: the name of the config file, for the origin of a key that it changes.
      from_file: the config as its file makes it.
      overridden: the overrides of the command line.
    """
    defaults = dict(_leaves(base.base_config()))
    of_file, docs = dict(_leaves(from_file)), key_docs()
    lines = []
    for key, value in _leaves(config):
        if any(key == name or name.startswith(f"{key}[") for name in overridden):
            origin = f"--config.{key}"
        elif key not in defaults or _plain(of_file.get(key)) != _plain(defaults[key]):
            origin = file
        else:
            origin = "default"
        if origin != "default" and key in defaults:
            origin += f"; default {_plain(defaults[key])!r}"
        lines.append(_line(f"{key} = {_plain(value)!r}  ({origin})", docs.get(key, "")))
    return "\n".join(lines)


def _line(text: str, doc: str) -> str:
    return f"{text}  # {doc}" if doc else text


def _leaves(section: ConfigDict | FrozenConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, ConfigDict | FrozenConfigDict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def config_keys() -> list[str]:
    """Returns the keys of every config, such as optim.lr."""
    return [key for key, _ in _leaves(base.base_config())]


def _plain(value: Any) -> Any:
    """Returns the value with dicts and tuples, as a user writes it."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, tuple | list) else value


@functools.cache
def key_docs() -> dict[str, str]:
    """Returns the meaning of each key: the comments of `base_config`, and the fields of `model`.

    A comment stands behind its key, or in the lines above it; in the second case it is also that of
    the keys directly below which have none.
    """
    docs = {f"model.{key}": doc for key, doc in section_docs().items()}
    source = inspect.getsource(base.base_config)
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    above: list[str] = []
    for number, line in enumerate(source.splitlines(), start=1):
        key = re.match(r'\s*c\.([a-z_0-9.]+)(?: = |\.update\(duration\("(\w+)"\)\))', line)
        if not key and number in comments:
            above = [*above, comments[number]] if number - 1 in comments else [comments[number]]
            continue
        if not key or re.search(r"= (ConfigDict|model_section)\(\)", line):
            above = []
            continue
        doc = comments.get(number) or " ".join(above)
        names = [f"{key[1]}.{key[2]}_{unit}" for unit in DURATION_UNITS] if key[2] else [key[1]]
        docs |= dict.fromkeys(names, doc)
        above = [] if number in comments else above
    return docs
