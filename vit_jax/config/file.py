"""Runs a config's file, FILE.py or FILE.py:ARGUMENT: what is wrong with it is said, and where."""

import copy
import importlib.util
import itertools
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from vit_jax.config.base import check_form
from vit_jax.errors import ConfigError, VitJaxError, did_you_mean

_MOST_POINTS = 100_000  # Of a sweep.


def make_config(argument: str) -> ConfigDict:
    """What the file's get_config() gives.

    Raises:
      ConfigError: there is no such file, it went wrong, or what it gave is no config.
    """
    name, colon, argument = argument.partition(":")
    path = _config_path(name, address=argument.startswith("//"), cut=bool(colon))
    try:
        module = _run(path)
        if not hasattr(module, "get_config"):
            raise ConfigError(f"--config={path} defines no get_config().")
        config = module.get_config(argument) if colon else module.get_config()
    except VitJaxError:
        raise
    except Exception as error:
        raise ConfigError(f"--config={path}{_where(error, path)}: {_what(error)}") from error
    if type(config) is not ConfigDict:
        raise ConfigError(
            f"--config={path}: get_config() gave {type(config).__name__}: it must return what "
            "vit_jax.config.base_config() gave it, changed."
        )
    try:
        check_form(config)
    except ConfigError as error:
        raise ConfigError(f"--config={path}: {error}") from error
    _unshare(config)
    return config


def make_points(argument: str) -> tuple[str, str, list[Any]]:
    """The points of the file's sweep(), as they are.

    Returns:
      The file, what follows the colon ("" if there is none), and the points.

    Raises:
      ConfigError: the file has no sweep(), or it went wrong.
    """
    name, colon, argument = argument.partition(":")
    path = _config_path(name, address=False, cut=bool(colon))
    module = _run(path)
    if not hasattr(module, "sweep"):
        raise ConfigError(
            f"--config={path} defines no sweep(): vit_jax.sweep needs one beside get_config(), "
            "that yields a dict of changed keys for each run. One run alone: vit_jax.train."
        )
    try:
        found = module.sweep(argument) if colon else module.sweep()
        if not isinstance(found, Iterable):
            raise ConfigError(
                f"--config={path}: sweep() gave {type(found).__name__}: it must return a list of "
                "points, or yield them."
            )
        points = list(itertools.islice(found, _MOST_POINTS + 1))
    except VitJaxError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"--config={path}{_where(error, path)}: {_what(error)}") from error
    if len(points) > _MOST_POINTS:
        raise ConfigError(
            f"--config={path}: sweep() gives more than {_MOST_POINTS:,} points: does it end?"
        )
    return name, argument, points


def _unshare(section: ConfigDict) -> None:
    """Lets no key have a dict that another has, too: an override of one would change both."""
    for key, value in section.items():
        if isinstance(value, ConfigDict):
            _unshare(value)
        elif isinstance(value, tuple):
            section[key] = copy.deepcopy(value)


def _run(path: pathlib.Path) -> types.ModuleType:
    name = "the_config_file"
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _config_path(name: str, *, address: bool, cut: bool) -> pathlib.Path:
    """The file of --config, which must be one of this machine; `cut`: a colon came after it."""
    if address:
        raise ConfigError(f"--config={name}://...: copy the file here; it must be a local one.")
    try:
        path = pathlib.Path(name).expanduser()
        if path.suffix == ".py" and path.is_file():
            return path
        wrong = (
            "there is no such file" if not path.exists()
            else "this is no file" if not path.is_file()
            else "a config is a Python file, FILE.py"
        )  # fmt: skip
    except RuntimeError:
        raise ConfigError(f"--config={name}: there is no such home folder.") from None
    except OSError as error:
        raise ConfigError(f"--config={name} cannot be read: {error.strerror}.") from error
    if cut and path.suffix != ".py":
        wrong += ", and what follows a colon is its argument: no colon may be in the path"
    folder = path if path.is_dir() else path.parent
    others = sorted(str(other) for other in folder.glob("*.py") if other.stem != "__init__")
    none = f"There is none in {folder}; the project's are in its folder configs."
    hint = did_you_mean(str(path), others) if others else none
    raise ConfigError(f"--config={name}: {wrong}. {hint}")


def _where(error: BaseException, path: pathlib.Path) -> str:
    """The line of the config file at which it went wrong, if it was in that file."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines = [error.lineno]
    return f", line {lines[-1]}" if lines else ""


def _what(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    if isinstance(error, KeyError | AttributeError):  # Of ml_collections: it shows whole sections.
        if near := re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text):
            return f'there is no config key "{near[2]}". Did you mean "{near[1]}"?'
        text = text.partition("Other fields present")[0]
    return f"{type(error).__name__}: {text}"
