"""The files of a run's work directory that describe the run.

config.json      every key of the config, as it ran
dataset.json     what the model's outputs mean: class names, channels, examples
run.json         parameters, FLOPs and steps of the run, and the version of the code that ran last
metrics.jsonl    metrics, one line a step: a pure function of the config
timing.jsonl     throughput and waiting times, which depend on the machine
checkpoints/     one folder for each saved step
similarity/      of evaluations with layer_similarity: see `similarity_file`
failure.json     the error that ended the last start, until the run continues
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax import storage
from vit_jax.config import base_config, eval_form, freeze
from vit_jax.data.base import Source
from vit_jax.errors import CheckpointError, ConfigError, VitJaxError, did_you_mean
from vit_jax.rundir import extension

CONFIG = "config.json"
DATASET = "dataset.json"
SUMMARY = "run.json"
CHECKPOINTS = "checkpoints"
SIMILARITY = "similarity"
FAILURE = "failure.json"

_OTHER_EXAMPLES = (
    "\nAnother fingerprint: the examples or their order have changed (files were added, removed, "
    "renamed or moved, or it is another version of the data set). Restore them, and the run "
    "continues exactly. Data without splits of their own: since release 0.2.0 the test split is "
    "stratified by class, so a run that began before was trained on some of what is tested now."
)

_OTHER_LENGTH = (
    "\nTo continue the run up to a larger length, run the same command with --extend: it says what "
    "that does to the learning rate."
)

# In bytes, far above what vit_jax writes: a work directory may come from an untrusted source.
_LARGEST_CONFIG = 2**20
_LARGEST_DATASET = 2**26
# Of the entries of a folder that is no run itself.
_MOST_SEARCHED, _MOST_NAMED = 100, 5


def similarity_file(workdir: epath.PathLike, name: str) -> epath.Path:
    """Returns the file that compares the states that the evaluation `name` has measured.

    A run writes it when it ends. A line has a `step`, the `final_step`, and metrics: the linear CKA
    of the state after `step` updates with the final one, of a layer or the mean over all.
    """
    return epath.Path(workdir) / SIMILARITY / name / "to_final_state.jsonl"


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes a JSON file atomically.

    Raises:
      OSError: the file cannot be written.
      ValueError: the value contains NaN or an infinity.
    """
    storage.write_bytes(path, json.dumps(value, indent=2, allow_nan=False).encode() + b"\n")


def read_json(path: epath.PathLike, *, limit: int) -> dict[str, Any]:
    """Reads a JSON file of one object, of at most `limit` bytes.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is not JSON (NaN and the infinities are not), or not an object.
    """
    content = storage.read_bytes(path, limit=limit)
    try:
        value = json.loads(content, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds {type(value).__name__} where an object should be")
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is not a number of JSON")
    return value


def config_to_json(config: ConfigDict | FrozenConfigDict) -> dict[str, Any]:
    """Returns a config as plain data: nested dicts, lists, numbers, strings, None."""
    return _plain(config)


_WITHOUT_EFFECT = {
    "log": ("compilation_cache",),
    "data": ("workers", "threads", "prefetch", "cache", "cache_gb"),
}


def comparable(config: ConfigDict | FrozenConfigDict, but: Sequence[str] = ()) -> dict[str, Any]:
    """Returns a config as plain data, without the keys that may differ within one run.

    These are the folder of compiled programs and the settings of the loaders and their cache, on
    which no result depends, and the top-level keys `but`. An evaluation may lack the units of its
    period that it does not use.
    """
    plain = {key: value for key, value in config_to_json(config).items() if key not in but}
    for section, keys in _WITHOUT_EFFECT.items():
        plain[section] = {k: v for k, v in plain[section].items() if k not in keys}
    for name, entry in plain.get("evals", {}).items():
        plain["evals"][name] = {k: v for k, v in entry.items() if v is not None}
    return plain


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns a line for each key in which a config makes another run than the one that has begun.

    `data.on_bad` may become "skip": while it was "error" no example was left out, so the run goes
    on, to the bit, as if it had been "skip" from the start. `model.remat` and
    `compiler` may change: results are equal up to rounding, as on other devices.

    Args:
      old: the `comparable` config of the run that has begun.
      new: that of the run now.
    """
    if new["data"]["on_bad"] == "skip":
        old = {**old, "data": {**old["data"], "on_bad": "skip"}}
    old = {**old, "model": {**old["model"], "remat": new["model"]["remat"]}}
    old = {**old, "compiler": new["compiler"]}
    return config_diff(old, new)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping | ConfigDict | FrozenConfigDict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def config_from_json(plain: Mapping[str, Any]) -> ConfigDict:
    """Inverts `config_to_json`; keys that a later release added get their defaults.

    Raises:
      ConfigError: a key does not exist, or a value has another type.
    """
    config = base_config()
    rest = dict(plain)
    try:
        evals = {name: _eval(entry) for name, entry in rest.pop("evals", {}).items()}
        _check_keys(rest, config)
        config.update(_tuples(rest))
        with config.unlocked():
            config.evals = ConfigDict(evals)
    except (KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:300]
        raise ConfigError(f"Not a config of this release of vit_jax: {reason}") from error
    return config


def _eval(plain: Mapping[str, Any]) -> ConfigDict:
    entry = eval_form(plain.get("type")).lock()
    _check_keys(plain, entry)
    entry.update(_tuples(dict(plain)))
    return entry


def _check_keys(plain: Mapping[str, Any], config: ConfigDict) -> None:
    """Raises ValueError, with a message of bounded length, for a key that the config lacks."""
    for key, value in plain.items():
        if key not in config:
            raise ValueError(f"there is no key {key[:80]!r}. {did_you_mean(key[:80], config)}")
        section = config[key]
        if isinstance(value, Mapping) and isinstance(section, ConfigDict):
            _check_keys(value, section)


def _tuples(value: Any) -> Any:
    """Replaces lists, the only sequence of JSON, by tuples, the only one of configs."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def flatten(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts: {"optim": {"lr": 0.001}} becomes {"optim.lr": 0.001}."""
    flat = {}
    for key, value in plain.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def config_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns a line for each key in which two plain configs differ."""
    old, new = flatten(old), flatten(new)
    absent = "(absent)"
    return [
        f"  {key}: {old.get(key, absent)!r} -> {new.get(key, absent)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    ]


def make(workdir: epath.PathLike) -> None:
    """Creates the work directory, if it does not exist.

    Raises:
      ConfigError: it cannot be created.
    """
    with storage.reported(ConfigError, f"--workdir={workdir} cannot be made"):
        storage.make_folder(workdir)


def has_checkpoints(workdir: epath.PathLike) -> bool:
    """Returns whether a work directory exists and has checkpoints.

    Raises:
      ConfigError: the folder cannot be read.
    """
    with storage.reported(ConfigError, f"--workdir={workdir}: {CHECKPOINTS} cannot be read"):
        names = storage.names(epath.Path(workdir) / CHECKPOINTS)
    return any(name.isdigit() for name in names)


def check_claim(
    workdir: epath.PathLike,
    config: FrozenConfigDict,
    dataset: Mapping[str, Any],
    *,
    allow_config_change: bool,
    extend: bool = False,
) -> FrozenConfigDict | None:
    """Checks that the work directory belongs to this run or to none; call it under the lock.

    A work directory belongs to a run from the first checkpoint on: what failed before that may
    still be corrected. `dataset` is the result of `describe_dataset`. `allow_config_change` accepts
    any difference, `extend` a larger length of the run (vit_jax.rundir.extension).

    Returns:
      The config that the run had, if this one extends it; else None.

    Raises:
      ConfigError: the work directory belongs to a run with another config, other classes or other
        examples (the difference is shown), or it cannot be read.
      CheckpointError: there are checkpoints, but the run's config or data set cannot be read.
    """
    if allow_config_change or not has_checkpoints(workdir):
        return None
    try:
        old_config, old_dataset = read_config(workdir), read_dataset(workdir)
    except VitJaxError as error:
        if isinstance(error.__cause__, OSError):  # The file may be whole, and readable later.
            raise
        raise CheckpointError(
            f"{error}\nThere are checkpoints in {workdir}. Restore the file; or pass "
            "--allow_config_change to continue from them with the config given now."
        ) from error
    diff = config_changes(comparable(old_config), comparable(config))
    is_other_length = bool(diff) and not config_changes(
        comparable(old_config, but=extension.LENGTHS), comparable(config, but=extension.LENGTHS)
    )
    # Release 0.1.0 wrote no fingerprints: then there are none to compare.
    old_dataset = {key: dataset[key] for key in ("fingerprint", "evals")} | old_dataset
    data_diff = config_diff(old_dataset, dataset)
    if extend and is_other_length and not data_diff:
        extension.check_longer(old_config, config, dataset["num_examples"])
        return old_config
    diff += data_diff
    # An evaluation that only one of the two has is a difference of the config, not of the data.
    old = flatten({key: old_dataset[key] for key in ("fingerprint", "evals")})
    new = flatten({key: dataset[key] for key in ("fingerprint", "evals")})
    examples_differ = any(old[key] != new[key] for key in old.keys() & new.keys())
    if diff:
        raise ConfigError(
            f"{workdir} holds a run with another config or other data:\n"
            + "\n".join(diff)
            + (_OTHER_EXAMPLES if examples_differ else "")
            + ("\n--extend accepts a larger length, and nothing else." if extend else "")
            + (_OTHER_LENGTH if is_other_length and not data_diff else "")
            + "\nChoose another --workdir, or pass --allow_config_change to continue with the new "
            "one."
        )
    return None


def claim(
    workdir: epath.PathLike,
    config: FrozenConfigDict,
    dataset: Mapping[str, Any],
    summary: Mapping[str, Any] | None = None,
) -> None:
    """Writes the files that describe a run; call it when the run is known to be able to start.

    `dataset` is the result of `describe_dataset`; `summary` is that of
    `vit_jax.training.reports.run_summary`, or None for a published model that is written as a run.

    Raises:
      ConfigError: the work directory cannot be written.
    """
    workdir = epath.Path(workdir)
    with storage.reported(ConfigError, f"--workdir={workdir} cannot be written"):
        write_json(workdir / CONFIG, config_to_json(config))
        write_json(workdir / DATASET, dataset)
        if summary is not None:
            write_json(workdir / SUMMARY, summary)


def read_config(workdir: epath.PathLike) -> FrozenConfigDict:
    """Returns the config of the run in a work directory.

    Raises:
      CheckpointError: the folder holds no run, or its config cannot be read.
    """
    path = epath.Path(workdir) / CONFIG
    try:
        return freeze(config_from_json(read_json(path, limit=_LARGEST_CONFIG)))
    except FileNotFoundError:
        raise CheckpointError(
            f"{workdir} is not the work directory of a run: it holds no {CONFIG}. "
            + (runs_inside(workdir) or "Give the --workdir that `vit-jax train` wrote.")
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {storage.explain(error)}.") from error
    except ValueError as error:  # Includes ConfigError.
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def runs_inside(folder: epath.PathLike) -> str:
    """Returns the end of an error about a folder that is no run: the runs in it; "" if none are."""
    folder = epath.Path(folder)
    try:
        paths = [folder / name for name in storage.names(folder)[:_MOST_SEARCHED]]
        runs = [os.fspath(path) for path in paths if storage.exists(path / DATASET)]
    except OSError:
        return ""
    more = f" and {len(runs) - _MOST_NAMED} more" if len(runs) > _MOST_NAMED else ""
    named = f"{folder} holds runs: {', '.join(runs[:_MOST_NAMED])}{more}. Name one of them."
    return named if runs else ""


_DATASET_KEYS = {
    "name": str,
    "split": str,
    "num_examples": int,
    "num_classes": int,
    "class_names": list,
    "channels": int,
}


def read_dataset(workdir: epath.PathLike) -> dict[str, Any]:
    """Returns the contents of `dataset.json`: the keys of `describe_dataset`.

    Raises:
      CheckpointError: the file is missing or damaged.
    """
    path = epath.Path(workdir) / DATASET
    try:
        dataset = read_json(path, limit=_LARGEST_DATASET)
        for key, kind in _DATASET_KEYS.items():
            if type(dataset.get(key)) is not kind:
                raise ValueError(f"{key} is not of type {kind.__name__}")
        if not all(isinstance(name, str) for name in dataset["class_names"]):
            raise ValueError("class_names are not all text")
        if dataset["num_classes"] != len(dataset["class_names"]):
            raise ValueError(
                f"num_classes is {dataset['num_classes']}, and there are "
                f"{len(dataset['class_names'])} class_names"
            )
        return dataset
    except FileNotFoundError:
        raise CheckpointError(f"{workdir} holds no {DATASET}: the run did not start.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {storage.explain(error)}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error


def class_names(num_classes: int, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns a name for each class: the given ones, then "class i" for the others."""
    return (*names, *(f"class {i}" for i in range(len(names), num_classes)))


def describe_dataset(
    source: Source, *, num_classes: int, evals: Mapping[str, str]
) -> dict[str, Any]:
    """Returns the contents of dataset.json: the meaning of a model's outputs, and its examples.

    Args:
      source: the training data.
      num_classes: the model's; may exceed those of `source`, for which `class_names` makes names.
      evals: for each evaluation the fingerprint of its examples.
    """
    return {
        "name": source.name,
        "split": source.split,
        "num_examples": len(source),
        "num_classes": num_classes,
        "class_names": list(class_names(num_classes, source.class_names)),
        "channels": source.channels,
        "fingerprint": source.fingerprint,
        "evals": dict(evals),
    }
