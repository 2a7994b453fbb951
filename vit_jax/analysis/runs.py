"""Reads runs, finished or not, from their work directories, for comparison."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax import storage
from vit_jax.config import thaw
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.evals.classification import TOP
from vit_jax.models.section import read_section, write_section
from vit_jax.optim import train_loss_difference
from vit_jax.rundir import workdir as workdirs
from vit_jax.telemetry.jsonlines import read_jsonl

_LARGEST_SUMMARY = 2**20  # Bytes.
_LOWER_IS_BETTER = ("loss", "ece")
Point = tuple[int, float]  # A step and the value there.


@dataclasses.dataclass(frozen=True)
class Run:
    """What a work directory says about a run, finished or not.

    Attributes:
      name: short, and different for each of the compared runs.
      config: keys with dots and their values: {"optim.lr": 0.001}; those of the model are the
        values that it has, also where the config leaves them to the variant.
      summary: run.json; {} of a run by release 0.1.0.
      metrics: lines of metrics.jsonl, at least one.
      timing: lines of timing.jsonl.
      train_loss: what makes the training loss another quantity than an evaluation's, such as "with
        Mixup" (`vit_jax.optim.train_loss_difference`); "": nothing.
      num_classes: of the model; None: unknown.
    """

    name: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    timing: Sequence[Mapping[str, Any]]
    train_loss: str = ""
    num_classes: int | None = None

    def series(self, name: str) -> list[Point]:
        """Returns steps and finite values of a metric or a timing."""
        lines = self.timing if name.startswith(("speed/", "time/")) else self.metrics
        return [(line["step"], line[name]) for line in lines if line.get(name) is not None]

    def last(self, name: str) -> Point | None:
        """Returns the last step with a metric or timing, and its value; None: there is none."""
        points = self.series(name)
        return points[-1] if points else None

    def best(self, name: str) -> Point | None:
        """Returns the first step with the best value: the lowest loss and ece, the highest top1."""
        points = self.series(name)
        choose = min if name.endswith(_LOWER_IS_BETTER) else max
        return choose(points, key=lambda point: point[1]) if points else None

    @property
    def steps(self) -> int:
        """Returns the last logged step."""
        return max(line["step"] for line in self.metrics)

    @property
    def evaluated(self) -> list[str]:
        """Returns the names of the metrics of evaluations, such as "test/top1".

        Left out are counts, and top-5 accuracy with at most five classes: it is always 1.
        """
        prefixes = tuple(f"{name}/" for name in _eval_names(self.config))
        names = dict.fromkeys(name for line in self.metrics for name in line)
        left_out = ["count"]
        if self.num_classes is not None and self.num_classes <= TOP:
            left_out.append("top5")
        return [
            name
            for name in names
            if name.startswith(prefixes) and name.rpartition("/")[2] not in left_out
        ]


def read_runs(paths: Sequence[epath.PathLike]) -> list[Run]:
    """Reads runs that have written at least one line of metrics.

    Args:
      paths: work directories, different from each other.

    Raises:
      ConfigError: there are fewer than two, or one is given twice.
      CheckpointError: a path is no work directory, such as a published checkpoint; or it is broken.
      DataError: the metrics of a run are missing or damaged.
    """
    workdir_list = [storage.as_path(path, name="RUN") for path in paths]
    absolute = [os.fspath(storage.absolute(path)) for path in workdir_list]
    if len(paths) < 2:
        raise ConfigError("Give at least two work directories of runs to compare.")
    if duplicates := {path for path in absolute if absolute.count(path) > 1}:
        raise ConfigError(f"{', '.join(sorted(duplicates))} is given twice.")
    return [
        _read_run(workdir, name)
        for workdir, name in zip(workdir_list, _short_names(absolute), strict=True)
    ]


def _read_run(workdir: epath.Path, name: str) -> Run:
    if not storage.exists(workdir / "metrics.jsonl"):
        if runs := workdirs.runs_inside(workdir):
            raise CheckpointError(f"{workdir} is not the work directory of a run. {runs}")
        missing = "holds no metrics.jsonl" if storage.exists(workdir) else "does not exist"
        raise CheckpointError(
            f"{workdir} {missing}: there are no training curves to compare. Give work directories "
            "of `vit-jax train`, which have logged a step. A published or converted model has "
            "none: `vit-jax evaluate` measures it."
        )
    config = workdirs.read_config(workdir)
    try:
        summary = workdirs.read_json(workdir / workdirs.SUMMARY, limit=_LARGEST_SUMMARY)
    except FileNotFoundError:
        summary = {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{workdir / workdirs.SUMMARY} cannot be read: {error}") from error
    metrics = read_jsonl(workdir / "metrics.jsonl")
    if not metrics:
        raise CheckpointError(f"{workdir}: the run has not logged a step yet.")
    has_timing = storage.exists(workdir / "timing.jsonl")
    timing = read_jsonl(workdir / "timing.jsonl") if has_timing else []
    classes = _num_classes(workdir)
    flat = workdirs.flatten(workdirs.comparable(_with_resolved_model(config, classes)))
    return Run(name, flat, summary, metrics, timing, train_loss_difference(config), classes)


def _with_resolved_model(config: FrozenConfigDict, classes: int | None) -> ConfigDict:
    """Returns a config whose model keys have the values of the model; else as it was recorded."""
    resolved = thaw(config)
    if classes is None:
        return resolved
    try:
        write_section(read_section(config.model, num_classes=classes), resolved.model)
    except ConfigError:  # Such as a model of an older release.
        return thaw(config)
    resolved.model.variant = config.model.variant  # By its own name.
    resolved.model.num_classes = config.model.num_classes
    return resolved


def _num_classes(workdir: epath.Path) -> int | None:
    try:
        return workdirs.read_dataset(workdir)["num_classes"]
    except CheckpointError:  # Only a row of a table depends on it.
        return None


def _short_names(paths: Sequence[str]) -> list[str]:
    """Returns the last components of each path, as many as tell all of them apart."""
    parts = [path.rstrip("/").split("/") for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-count:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def _eval_names(config: Mapping[str, Any]) -> list[str]:
    keys = (key.split(".") for key in config if key.startswith("evals."))
    return list(dict.fromkeys(parts[1] for parts in keys if len(parts) > 2))
