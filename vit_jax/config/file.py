"""Runs a config, NAME or FILE.py, with :ARGUMENT behind it, and locates the errors in it."""

import copy
import importlib.util
import itertools
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax.config.base import (
    LIST_ARGUMENTS,
    ConfigArguments,
    check_form,
    freeze,
)
from vit_jax.config.durations import other_units
from vit_jax.config.model import SIZES_OF_VARIANT
from vit_jax.config.shipped import shipped_configs
from vit_jax.errors import ConfigError, VitJaxError, did_you_mean

_MAX_POINTS = 100_000  # Of a sweep.


def make_config(argument: str) -> ConfigDict:
    """Returns the config that the file's get_config() returns.

    Raises:
      ConfigError: there is no such file, it raised an error, or it did not return a config.
    """
    name, colon, argument = argument.partition(":")
    path = _config_path(
        name, "get_config", is_url=argument.startswith("//"), has_argument=bool(colon)
    )
    try:
        module = _import_file(path)
        if not hasattr(module, "get_config"):
            raise ConfigError(f"--config={name} defines no get_config().")
        config = module.get_config(argument) if colon else module.get_config()
    except VitJaxError:
        raise
    except Exception as error:
        raise ConfigError(f"--config={name}{_line(error, path)}: {_message(error)}") from error
    if type(config) is not ConfigDict:
        raise ConfigError(
            f"--config={name}: get_config() returned {type(config).__name__}: it must return a "
            "changed vit_jax.config.base_config()."
        )
    try:
        check_form(config)
    except ConfigError as error:
        raise ConfigError(f"--config={name}: {error}") from error
    _copy_tuples(config)
    return config


def load_config(name: str, overrides: Mapping[str, Any] | None = None) -> FrozenConfigDict:
    """Returns the config of a run, as `vit-jax train --config=NAME` reads it.

    `print(vit_jax.config.format_config(config))` shows a line for each key.

    Args:
      name: a config that comes with vit_jax, or FILE.py; with :key=value,... for its arguments.
      overrides: {"optim.lr": 1e-3, ...}, as the flags --config.KEY=VALUE.

    Raises:
      ConfigError: there is no such config, argument or key, a value has another type, or the
        overrides are no dict.

    Example:
      >>> config = load_config("quickstart", {"total_epochs": 5.0, "optim.lr": 1e-3})
      >>> config.optim.lr, config.model.variant
      (0.001, 'Ti/2')
    """
    if not isinstance(overrides, Mapping | None):
        raise ConfigError(
            f"The overrides are {overrides!r}: write a dict of keys and values, such as "
            '{"total_epochs": 3}.'
        )
    config, overrides = make_config(name).lock(), overrides or {}
    for key, value in overrides.items():
        *sections, leaf = key.split(".")
        section = node = config
        for part in (*sections, leaf):
            if not isinstance(node, ConfigDict) or part not in node:
                choices = node if isinstance(node, ConfigDict) else ()
                raise ConfigError(
                    f'{key}: there is no config key "{part}". {did_you_mean(part, choices)}'
                )
            section, node = node, node[part]
        try:
            section[leaf] = value
        except TypeError as error:
            raise ConfigError(f"{key}={value!r}: {error}.") from error
    unset_other_units(config, overrides)
    return freeze(config)


def unset_other_units(config: ConfigDict, changed: Mapping[str, Any]) -> None:
    """Unsets the other units of each changed duration.

    `--config.total_steps=10` shortens a run whose file sets `total_epochs`.
    """
    for key, value in changed.items():
        if value is None:
            continue
        for sibling in other_units(key):
            if sibling not in changed:
                parent, _, leaf = sibling.rpartition(".")
                section = getattr(config, parent) if parent else config
                if leaf in section:
                    section[leaf] = None


def sizes_beside_variant(config: ConfigDict, changed: Mapping[str, Any]) -> str:
    """Returns which sizes the config sets that a changed `model.variant` leaves; "" if none."""
    if not changed.get("model.variant"):
        return ""
    kept = [
        f"model.{name}={config.model[name]}"
        for name in SIZES_OF_VARIANT
        if f"model.{name}" not in changed and config.model[name] is not None
    ]
    return ", ".join(kept)


def config_arguments(name: str) -> dict[str, Any]:
    """Returns the arguments of a config file with their defaults; {} if it takes none.

    Raises:
      ConfigError: see `make_config`.
    """
    try:
        make_config(f"{name}:{LIST_ARGUMENTS}")
    except ConfigArguments as arguments:
        return arguments.defaults
    raise ConfigError(f"--config={name}: its get_config() does not call parse_args().")


def make_points(argument: str) -> tuple[str, str, list[Any]]:
    """Returns the points of the file's sweep(), without checking them.

    Returns:
      The file, its argument ("" without a colon), and the points.

    Raises:
      ConfigError: the file has no sweep(), or sweep() raised an error.
    """
    name, colon, argument = argument.partition(":")
    path = _config_path(name, "sweep", is_url=False, has_argument=bool(colon))
    module = _import_file(path)
    if not hasattr(module, "sweep"):
        raise ConfigError(
            f"--config={name} defines no sweep(): `vit-jax sweep` needs one beside get_config(), "
            "that yields a dict of changed keys for each run. For a single run: `vit-jax train`."
        )
    try:
        points = module.sweep(argument) if colon else module.sweep()
        if not isinstance(points, Iterable):
            raise ConfigError(
                f"--config={name}: sweep() returned {type(points).__name__}: it must return a list "
                "of points, or yield them."
            )
        points = list(itertools.islice(points, _MAX_POINTS + 1))
    except VitJaxError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"--config={name}{_line(error, path)}: {_message(error)}") from error
    if len(points) > _MAX_POINTS:
        raise ConfigError(
            f"--config={name}: sweep() yields more than {_MAX_POINTS:,} points: does it end?"
        )
    return name, argument, points


def _copy_tuples(section: ConfigDict) -> None:
    """Copies tuples: an override of a dict in one must not change the same dict in another key."""
    for key, value in section.items():
        if isinstance(value, ConfigDict):
            _copy_tuples(value)
        elif isinstance(value, tuple):
            section[key] = copy.deepcopy(value)


def _import_file(path: pathlib.Path) -> types.ModuleType:
    name = "the_config_file"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # The path ends with .py.
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _config_path(name: str, function: str, *, is_url: bool, has_argument: bool) -> pathlib.Path:
    """Returns the path of --config, checked to be a local Python file.

    An error suggests files beside it that define the function: other files are no configs.
    """
    if is_url:
        raise ConfigError(f"--config={name}://...: copy the file here; it must be a local one.")
    try:
        if path := shipped_configs().get(name):
            return path
        path = pathlib.Path(name).expanduser()
        if path.suffix == ".py" and path.is_file():
            return path
        problem = (
            "there is no such file" if not path.exists()
            else "this is not a file" if not path.is_file()
            else "a config is a name or a Python file, FILE.py"
        )  # fmt: skip
    except RuntimeError:
        raise ConfigError(f"--config={name}: there is no such home folder.") from None
    except OSError as error:
        raise ConfigError(f"--config={name} cannot be read: {error.strerror}.") from error
    if has_argument and path.suffix != ".py":
        problem += " (a colon begins the config's argument: the path must not contain one)"
    folder = path if path.is_dir() else path.parent
    others = [str(file) for file in sorted(folder.glob("*.py")) if _defines(file, function)]
    near = others if path.suffix == ".py" and others else shipped_configs()
    raise ConfigError(
        f"--config={name}: {problem}. {did_you_mean(name, near, see='vit-jax config')}"
    )


def _defines(path: pathlib.Path, function: str) -> bool:
    """Returns whether a Python file defines the function; the file is not run."""
    try:
        return re.search(rf"^def {function}\(", path.read_text("utf-8"), re.MULTILINE) is not None
    except (OSError, ValueError):
        return False


def _line(error: BaseException, path: pathlib.Path) -> str:
    """Returns ", line N" of the config file where the error arose; "" if outside of that file."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines = [error.lineno]
    return f", line {lines[-1]}" if lines else ""


def _message(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    if isinstance(error, KeyError | AttributeError):  # ml_collections prints whole sections.
        if near := re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text):
            return f'there is no config key "{near[2]}". Did you mean "{near[1]}"?'
        text = text.partition("Other fields present")[0]
    return f"{type(error).__name__}: {text}"
