"""Reading the parameters of a run, given its work directory or one of its checkpoints."""

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
from vit_jax.checkpoints.store import Store
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
    """The checkpoint that a path means: WORKDIR (its newest) or WORKDIR/checkpoints/STEP.

    Raises:
      CheckpointError: neither, or the run has no checkpoint yet.
      ConfigError: the path cannot be one.
    """
    path = storage.absolute(storage.as_path(path))
    if path.name.isdigit() and path.parent.name == workdirs.CHECKPOINTS:
        workdir, wanted = path.parent.parent, int(path.name)
    else:
        workdir, wanted = path, None
    folder = workdir / workdirs.CHECKPOINTS
    with storage.reported(CheckpointError, f"{path} cannot be read"):
        if not storage.exists(path):
            raise CheckpointError(f"{path} does not exist.")
        workdirs.read_config(workdir)  # Says what is wrong if this is no work directory.
        saved = storage.names(folder)
    if not saved:
        raise CheckpointError(f"{workdir} has no checkpoint yet: {folder} is missing or empty.")
    with Store(folder, read_only=True) as store:
        steps = store.steps()
    if not steps:
        raise CheckpointError(f"{workdir} has no complete checkpoint yet in {folder}.")
    if wanted is not None and wanted not in steps:
        raise CheckpointError(
            f"{path} is not a complete checkpoint. " + did_you_mean(path.name, map(str, steps))
        )
    return Location(workdir, steps[-1] if wanted is None else wanted, newest=steps[-1])


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A model as its run left it.

    Attributes:
      config: of the run.
      dataset: what its outputs mean: see `vit_jax.rundir.workdir.read_dataset`.
      params: of the step; the averaged ones where the run averages.
      step: of the checkpoint.
      newest: the step of the run's newest checkpoint.
      workdir: of the run.
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
    """Reads config, class names and parameters; the parameters lie on the mesh by our rules.

    Args:
      path: WORKDIR or WORKDIR/checkpoints/STEP.
      mesh: of any shape, whatever the run was trained on.

    Raises:
      CheckpointError: there is no such checkpoint, or it is broken, or not of the model that the
        work directory's config describes.
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
    """Raises CheckpointError if the parameters are not of the model that the config describes."""
    config = run.workdir / workdirs.CONFIG
    try:
        validate(run.config)
        fresh = param_shapes(run.model_config)
    except Exception as error:  # A config that somebody has made up may break anything.
        raise CheckpointError(f"{config} describes no model: {str(error)[:1000]}") from error
    if lines := differences(named_leaves(run.params), named_leaves(fresh)):
        raise CheckpointError(
            f"The checkpoint of step {run.step:,} is not of the model of {config}:\n"
            + "\n".join(lines)
        )


def load_params(location: Location, *, mesh: Mesh) -> PyTree:
    """The averaged parameters of a checkpoint, or the plain ones if it has no average."""
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
    """Parameters to start from: loaded ones, but freshly initialised ones where skipped.

    Args:
      fresh: the model's own initial parameters.
      loaded: of the checkpoint.
      skip: patterns of whole parameter paths that keep their initial values.
      source: name of the checkpoint, for errors.

    Raises:
      CheckpointError: beyond what is skipped, the two do not have the same names and shapes.
      ConfigError: a pattern matches no parameter of either.
    """
    names = sorted(named_leaves(fresh).keys() | named_leaves(loaded).keys())
    for pattern in skip:
        matching(pattern, names, key="init_skip")

    def wanted(tree):
        return {
            name: leaf
            for name, leaf in named_leaves(tree).items()
            if not any(re.fullmatch(pattern, name) for pattern in skip)
        }

    ours, theirs = wanted(fresh), wanted(loaded)
    if lines := differences(theirs, ours):
        raise CheckpointError(
            f"{source} does not fit the model:\n" + "\n".join(lines) + "\n"
            "Change the model, or name in init_skip what shall start from scratch."
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: theirs.get(path_name(path), leaf), fresh
    )
