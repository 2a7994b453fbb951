"""Evaluates any checkpoint on any images: its classifier, or its features."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from vit_jax.config import base_config
from vit_jax.errors import CheckpointError, ConfigError, DataError, did_you_mean
from vit_jax.inference import features
from vit_jax.inference.classifier import classify, match
from vit_jax.inference.evaluation import Evaluation
from vit_jax.inference.model import Checkpoint, all_devices, load_model, name_of
from vit_jax.inference.progress import OnProgress
from vit_jax.inference.task import Data, open_task
from vit_jax.parallel.watch import Watch

METHODS = ("auto", "classifier", *features.METHODS)


def evaluate(
    checkpoint: Checkpoint,
    data: Data | None = None,
    *,
    split: str = "",
    method: str = "auto",
    train_split: str = "train",
    hints: Mapping[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
    batch_size: int | None = None,
    dtype: str | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Evaluates a checkpoint on labelled images, each of which counts once; writes nothing.

    The images are prepared as the checkpoint's publisher does, or as in the run's evaluations. The
    classes of the data are matched with the model's outputs by name: see
    `vit_jax.inference.class_matching.match_classes`. `vit_jax.inference.results` has `table` and
    `write`, which make text of the result, and JSON and figures.

    Args:
      checkpoint: WORKDIR or WORKDIR/checkpoints/STEP of a run, or any checkpoint that
        `vit_jax.load_pretrained` accepts; or a model that was loaded.
      data: what `vit_jax.data.locate.locate_data` accepts, such as a folder with a folder of images
        for each class, a table, or NAME or NAME:SPLIT of TFDS; or the config of a run, whose `data`
        are taken. None: the data of the run that the model is from.
      split: of the data, or a slice. "": of the data of the model's run, also of a run that was
        loaded into memory, the first that its config evaluates; else all images of data that are
        not divided, or validation, val, valid or test.
      method: classifier; knn, fewshot or probe, on the features (the input of the head; these need
        a split to train on); or auto: the classifier, or, without a head for the classes of the
        data, all three.
      train_split: whose features and labels the methods on features use.
      hints: settings that the file of a published checkpoint does not contain.
      image_size: side, or (height, width), in pixels. None: as it was trained or published.
      batch_size: images at a time. None: 64, or that of the run.
      dtype: of the computation: float32 or bfloat16. None: as it was trained or published.
      on_progress: called with the images that are done, and all.

    Returns:
      The metrics, equal on every process.

    Raises:
      CheckpointError: the checkpoint cannot be read, has parameters that are NaN or infinite, or
        is no classifier and has to be.
      ConfigError: an argument is invalid, or there are no data.
      DataError: the data cannot be read, or have no class of the model.
      NonFiniteError: an output is NaN or infinite, though all parameters are finite.

    Example:
      >>> evaluation = evaluate("runs/quickstart", split="test[:40]")
      >>> evaluation.count, len(evaluation.report.class_accuracy)
      (40, 10)
      >>> low, high = evaluation.report.intervals()["top1"]  # 95%, Wilson.
      >>> low <= evaluation.top1 <= high
      True
    """
    if method not in METHODS:
        raise ConfigError(f'There is no method "{method}". {did_you_mean(method, METHODS)}')
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}: it must be at least 1.")
    mesh = all_devices()
    with Watch(base_config().timeout_seconds) as watch, jax.set_mesh(mesh):
        watch.at("the restore")
        model = load_model(checkpoint, mesh=mesh, hints=hints, image_size=image_size, dtype=dtype)
        task = open_task(model, data, split, batch_size, watch, on_progress)
        methods, notes, matching = (method,), list(model.notes), None
        if method in ("auto", "classifier"):
            methods = ("classifier",)
            try:
                matching = match(task, own_data=task.own_data)
                notes += [matching.assumption] if matching and matching.assumption else []
            except (CheckpointError, DataError) as error:
                if method == "classifier" or task.own_data:
                    raise
                methods = features.METHODS
                reason = str(error).split(". ")[0]  # The rest is advice.
                notes.append(f"the features are evaluated, because: {reason}")
        if methods == ("classifier",):
            measured = classify(task, matching)
        else:
            with _explained(notes[len(model.notes) :]):
                measured = features.evaluate_features(task, methods, train_split=train_split)
    notes += task.notes_on_split(measured.source)
    changed = [method] if method not in ("auto", "classifier") else []
    if image_size is not None:
        changed.append("x".join(map(str, model.config.image_size)))
    if dtype is not None:
        changed.append(dtype)
    return Evaluation(
        checkpoint=name_of(checkpoint),
        step=None if model.run is None else model.run.step,
        measured=measured,
        bad=task.bad,
        settings={
            "image_size": list(model.config.image_size),
            "dtype": model.config.dtype,
            "batch_size": batch_size or model.evaluator.config.batch_size,
            "loss": model.loss if model.is_classifier else "",
            "preprocessing": [dict(op) for op in model.evaluator.config.data.eval_transforms],
        },
        notes=tuple(notes),
        throughput=task.throughput,
        folder=task.folder(measured.source, changed),
    )


@contextlib.contextmanager
def _explained(reasons: Sequence[str]) -> Iterator[None]:
    """Begins a DataError with the reasons why features are evaluated."""
    try:
        yield
    except DataError as error:
        raise DataError(". ".join((*reasons, str(error)))) from error
