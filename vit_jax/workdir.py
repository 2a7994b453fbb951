"""The files of a run's work directory that say what the run is.

config.json      every key of the config, as it ran
dataset.json     what the model's outputs mean: class names, channels, examples
metrics.jsonl    what was measured, a line a step: a pure function of the config
timing.jsonl     how long it took
checkpoints/     one folder a saved step
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax.config import base_config, freeze
from vit_jax.data.base import Source
from vit_jax.errors import CheckpointError, ConfigError

CONFIG = "config.json"
DATASET = "dataset.json"
CHECKPOINTS = "checkpoints"


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def config_to_json(config: ConfigDict | FrozenConfigDict) -> dict[str, Any]:
    """The config as plain data: nested dicts, lists, numbers, strings, None."""
    return _plain(config)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping | ConfigDict | FrozenConfigDict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def config_from_json(plain: Mapping[str, Any]) -> ConfigDict:
    """The inverse of `config_to_json`; keys that a later release added have their defaults.

    Raises:
      ConfigError: a key that no config has.
    """
    config = base_config()
    with config.unlocked():
        config.evals = ConfigDict(_tuples(plain.get("evals", {})))
    try:
        config.update(_tuples({key: value for key, value in plain.items() if key != "evals"}))
    except (KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"Not a config of this release of vit_jax: {error}") from error
    return config


def _tuples(value: Any) -> Any:
    """JSON knows only lists; configs hold only tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def flatten(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one: {"optim.lr": 0.001}."""
    flat = {}
    for key, value in plain.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def config_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line for each key in which two plain configs differ."""
    old, new = flatten(old), flatten(new)
    absent = "(absent)"
    return [
        f"  {key}: {old.get(key, absent)!r} -> {new.get(key, absent)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    ]


def check_claim(
    workdir: pathlib.Path,
    config: FrozenConfigDict,
    dataset: Mapping[str, Any],
    *,
    allow_config_change: bool,
) -> None:
    """Makes the work directory, or checks that it is this run's, or nobody's.

    It is a run's from the first checkpoint on: what failed before that may be mended.

    Args:
      workdir: of the run.
      config: of the run.
      dataset: what `describe_dataset` says of its data.
      allow_config_change: whether a difference is meant.

    Raises:
      ConfigError: the work directory cannot be made; or it belongs to a run with another config,
        or whose data set had other classes or another number of examples: the difference is shown.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} cannot be made: {error.strerror}.") from error
    started = any((workdir / CHECKPOINTS).glob("[0-9]*"))
    if allow_config_change or not started:
        return
    diff = config_diff(config_to_json(read_config(workdir)), config_to_json(config))
    diff += config_diff(read_dataset(workdir), dataset)
    if diff:
        raise ConfigError(
            f"{workdir} holds a run with another config or other data:\n" + "\n".join(diff) + "\n"
            "Choose another --workdir, or pass --allow_config_change to go on with the new one."
        )


def claim(workdir: pathlib.Path, config: FrozenConfigDict, dataset: Mapping[str, Any]) -> None:
    """Writes what the run is into its work directory, once it is known to be able to start.

    Raises:
      ConfigError: the work directory cannot be written.
    """
    try:
        write_json(workdir / CONFIG, config_to_json(config))
        write_json(workdir / DATASET, dataset)
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} cannot be written: {error.strerror}.") from error


def read_config(workdir: pathlib.Path) -> FrozenConfigDict:
    """The config of the run in a work directory.

    Raises:
      CheckpointError: there is no run there.
    """
    path = workdir / CONFIG
    try:
        plain = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{workdir} is not the work directory of a run: it holds no {CONFIG}. Give the "
            "--workdir that vit_jax.train wrote."
        ) from None
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return freeze(config_from_json(plain))


def read_dataset(workdir: pathlib.Path) -> dict[str, Any]:
    """What `dataset.json` says: name, num_classes, class_names, channels, num_examples.

    Raises:
      CheckpointError: the run has not got as far as writing it.
    """
    try:
        return json.loads((workdir / DATASET).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{workdir / DATASET} cannot be read: {error}") from error


def describe_dataset(source: Source, *, num_classes: int) -> dict[str, Any]:
    """What the outputs of a model trained on `source` mean; outputs beyond its classes get names.

    Args:
      source: what is trained on.
      num_classes: of the model.
    """
    names = list(source.class_names)
    return {
        "name": source.name,
        "split": source.split,
        "num_examples": len(source),
        "num_classes": num_classes,
        "class_names": names + [f"class {i}" for i in range(len(names), num_classes)],
        "channels": source.channels,
    }
