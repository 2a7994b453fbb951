"""Turns the points of a sweep into runs: each with a name, a command and a checked config.

A point is a flat dict: keys of the config ("optim.lr"), arguments of the file's get_config with a
leading colon (":model"), "name" and "branch_of" (see `vit_jax.sweeps.grids`). A run is the command
`vit-jax train` with these as flags, so every run can also be started by hand.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import FrozenConfigDict

from vit_jax.config import other_units
from vit_jax.data import inherit
from vit_jax.errors import CheckpointError, ConfigError, did_you_mean
from vit_jax.rundir import workdir as workdirs
from vit_jax.sweeps import record as records
from vit_jax.sweeps.grids import BRANCH_OF, NAME, point_name

# Names of folders that are safe in every file system and shell.
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,=+@-]{0,199}")
_RESERVED_NAMES = ("runs.parquet", "runs.csv")  # Files of `vit_jax.sweeps.table`.


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
      name: name of its folder in the sweep's folder.
      values: the point as JSON values, without name and branch_of.
      flags: the --config... flags of `vit_jax.train`.
      config: the config that these flags define.
      workdir: its work directory.
      branch_of: the run and the step whose state it starts from, or None.
    """

    name: str
    values: Mapping[str, Any]
    flags: tuple[str, ...]
    config: FrozenConfigDict
    workdir: pathlib.Path
    branch_of: tuple[str, int] | None = None

    @property
    def command(self) -> list[str]:
        """Returns the command line of the run."""
        return [sys.executable, "-m", "vit_jax.train", *self.flags, f"--workdir={self.workdir}"]


def plan_runs(
    points: Iterable[Any],
    *,
    file: str,
    argument: str,
    overrides: Mapping[str, Any],
    folder: pathlib.Path,
    configure: Callable[[Sequence[str]], FrozenConfigDict],
    invalid: dict[str, str] | None = None,
) -> list[PlannedRun]:
    """Makes the runs of a sweep, in the order in which they start.

    Args:
      points: the result of the file's sweep().
      file: the config file.
      argument: the text after the colon of --config, passed to sweep() and to get_config() of each
        run.
      overrides: overrides of the sweep's command line, for every run: {"optim.lr": 0.001}.
      folder: the folder of the sweep.
      configure: returns the config of --config... flags (`vit_jax.cli.config_of`).
      invalid: receives the reason of each invalid point by name; None: the first one raises.

    Returns:
      The runs; a branch comes after its trunk.

    Raises:
      ConfigError: there is no point; or a point is not a dict, has an invalid or duplicate name,
        sets an unknown key or one that the command line sets, or branches from a run or a step
        whose state is not kept.
    """
    named = _named_points(points)
    if not named:
        raise ConfigError(f"--config={file}: sweep() returned no point.")
    runs: dict[str, PlannedRun] = {}
    for name, point in _trunks_first(named):
        try:
            runs[name] = _plan_run(
                name,
                point,
                runs,
                file=file,
                argument=argument,
                overrides=overrides,
                folder=folder,
                configure=configure,
            )
        except ConfigError as error:
            if invalid is None:
                raise
            invalid[name] = str(error).removeprefix(f"sweep(), {name}: ")
    return list(runs.values())


def _plan_run(
    name: str,
    point: Mapping[str, Any],
    runs: Mapping[str, PlannedRun],
    *,
    file: str,
    argument: str,
    overrides: Mapping[str, Any],
    folder: pathlib.Path,
    configure: Callable[[Sequence[str]], FrozenConfigDict],
) -> PlannedRun:
    """Makes the run of a point; `runs` has its trunk. The rest: see `plan_runs`."""
    where = f"sweep(), {name}"
    branch_of = point.get(BRANCH_OF)
    settings = {key: value for key, value in point.items() if key not in (NAME, BRANCH_OF)}
    arguments = {key[1:]: settings[key] for key in settings if key.startswith(":")}
    keys = {key: value for key, value in settings.items() if not key.startswith(":")}
    _check_keys(keys, overrides, where)
    flags = [f"--config={_with_arguments(file, argument, arguments, where)}"]
    flags += [f"--config.{key}={_flag_value(value, where)}" for key, value in overrides.items()]
    flags += [f"--config.{key}={_flag_value(value, where)}" for key, value in keys.items()]
    workdir = folder / name
    if branch_of and "resume" in overrides:
        raise ConfigError(
            f"{where}: it is a branch, and the command line sets --config.resume for all runs: "
            "remove one of the two."
        )
    if branch_of:
        if branch_of[0] not in runs:
            raise ConfigError(f"{where}: its trunk {branch_of[0]} is invalid.")
        flags.append(f"--config.resume={_trunk_state_path(workdir, folder, branch_of)}")
        _check_trunk_state(runs[branch_of[0]], branch_of[1], where)
    try:
        config = configure(flags)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if branch_of:
        _check_own_steps(config, branch_of, where)
    values = {key: _json_value(value) for key, value in settings.items()}
    return PlannedRun(name, values, tuple(flags), config, workdir, branch_of)


def check_unchanged(run: PlannedRun) -> None:
    """Checks that a run that has begun still has the same config.

    Raises:
      ConfigError: the config has changed; the message shows each key that differs.
    """
    if _is_written(
        run.workdir / workdirs.CONFIG, workdirs.config_to_json(run.config)
    ):  # The usual case, and the fast one.
        return
    finished = records.read(run.workdir).status == "finished"
    if not finished and not workdirs.has_checkpoints(run.workdir):
        return
    try:
        then = workdirs.comparable(workdirs.read_config(run.workdir))
    except CheckpointError as error:
        if finished:  # Its config file may have been deleted.
            return
        raise ConfigError(
            f"{error}\nNothing was started. Restore the file, or move {run.workdir} away: then "
            f"{run.name} starts from scratch."
        ) from error
    now = workdirs.comparable(run.config)
    if run.config.init_from:  # The checkpoint has filled the unset keys.
        for new, old in (
            (now["model"], then["model"]),
            (now["model"]["resnet"], then["model"].get("resnet") or {}),
        ):
            new |= {key: old.get(key) for key, value in new.items() if value in (None, "")}
        for key in ("train_transforms", "eval_transforms"):
            kept = inherit.keep(now["data"][key], then["data"][key])
            now["data"][key] = list(kept)
    if diff := workdirs.config_changes(then, now):
        raise ConfigError(
            f"{run.workdir} has a run with another config than {run.name} has now:\n"
            + "\n".join(diff)
            + "\nNothing was started. Undo the change, give the point another name, move the "
            "folder away, or choose another --workdir."
        )


def _is_written(path: pathlib.Path, plain: Mapping[str, Any]) -> bool:
    """Returns whether a JSON file has exactly this content."""
    try:
        return json.loads(path.read_bytes()) == json.loads(json.dumps(plain))
    except (OSError, ValueError):
        return False


# ------------------------------------------------------------------------------ names and order


def _named_points(points: Iterable[Any]) -> dict[str, Mapping[str, Any]]:
    named: dict[str, Mapping[str, Any]] = {}
    by_lower_case: dict[str, str] = {}
    for i, point in enumerate(points):
        if not isinstance(point, Mapping) or not all(isinstance(key, str) for key in point):
            raise ConfigError(
                f"sweep(): point {i} is {point!r:.200}: it must be a dict of changed keys, such as "
                '{":model": "vit", "optim.lr": 1e-3, "seed": 0}.'
            )
        name = point[NAME] if NAME in point else point_name(point)
        if not isinstance(name, str) or not _SAFE_NAME.fullmatch(name):
            raise ConfigError(
                f"sweep(), point {i}: {name!r:.300} cannot be the name of a run and its folder: "
                "use up to 200 letters, digits and . _ , = + @ -, beginning with a letter or a "
                f'digit. Give the point a "{NAME}".'
            )
        if name.lower() in _RESERVED_NAMES:
            raise ConfigError(
                f"sweep(), point {i}: {name} is the name of the sweep's table: choose another name."
            )
        # Some file systems ignore upper and lower case.
        if (other := by_lower_case.setdefault(name.lower(), name)) in named:
            shared = name if other == name else f"{other}, up to upper and lower case"
            raise ConfigError(
                f"sweep(): two points have the name {shared}: {dict(named[other])} and "
                f'{dict(point)}. Give each of them another "{NAME}".'
            )
        named[name] = point
    return named


def _trunks_first(named: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns the points in their order, but every trunk before its branches."""
    ordered: dict[str, Mapping[str, Any]] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            cycle = " -> ".join((*path[path.index(name) :], name))
            raise ConfigError(f"sweep(): {BRANCH_OF} forms a cycle: {cycle}.")
        if name in ordered:
            return
        branch_of = named[name].get(BRANCH_OF)
        if branch_of is not None:
            _check_branch(name, branch_of, named)
            visit(branch_of[0], (*path, name))
        ordered[name] = named[name]

    for name in named:
        visit(name, ())
    return list(ordered.items())


def _check_branch(name: str, branch_of: Any, named: Mapping[str, Any]) -> None:
    pair = isinstance(branch_of, tuple) and len(branch_of) == 2
    if not pair or not isinstance(branch_of[0], str) or type(branch_of[1]) is not int:
        raise ConfigError(
            f'sweep(), {name}: {BRANCH_OF} is {branch_of!r}: write ("name of a run", step).'
        )
    if branch_of[0] not in named:
        raise ConfigError(
            f"sweep(), {name}: {BRANCH_OF} names {branch_of[0]}, which is not a run of the sweep. "
            + did_you_mean(branch_of[0], named)
        )


def _check_trunk_state(trunk: PlannedRun, step: int, where: str) -> None:
    """Raises ConfigError if a trunk does not keep the state that a branch starts from."""
    checkpoint = trunk.config.checkpoint
    every = checkpoint.keep_every_steps
    last = trunk.config.total_steps
    if step < 1 or (last is not None and step > last):
        length = "" if last is None else f", which has {last}"
        raise ConfigError(
            f"{where}: {BRANCH_OF} is step {step} of {trunk.name}{length}: choose a step from 1 to "
            "the last one."
        )
    # Periodic saves are kept for good at multiples of keep_every_steps. In another unit than steps,
    # it is not known when they are due before the data are opened.
    saves = checkpoint.every_steps
    is_periodic = every and saves and step % every == 0 and step % saves == 0
    if step not in (*checkpoint.keep_steps, last) and not is_periodic:
        raise ConfigError(
            f"{where}: {BRANCH_OF} is step {step} of {trunk.name}, which does not keep the state "
            f'of that step. Set "checkpoint.keep_steps": ({step},) in the point {trunk.name}.'
        )


def _check_own_steps(config: FrozenConfigDict, branch_of: tuple[str, int], where: str) -> None:
    """Raises ConfigError if a branch has no steps after the trunk's state."""
    name, step = branch_of
    if config.total_steps is not None and config.total_steps <= step:
        raise ConfigError(
            f"{where}: it starts from step {step} of {name}, but has only {config.total_steps} "
            "steps: raise total_steps, or choose an earlier step."
        )


# ------------------------------------------------------------------------------ flags and values


def _check_keys(keys: Mapping[str, Any], overrides: Mapping[str, Any], where: str) -> None:
    for key in keys:
        if overridden := [other for other in (key, *other_units(key)) if other in overrides]:
            raise ConfigError(
                f"{where}: it sets {key}, and the command line sets --config.{overridden[0]} for "
                "all runs: remove one of the two."
            )
        if key == "resume":
            raise ConfigError(f'{where}: it sets resume: write "{BRANCH_OF}": (NAME, STEP).')


def _with_arguments(file: str, argument: str, arguments: Mapping[str, Any], where: str) -> str:
    items = [item for item in argument.split(",") if item.partition("=")[0] not in arguments]
    for key, value in arguments.items():
        if "," in (text := _flag_value(value, where)):
            raise ConfigError(f"{where}: :{key} is {text!r}: an argument cannot contain a comma.")
        items.append(f"{key}={text}")
    joined = ",".join(item for item in items if item)
    return f"{file}:{joined}" if joined else file


def _json_value(value: Any) -> Any:
    """Converts a value to JSON's types: NumPy numbers to Python numbers, tuples to lists."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple | list):
        return [_json_value(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _json_value(item) for key, item in value.items()}
    return value


def _flag_value(value: Any, where: str) -> str:
    """Formats a value for --config.KEY=VALUE."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return repr(tuple(map(_python_value, value)))
    raise ConfigError(
        f"{where}: {value!r:.200} cannot be the value of a key: write a number, text, true or "
        "false, None or a tuple of these; set the keys of a section one by one."
    )


def _python_value(value: Any) -> Any:
    """Converts NumPy numbers in a tuple to Python numbers, whose repr can be parsed."""
    if isinstance(value, tuple | list):
        return type(value)(map(_python_value, value))
    if isinstance(value, Mapping):
        return {key: _python_value(item) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _trunk_state_path(
    workdir: pathlib.Path, folder: pathlib.Path, branch_of: tuple[str, int]
) -> str:
    """Returns the path of the trunk's state; for a branch that has begun, the path in its config.

    Such a branch resumes from its own checkpoints. Another path would count as a changed config, so
    this allows moving the folder of a sweep.
    """
    if workdirs.has_checkpoints(workdir) or records.read(workdir).status == "finished":
        with contextlib.suppress(CheckpointError):  # `check_unchanged` raises it if necessary.
            return workdirs.read_config(workdir).resume
    name, step = branch_of
    return str(folder / name / workdirs.CHECKPOINTS / str(step))
