"""Reads the parameters of a run, given its work directory or one of its checkpoints."""

import dataclasses
import re
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import FrozenConfigDict

from vit_jax import storage
from vit_jax.checkpoints.faults import differences
from vit_jax.config import validate
from vit_jax.errors import CheckpointError, did_you_mean
from vit_jax.models import ModelConfig, param_shapes, read_section
from vit_jax.optim.paths import matching
from vit_jax.parallel.rules import named_leaves, param_shardings, path_name
from vit_jax.rundir import workdir as workdirs


@dataclasses.dataclass(frozen=True)
class Location:
    """A run's work directory and the step of one of its checkpoints."""

    workdir: epath.Path
    step: int
    newest: int
    """The step of the run's newest checkpoint."""


def locate(path: epath.PathLike) -> Location:
    """Finds the checkpoint that a path names: WORKDIR (its newest) or WORKDIR/checkpoints/STEP.

    Raises:
      CheckpointError: the path is neither of these, or the run has no checkpoint yet.
      ConfigError: the path is invalid.
    """
    from vit_jax.checkpoints.store import Store

    path = storage.absolute(storage.as_path(path))
    if path.name.isdigit() and path.parent.name == workdirs.CHECKPOINTS:
        workdir, step = path.parent.parent, int(path.name)
    else:
        workdir, step = path, None
    folder = workdir / workdirs.CHECKPOINTS
    with storage.reported(CheckpointError, f"{path} cannot be read"):
        if not storage.exists(workdir if step is not None else path):
            raise CheckpointError(f"{path} does not exist.")
        workdirs.read_config(workdir)  # Raises an error if this is not a work directory.
        if not storage.names(folder):
            raise CheckpointError(f"{workdir} has no checkpoint yet: {folder} is missing or empty.")
    with Store(folder, read_only=True) as store:
        steps = store.steps()
    if not steps:
        raise CheckpointError(f"{workdir} has no complete checkpoint yet in {folder}.")
    if step is not None and step not in steps:
        fault = "is not a complete checkpoint" if storage.exists(path) else "does not exist"
        raise CheckpointError(f"{path} {fault}. {did_you_mean(path.name, map(str, steps))}")
    return Location(workdir, steps[-1] if step is None else step, newest=steps[-1])


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained model, read from a checkpoint of its run.

    Attributes:
      config: the run's config.
      dataset: the meaning of the outputs: see `vit_jax.rundir.workdir.read_dataset`.
      params: the averaged parameters (EMA) if the run has them, else the trained ones.
      step: the checkpoint's step.
      newest: the step of the run's newest checkpoint.
      workdir: the run's work directory.
    """

    config: FrozenConfigDict
    dataset: dict[str, Any]
    params: PyTree
    step: int
    newest: int
    workdir: epath.Path

    @property
    def model_config(self) -> ModelConfig:
        """The model's architecture and numerics."""
        return read_section(self.config.model, num_classes=self.dataset["num_classes"])


def load_run(path: epath.PathLike, *, mesh: Mesh) -> TrainedModel:
    """Reads config, class names and parameters of a run.

    Args:
      path: WORKDIR or WORKDIR/checkpoints/STEP.
      mesh: the parameters are sharded on it by `vit_jax.parallel.rules`; its shape may differ from
        that of the training.

    Raises:
      CheckpointError: the checkpoint does not exist or is broken, or its model is not the one that
        the work directory's config describes.
    """
    location = locate(path)
    run = TrainedModel(
        config=workdirs.read_config(location.workdir),
        dataset=workdirs.read_dataset(location.workdir),
        params=load_params(location, mesh=mesh),
        step=location.step,
        newest=location.newest,
        workdir=location.workdir,
    )
    _check_model(run)
    return run


def _check_model(run: TrainedModel) -> None:
    """Raises CheckpointError if the parameters do not fit the model that the config describes."""
    config = run.workdir / workdirs.CONFIG
    try:
        validate(run.config)
        shapes = param_shapes(run.model_config)
    except Exception as error:  # A forged config may raise any exception.
        raise CheckpointError(f"{config} describes no model: {str(error)[:1000]}") from error
    if lines := differences(named_leaves(run.params), named_leaves(shapes)):
        raise CheckpointError(
            f"The checkpoint of step {run.step:,} does not fit the model of {config}:\n"
            + "\n".join(lines)
        )


def load_params(location: Location, *, mesh: Mesh) -> PyTree:
    """Reads the averaged parameters of a checkpoint, or the trained ones if it has no average."""
    from vit_jax.checkpoints.store import Store

    with Store(location.workdir / workdirs.CHECKPOINTS, read_only=True) as store:
        item = "ema" if jax.tree.leaves(store.shapes(location.step, "ema")) else "params"
        shapes = store.shapes(location.step, item)
        targets = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            param_shardings(shapes, mesh),
        )
        arrays, _ = store.restore(location.step, {item: targets})
    return arrays[item]


def merge_params(fresh: PyTree, loaded: PyTree, *, skip: tuple[str, ...], source: str) -> PyTree:
    """Returns the loaded parameters, but the initial ones where `skip` matches.

    Args:
      fresh: the model's initial parameters.
      loaded: the checkpoint's parameters.
      skip: regular expressions; one that matches a whole parameter path keeps the initial value.
      source: the checkpoint's name, for errors.

    Raises:
      CheckpointError: names or shapes differ, apart from the skipped parameters.
      ConfigError: a pattern matches no parameter.
    """
    names = sorted(named_leaves(fresh).keys() | named_leaves(loaded).keys())
    for pattern in skip:
        matching(pattern, names, key="init_skip")

    def not_skipped(tree):
        return {
            name: leaf
            for name, leaf in named_leaves(tree).items()
            if not any(re.fullmatch(pattern, name) for pattern in skip)
        }

    copied = not_skipped(loaded)
    if lines := differences(copied, not_skipped(fresh)):
        raise CheckpointError(
            f"{source} does not fit the model:\n" + "\n".join(lines) + "\n"
            "Change the model, or name in init_skip the parameters to initialise."
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: copied.get(path_name(path), leaf), fresh
    )
