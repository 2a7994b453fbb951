"""Loads any checkpoint, a run's or a published one, as a model to evaluate and to predict with."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, PyTree
from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax.checkpoints.load import TrainedModel, load_run
from vit_jax.config import base_config, freeze, thaw
from vit_jax.errors import ConfigError
from vit_jax.evals.evaluator import Evaluator
from vit_jax.models import ModelConfig, describe_model
from vit_jax.parallel.mesh import make_mesh
from vit_jax.parallel.rules import param_shardings
from vit_jax.pretrained.consistency import (
    check_classifier,
    check_labels,
    check_params,
    raise_non_finite,
)
from vit_jax.pretrained.exports.workdir import run_config
from vit_jax.pretrained.load import load_pretrained
from vit_jax.pretrained.model import Pretrained
from vit_jax.pretrained.run_checkpoint import TrainingData, is_run, refuse_hints

Checkpoint = str | os.PathLike | Pretrained

BATCH_SIZE = 64  # Of a published model. A laptop could not hold the training batch of a pod.


@dataclasses.dataclass(frozen=True)
class Model:
    """A model with its preprocessing.

    Attributes:
      checkpoint: as it was named.
      evaluator: the model's config, the config of a run with its preprocessing and loss, the mesh.
      params: sharded over all devices.
      labels: names of the classes; None: unknown, or there are no classes.
      is_classifier: whether the outputs are of classes. Else there is no head, or one for
        regression, and only the features are of use.
      notes: what was assumed or changed when it was loaded.
      run: its run; None: a published checkpoint, or a model in memory, whose parameters may be
        other ones by now.
      trained_on: the data of the run that the model is from, also of one in memory; None: it is
        from no run.
    """

    checkpoint: str
    evaluator: Evaluator
    params: PyTree
    labels: tuple[str, ...] | None
    is_classifier: bool
    notes: tuple[str, ...] = ()
    run: TrainedModel | None = None
    trained_on: TrainingData | None = None

    @property
    def config(self) -> ModelConfig:
        """Architecture and numerics."""
        return self.evaluator.model_config

    @property
    def loss(self) -> str:
        """Decides how logits become probabilities: softmax_xent or sigmoid_xent."""
        return self.evaluator.config.loss.name

    def check_classifier(self, advice: str) -> None:
        """Raises CheckpointError, ending in the advice, if the outputs are not of classes."""
        check_classifier(
            self.config, is_classifier=self.is_classifier, name=self.checkpoint, advice=advice
        )

    def compile(self, batch: dict[str, Array]) -> Callable[[dict[str, Array]], dict[str, Array]]:
        """Compiles batch -> outputs, see `vit_jax.evals.evaluator.Evaluator.compile`.

        The compiled function raises CheckpointError if an output of an image is NaN or infinite
        because a parameter is, and NonFiniteError if all parameters are finite.
        """
        program = self.evaluator.compile(self.params, batch)

        def checked(batch: dict[str, Array]) -> dict[str, Array]:
            outputs = program(self.params, batch)
            if not _are_finite(outputs):
                raise_non_finite(self.params, self.config, name=self.checkpoint)
            return outputs

        return checked

    def with_data(self, data: Mapping[str, Any]) -> "Model":
        """Returns a copy for other data: these keys of `config.data`, else defaults.

        The preprocessing stays.
        """
        config = thaw(self.evaluator.config)
        transforms = config.data.eval_transforms
        config.data = base_config().data
        config.data.update({**data, "eval_transforms": transforms})
        evaluator = dataclasses.replace(self.evaluator, config=freeze(config))
        return dataclasses.replace(self, evaluator=evaluator)


@jax.jit
def _are_finite(outputs: Mapping[str, Array]) -> Bool[Array, ""]:
    """Returns whether logits and features of all images are finite; padding does not count."""
    rows = [jnp.isfinite(outputs[key]).all(axis=-1) for key in ("logits", "features")]
    return jnp.where(outputs["weight"] > 0, rows[0] & rows[1], True).all()


def all_devices() -> Mesh:
    """Returns a mesh that shards parameters over all devices.

    A model that could be trained can then be evaluated.
    """
    return make_mesh(ConfigDict({"data": 1, "fsdp": -1, "tensor": 1}))


def load_model(
    checkpoint: Checkpoint,
    *,
    mesh: Mesh,
    hints: Mapping[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
    dtype: str | None = None,
) -> Model:
    """Loads a checkpoint.

    Args:
      checkpoint: WORKDIR or WORKDIR/checkpoints/STEP, or any checkpoint that
        `vit_jax.pretrained.load.load_pretrained` accepts; or a model that was loaded.
      mesh: of the parameters.
      hints: settings that the file of a published checkpoint does not contain.
      image_size: side, or (height, width), in pixels. None: as it was trained or published.
      dtype: of the computation: float32 or bfloat16. None: as it was trained or published.

    Raises:
      CheckpointError: the checkpoint cannot be read, or the parameters of a loaded model are not
        those of its config.
      ConfigError: a hint, the size or the dtype is invalid.
    """
    run, trained_on = None, None
    if isinstance(checkpoint, Pretrained):
        check_params(checkpoint.params, checkpoint.config)
        trained_on = checkpoint.trained_on
        check_labels(checkpoint.labels, checkpoint.config)
        if hints or image_size is not None:
            raise ConfigError(
                "The model is loaded already: give hints and image_size to load_pretrained."
            )
    elif is_run(checkpoint):
        refuse_hints(checkpoint, hints or {})
        run = load_run(checkpoint, mesh=mesh)
        trained_on = TrainingData(run.config, run.dataset)
    if run is not None and image_size is None:
        model_config, params = run.model_config, run.params
        labels, config, notes = tuple(run.dataset["class_names"]), run.config, ()
        is_classifier = True
    else:
        if isinstance(checkpoint, Pretrained):
            pretrained = _on_mesh(checkpoint, mesh)
        else:
            pretrained = load_pretrained(checkpoint, mesh=mesh, hints=hints, image_size=image_size)
        model_config, params, notes = pretrained.config, pretrained.params, pretrained.all_notes
        is_classifier = pretrained.is_classifier
        labels = pretrained.labels if is_classifier else None
        if not is_classifier:  # A config needs a loss; no output is computed with it.
            pretrained = dataclasses.replace(pretrained, loss="softmax_xent")
        config = _with_transforms(run, pretrained) if run else _with_batch_size(pretrained)
    if dtype is not None:
        model_config = dataclasses.replace(model_config, dtype=dtype)
    return Model(
        checkpoint=name_of(checkpoint),
        evaluator=Evaluator(config, model_config, mesh),
        params=params,
        labels=tuple(map(_printable, labels)) if labels else None,
        is_classifier=is_classifier,
        notes=notes,
        run=run,
        trained_on=trained_on,
    )


def name_of(checkpoint: Checkpoint) -> str:
    """Returns the path of a checkpoint, or of what a model was loaded from, or its description."""
    if isinstance(checkpoint, Pretrained):
        return f"{checkpoint.loaded_from or describe_model(checkpoint.config)} (in memory)"
    return os.fspath(checkpoint)


def _on_mesh(pretrained: Pretrained, mesh: Mesh) -> Pretrained:
    params = jax.device_put(pretrained.params, param_shardings(pretrained.params, mesh))
    return dataclasses.replace(pretrained, params=params)


def _with_batch_size(pretrained: Pretrained) -> FrozenConfigDict:
    config = thaw(run_config(pretrained))
    config.batch_size = BATCH_SIZE
    return freeze(config)


def _with_transforms(run: TrainedModel, pretrained: Pretrained) -> FrozenConfigDict:
    """Returns a run's config with the preprocessing of its model at another image size."""
    config = thaw(run.config)
    config.data.eval_transforms = run_config(pretrained).data.eval_transforms
    return freeze(config)


def _printable(name: str) -> str:
    return name.encode(errors="replace").decode()
