"""Treats a work directory of vit_jax as a pretrained model, like any published checkpoint."""

import dataclasses
import os
import re
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from ml_collections import FrozenConfigDict

from vit_jax import storage
from vit_jax.checkpoints.load import Location, locate
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.models import ModelConfig, read_section
from vit_jax.parallel.constraints import AXES
from vit_jax.rundir import workdir as workdirs


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The data that a run trained a model on.

    Attributes:
      config: the run's config, with its `data` and the splits of its `evals`.
      dataset: see `vit_jax.rundir.workdir.read_dataset`.
    """

    config: FrozenConfigDict
    dataset: dict[str, Any]


def is_run(path: str | os.PathLike) -> bool:
    """Returns whether a path is a work directory, or a checkpoint in one."""
    if re.match(r"https?://", os.fspath(path)):
        return False
    folder = storage.as_path(path)
    if folder.name.isdigit() and folder.parent.name == workdirs.CHECKPOINTS:
        return True
    if not storage.is_local(folder) and re.search(r"\.\w+(:\w+)?$", folder.name):
        return False  # A file; saves a request to the object store.
    try:
        return storage.exists(folder / workdirs.DATASET)
    except OSError as error:
        raise CheckpointError(
            f"{str(path)[:300]} cannot be opened: {storage.explain(error)}."
        ) from error


def refuse_hints(path: str | os.PathLike, *hints: Collection[Any] | None) -> None:
    """Raises ConfigError if hints or patterns of tensors to leave out are given for a run."""
    if any(hints):
        raise ConfigError(
            f"{path} is a work directory, whose config describes the model: give no hints and no "
            "leave_out for it."
        )


def describe_run(path: str | os.PathLike) -> tuple[Location, FrozenConfigDict, ModelConfig]:
    """Returns a run's checkpoint, config and model config; no parameter is read.

    Raises:
      CheckpointError: the checkpoint does not exist, or the run's config or data set cannot be
        read.
    """
    location = locate(path)
    config = workdirs.read_config(location.workdir)
    num_classes = workdirs.read_dataset(location.workdir)["num_classes"]
    try:
        return location, config, read_section(config.model, num_classes=num_classes)
    except ConfigError as error:
        raise CheckpointError(
            f"{location.workdir / workdirs.CONFIG} describes no model: {error}"
        ) from error


def one_device() -> Mesh:
    """Returns a mesh of this process's first device."""
    devices = np.asarray(jax.local_devices()[:1]).reshape((1,) * len(AXES))
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))
