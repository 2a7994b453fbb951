"""The points of a sweep as runs: each with a name, a command and a config, all of them checked.

A point is a flat dict: keys of the config ("optim.lr"), arguments of the file's get_config with a
colon in front (":model"), "name" and "branch_of" (see `vit_jax.sweeps.grids`). A run is the
command `python -m vit_jax.train` with these as flags: whatever a sweep does, one can do by hand.
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
from vit_jax.errors import CheckpointError, ConfigError, did_you_mean
from vit_jax.rundir import workdir as workdirs
from vit_jax.sweeps import record as records
from vit_jax.sweeps.grids import BRANCH_OF, NAME, point_name

# Safe in every file system and shell; a name is a folder's.
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,=+@-]{0,199}")
_OURS = ("runs.parquet", "runs.csv")  # Of `vit_jax.sweeps.table`, which imports records of runs.


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
      name: of its folder in the sweep's.
      values: what the point sets, by its keys, as JSON has it; without name and branch_of.
      flags: the --config... flags of `vit_jax.train`.
      config: that these give.
      workdir: of the run.
      branch_of: the run and the step whose state it goes on from, or None.
    """

    name: str
    values: Mapping[str, Any]
    flags: tuple[str, ...]
    config: FrozenConfigDict
    workdir: pathlib.Path
    branch_of: tuple[str, int] | None = None

    @property
    def command(self) -> list[str]:
        """What is executed, here or in a job."""
        return [sys.executable, "-m", "vit_jax.train", *self.flags, f"--workdir={self.workdir}"]

    @property
    def trunk_state(self) -> pathlib.Path | None:
        """The checkpoint that it begins with, if it is a branch."""
        if self.branch_of is None:
            return None
        name, step = self.branch_of
        return self.workdir.parent / name / workdirs.CHECKPOINTS / str(step)


def plan_runs(
    points: Iterable[Any],
    *,
    file: str,
    argument: str,
    overrides: Mapping[str, Any],
    folder: pathlib.Path,
    configure: Callable[[Sequence[str]], FrozenConfigDict],
) -> list[PlannedRun]:
    """Makes the runs of a sweep, in the order in which they are to start.

    Args:
      points: what the file's sweep() gave.
      file: the config file.
      argument: what follows the colon of --config, for sweep() and for every get_config().
      overrides: of the sweep's own command line, for every run: {"optim.lr": 0.001}.
      folder: of the sweep.
      configure: gives the config of --config... flags (`vit_jax.cli.config_of`).

    Returns:
      The runs; a branch comes after its trunk.

    Raises:
      ConfigError: there is no point; or one is no dict, has no name that a folder can have or one
        that another has, too; sets a key that there is not, or that the command line sets; or goes
        on from a run or a step that is not there to go on from.
    """
    named = _names(points)
    if not named:
        raise ConfigError(f"--config={file}: sweep() gave no point.")
    runs = {}
    for name, point in _in_order(named):
        where = f"sweep(), {name}"
        branch_of = point.get(BRANCH_OF)
        settings = {key: value for key, value in point.items() if key not in (NAME, BRANCH_OF)}
        arguments = {key[1:]: settings[key] for key in settings if key.startswith(":")}
        keys = {key: value for key, value in settings.items() if not key.startswith(":")}
        _check_keys(keys, overrides, where)
        flags = [f"--config={_with_arguments(file, argument, arguments, where)}"]
        flags += [f"--config.{key}={_text(value, where)}" for key, value in overrides.items()]
        flags += [f"--config.{key}={_text(value, where)}" for key, value in keys.items()]
        workdir = folder / name
        if branch_of:
            flags.append(f"--config.resume={_resume(workdir, folder, branch_of)}")
            _check_kept(runs[branch_of[0]], branch_of[1], where)
        try:
            config = configure(flags)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        if branch_of:
            _check_own_steps(config, branch_of, where)
        values = {key: _plain(value) for key, value in settings.items()}
        runs[name] = PlannedRun(name, values, tuple(flags), config, workdir, branch_of)
    return list(runs.values())


def check_unchanged(run: PlannedRun) -> None:
    """Checks that what is in a run's folder, once it has begun, is of the config that it now has.

    Raises:
      ConfigError: it is not: each key that differs is shown.
    """
    now = workdirs.config_to_json(run.config)
    if _is_written(run.workdir / workdirs.CONFIG, now):  # Of hundreds of runs, all but a few.
        return
    finished = records.read(run.workdir).status == "finished"
    if not finished and not workdirs.has_checkpoints(run.workdir):
        return
    try:
        then = workdirs.config_to_json(workdirs.read_config(run.workdir))
    except CheckpointError as error:
        if finished:  # What is left of it, somebody has tidied up.
            return
        raise ConfigError(
            f"{error}\nNothing was started. Put the file back, or move {run.workdir} away: then "
            f"{run.name} begins again."
        ) from error
    if run.config.init_from:  # What it left open, the checkpoint has decided.
        open_keys = [key for key, value in now["model"].items() if value in (None, "")]
        now["model"] |= {key: then["model"].get(key) for key in open_keys}
        now["model"]["resnet"] = then["model"].get("resnet")
    if diff := workdirs.config_diff(then, now):
        raise ConfigError(
            f"{run.workdir} holds a run with another config than the sweep's {run.name} has now:\n"
            + "\n".join(diff)
            + "\nNothing was started. Undo the change, give the point another name, move the "
            "folder away, or choose another --workdir."
        )


def _is_written(path: pathlib.Path, plain: Mapping[str, Any]) -> bool:
    """Whether a file holds this and nothing else: reading it would say nothing new."""
    try:
        return json.loads(path.read_bytes()) == json.loads(json.dumps(plain))
    except (OSError, ValueError):
        return False


# ------------------------------------------------------------------------------ names and order


def _names(points: Iterable[Any]) -> dict[str, Mapping[str, Any]]:
    named: dict[str, Mapping[str, Any]] = {}
    spelled: dict[str, str] = {}
    for i, point in enumerate(points):
        if not isinstance(point, Mapping) or not all(isinstance(key, str) for key in point):
            raise ConfigError(
                f"sweep(): point {i} is {point!r:.200}: it must be a dict of changed keys, such as "
                '{":model": "vit", "optim.lr": 1e-3, "seed": 0}.'
            )
        name = point[NAME] if NAME in point else point_name(point)
        if not isinstance(name, str) or not _SAFE.fullmatch(name):
            raise ConfigError(
                f"sweep(), point {i}: {name!r:.300} cannot be the name of a run, which is that of "
                "its folder: up to 200 letters, digits and . _ , = + @ -, a letter or a digit "
                f'first. Give the point a "{NAME}".'
            )
        if name.lower() in _OURS:
            raise ConfigError(
                f"sweep(), point {i}: a run cannot be called {name}, as the sweep's table is."
            )
        # Some file systems take names for equal that differ in upper and lower case.
        if (other := spelled.setdefault(name.lower(), name)) in named:
            both = name if other == name else f"{other}, in upper or lower case"
            raise ConfigError(
                f"sweep(): two points have the name {both}: {dict(named[other])} and "
                f'{dict(point)}. Give them a "{NAME}" each.'
            )
        named[name] = point
    return named


def _in_order(named: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """The points as they came, but a branch not before its trunk."""
    done: dict[str, Mapping[str, Any]] = {}

    def place(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " -> ".join((*path[path.index(name) :], name))
            raise ConfigError(f"sweep(): runs go on from each other in a circle: {circle}.")
        if name in done:
            return
        branch_of = named[name].get(BRANCH_OF)
        if branch_of is not None:
            _check_branch(name, branch_of, named)
            place(branch_of[0], (*path, name))
        done[name] = named[name]

    for name in named:
        place(name, ())
    return list(done.items())


def _check_branch(name: str, branch_of: Any, named: Mapping[str, Any]) -> None:
    pair = isinstance(branch_of, tuple) and len(branch_of) == 2
    if not pair or not isinstance(branch_of[0], str) or type(branch_of[1]) is not int:
        raise ConfigError(
            f'sweep(), {name}: {BRANCH_OF} is {branch_of!r}: write ("name of a run", step).'
        )
    if branch_of[0] not in named:
        raise ConfigError(
            f"sweep(), {name}: {BRANCH_OF} names {branch_of[0]}, which is no run of the sweep. "
            + did_you_mean(branch_of[0], named)
        )


def _check_kept(trunk: PlannedRun, step: int, where: str) -> None:
    """Raises ConfigError if a trunk does not keep the state that a branch begins with."""
    kept = trunk.config.checkpoint
    every = kept.keep_every_steps
    last = trunk.config.total_steps
    if step < 1 or (last is not None and step > last):
        length = "" if last is None else f", which has {last}"
        raise ConfigError(
            f"{where}: {BRANCH_OF} is step {step} of {trunk.name}{length}: choose one from 1 to "
            "its last."
        )
    # Periodic saves; every n-th one is kept for good.
    regular = every and step % every == 0 and step % kept.every_steps == 0
    if step not in (*kept.keep_steps, last) and not regular:
        raise ConfigError(
            f"{where}: {BRANCH_OF} is step {step} of {trunk.name}, which does not keep its state "
            f'of that step. Give that point "checkpoint.keep_steps": ({step},).'
        )


def _check_own_steps(config: FrozenConfigDict, branch_of: tuple[str, int], where: str) -> None:
    """Raises ConfigError if a branch is at its end where it begins."""
    name, step = branch_of
    if config.total_steps is not None and config.total_steps <= step:
        raise ConfigError(
            f"{where}: it goes on from step {step} of {name}, and has {config.total_steps} steps "
            "in all: give it more, or an earlier step."
        )


# ------------------------------------------------------------------------------ flags and values


def _check_keys(keys: Mapping[str, Any], overrides: Mapping[str, Any], where: str) -> None:
    for key in keys:
        if taken := [other for other in (key, *other_units(key)) if other in overrides]:
            raise ConfigError(
                f"{where}: it sets {key}, and the command line sets --config.{taken[0]} for all "
                "runs: leave out one of the two."
            )
        if key == "resume":
            raise ConfigError(f'{where}: it sets resume: write "{BRANCH_OF}": (NAME, STEP).')


def _with_arguments(file: str, argument: str, arguments: Mapping[str, Any], where: str) -> str:
    given = [item for item in argument.split(",") if item.partition("=")[0] not in arguments]
    for key, value in arguments.items():
        if "," in (text := _text(value, where)):
            raise ConfigError(f"{where}: an argument's value ends at a comma, and :{key} has one.")
        given.append(f"{key}={text}")
    joined = ",".join(item for item in given if item)
    return f"{file}:{joined}" if joined else file


def _plain(value: Any) -> Any:
    """As JSON has it: numbers of NumPy as Python's, tuples as lists."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _text(value: Any, where: str) -> str:
    """A value as one writes it behind --config.KEY=."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return repr(tuple(map(_literal, value)))
    raise ConfigError(
        f"{where}: {value!r:.200} is no value of a key: write a number, text, true or false, None "
        "or a tuple of such, and the keys of a section one by one."
    )


def _literal(value: Any) -> Any:
    """A value within a tuple, with numbers of NumPy as Python's, which alone can be read again."""
    if isinstance(value, tuple | list):
        return type(value)(map(_literal, value))
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _resume(workdir: pathlib.Path, folder: pathlib.Path, branch_of: tuple[str, int]) -> str:
    """Where the trunk's state is; of a branch that has begun, where it was.

    It goes on from its own checkpoints, and would take another path for another config: so a
    sweep's folder may be moved.
    """
    if workdirs.has_checkpoints(workdir) or records.read(workdir).status == "finished":
        with contextlib.suppress(CheckpointError):  # `check_unchanged` raises it, if it matters.
            return workdirs.read_config(workdir).resume
    name, step = branch_of
    return str(folder / name / workdirs.CHECKPOINTS / str(step))
