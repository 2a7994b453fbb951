"""Predicts the classes of images, and computes their features."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vit_jax.data.files import Files, find_images
from vit_jax.errors import ConfigError
from vit_jax.inference.model import BATCH_SIZE, Checkpoint, Model, all_devices, load_model
from vit_jax.inference.progress import OnProgress
from vit_jax.inference.throughput import Throughput
from vit_jax.models import build
from vit_jax.optim.losses import probabilities
from vit_jax.pretrained.class_names import shown_names
from vit_jax.pretrained.prediction import Prediction

# Best outputs, their probabilities, and the features of an image.
Row = tuple[Sequence[int], Sequence[float], Any]


def predict(
    checkpoint: Checkpoint,
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    top_k: int = 5,
    hints: Mapping[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
    batch_size: int | None = None,
    dtype: str | None = None,
) -> Iterator[Prediction]:
    """Predicts images, in order, a batch at a time, as they are iterated over.

    Of a model without a head there are features only: `classes` is empty. A file that cannot be
    read as an image raises nothing: its prediction has the reason in `error`, which is "" for all
    others; its `classes` and `probabilities` are empty, and its `features` are None.

    Args:
      checkpoint: WORKDIR or WORKDIR/checkpoints/STEP, or any checkpoint that
        `vit_jax.pretrained.load.load_pretrained` accepts; or a model that was loaded.
      paths: image files, and folders that are searched for images; or one of these.
      top_k: number of classes per image.
      hints: settings that the file of a published checkpoint does not contain.
      image_size: side, or (height, width), in pixels. None: as it was trained or published.
      batch_size: images at a time. None: 64, or that of the run if it is smaller.
      dtype: of the computation: float32 or bfloat16. None: as it was trained or published.

    Returns:
      An iterator of `vit_jax.pretrained.prediction.Prediction`. The folders are listed, the
      checkpoint is loaded, and their errors are raised, when the first one is asked for.

    Raises:
      CheckpointError: the checkpoint cannot be read, has parameters that are NaN or infinite, or
        its head is for regression.
      ConfigError: an argument is invalid. Of `paths`, `top_k` and `batch_size` it is raised by the
        call itself.
      DataError: no path is given, or there is no image in the folders.
      NonFiniteError: an output is NaN or infinite, though all parameters are finite.

    Example:
      >>> from PIL import Image
      >>> Image.fromarray(np.zeros((8, 8), np.uint8)).save("black.png")
      >>> (prediction,) = predict("runs/quickstart", ["black.png"], top_k=3)
      >>> len(prediction.classes), prediction.features.dtype
      (3, dtype('float32'))
    """
    _check_positive(top_k=top_k, batch_size=batch_size)
    listed = _list_paths(paths)

    def generate() -> Iterator[Prediction]:
        predictor = Predictor(
            checkpoint,
            listed,
            top_k=top_k,
            hints=hints,
            image_size=image_size,
            batch_size=batch_size,
            dtype=dtype,
        )
        if predictor.model.config.num_classes:  # A head for regression predicts no classes.
            predictor.check_classifier()
        yield from predictor.predictions()

    return generate()


def _check_positive(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}: it must be at least 1.")


def _list_paths(paths: Any) -> list[str]:
    """Returns one path or several as text; raises ConfigError for what is no path."""
    if isinstance(paths, str | os.PathLike):
        return [os.fspath(paths)]
    listed = list(paths) if isinstance(paths, Iterable) else [paths]
    for path in listed:
        if not isinstance(path, str | os.PathLike):
            raise ConfigError(
                f"predict takes the paths of image files and folders, not {type(path).__name__}. "
                "For images in memory call model(model.preprocess(images))."
            )
    return [os.fspath(path) for path in listed]


class Predictor:
    """A loaded model and the files to predict.

    Attributes:
      model: the model.
      paths: the files, as UTF-8 text; file names may have other bytes.
      class_names: of the model; () if it is no classifier.
      assumption: what was assumed for the names; "": nothing.
      num_shown: number of classes of a prediction.
      throughput: of what was predicted so far.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        paths: str | os.PathLike | Sequence[str | os.PathLike],
        *,
        top_k: int = 5,
        hints: Mapping[str, Any] | None = None,
        image_size: int | tuple[int, int] | None = None,
        batch_size: int | None = None,
        dtype: str | None = None,
    ):
        """Finds the files and loads the model; see `predict`."""
        _check_positive(top_k=top_k, batch_size=batch_size)
        self._files = find_images(_list_paths(paths))
        self._mesh = all_devices()
        with jax.set_mesh(self._mesh):
            self.model = load_model(
                checkpoint, mesh=self._mesh, hints=hints, image_size=image_size, dtype=dtype
            )
        self.paths = [os.fsencode(path).decode(errors="replace") for path in self._files]
        self.class_names, self.assumption = _class_names(self.model)
        self.num_shown = min(top_k, len(self.class_names))
        config = self.model.evaluator.config
        self._batch_size = batch_size or min(BATCH_SIZE, config.batch_size)
        self.throughput = Throughput()

    def check_classifier(self) -> None:
        """Raises CheckpointError if the model predicts no classes."""
        self.model.check_classifier(
            "Compute its features (model(images) in Python, or vit-jax predict "
            "--features=FILE.parquet), or fine-tune it, see `vit-jax config finetune`."
        )

    def num_features(self) -> int:
        """Returns the number of features of an image."""
        config = self.model.config
        images = jax.ShapeDtypeStruct((1, *config.image_size, config.channels), jnp.float32)
        apply = build(config).apply
        _, intermediates = jax.eval_shape(apply, {"params": self.model.params}, images)
        return intermediates["pre_logits"].shape[-1]

    def predictions(self, on_progress: OnProgress | None = None) -> Iterator[Prediction]:
        """Yields the predictions in the order of `paths`; `on_progress` gets (done, all)."""
        evaluator, total = self.model.evaluator, len(self._files)
        bad: dict[int, str] = {}
        done = 0
        with jax.set_mesh(self._mesh):
            # Files without labels: each has the label 0.
            source = Files(self._files, class_names=self.class_names or ("",))
            padding = evaluator.padding(source, batch_size=self._batch_size)
            program = self.model.compile(padding)
            self._rows(program(padding))  # Compiles the rest.
            with evaluator.batches(
                source, batch_size=self._batch_size, on_bad=bad.__setitem__
            ) as batches:
                for batch in self.throughput.reading(batches):
                    outputs = self.throughput.computing(program, batch)
                    for row in self._rows(outputs)[: total - done]:
                        yield self._prediction(done, row, bad.pop(done, ""))
                        done += 1
                    self.throughput.images = done
                    if on_progress is not None:
                        on_progress(done, total)
        for i in range(done, total):  # Without a readable file there was no batch.
            yield self._prediction(i, ((), (), None), bad[i])

    def _rows(self, outputs: Mapping[str, Array]) -> list[Row]:
        """Returns best outputs, their probabilities, and features of each image of a batch."""
        features = jax.device_get(outputs["features"])
        if not self.num_shown:
            return [((), (), row) for row in features]
        shares = jax.device_get(probabilities(outputs["logits"], loss_name=self.model.loss))
        best = np.argsort(-shares, axis=-1, kind="stable")[:, : self.num_shown]
        values = np.take_along_axis(shares, best, axis=-1)
        return list(zip(best.tolist(), values.tolist(), features, strict=True))

    def _prediction(self, index: int, row: Row, error: str) -> Prediction:
        path = self.paths[index]
        if error:
            return Prediction(path, error=error.removeprefix(f"{self._files[index]}: "))
        best, shares, features = row
        names = tuple(self.class_names[i] for i in best)
        return Prediction(path, names, tuple(shares), features=features)


def _class_names(model: Model) -> tuple[tuple[str, ...], str]:
    """Returns the names of a model's classes, "class i" if unknown, and what was assumed."""
    if not model.is_classifier:
        return (), ""
    return shown_names(model.labels, model.config.num_classes)
