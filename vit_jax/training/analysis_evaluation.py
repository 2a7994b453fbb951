"""The evaluation type "analysis": the main numbers of measures of vit_jax.analysis."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vit_jax import analysis
from vit_jax.analysis.measures.encoder import Measured, measured, measured_config
from vit_jax.analysis.measures.gram_matrices import MINIBATCH, minibatch_grams
from vit_jax.analysis.measures.hsic import Grams
from vit_jax.analysis.measures.images import BATCH_SIZE, Batch, ImageStream
from vit_jax.analysis.measures.layer_similarity import LayerSimilarity, similarity_of
from vit_jax.analysis.measures.registry import OVER_TRAINING
from vit_jax.analysis.measures.result import NotApplicableError
from vit_jax.data.base import Source
from vit_jax.errors import ConfigError, DataError, did_you_mean
from vit_jax.evals.evaluator import Evaluator
from vit_jax.models import ModelConfig, build, param_shapes
from vit_jax.parallel.mesh import replicated
from vit_jax.pretrained.load import run_preprocess
from vit_jax.pretrained.model import Pretrained
from vit_jax.telemetry.notes import note

OnBad = Callable[[Source, int, str], None] | None


@dataclasses.dataclass(frozen=True)
class AnalysisEvaluation:
    """Measures a model of a run on its mesh; a call has the form of `Evaluation.run`.

    Attributes:
      evaluator: of the run; its mesh has parameters and batches.
      name: of the evaluation.
      source: the images.
      measures: names of functions of `vit_jax.analysis`.
    """

    evaluator: Evaluator
    name: str
    source: Source
    measures: tuple[str, ...]

    @classmethod
    def of(cls, evaluator: Evaluator, name: str, source: Source) -> "AnalysisEvaluation":
        """Builds the evaluation `config.evals[name]`, and checks that the model has its measures.

        Raises:
          ConfigError: a measure is unknown, has no summary, or does not apply to the model.
        """
        key = f"config.evals.{name}.measures"
        measures = tuple(evaluator.config.evals[name].measures)
        if not measures:
            raise ConfigError(f"{key} is empty: name some of {', '.join(OVER_TRAINING)}.")
        for measure in measures:
            if measure not in OVER_TRAINING:
                hint = did_you_mean(str(measure), OVER_TRAINING)
                raise ConfigError(f'{key}: an evaluation cannot measure "{measure}". {hint}')
        evaluation = cls(evaluator, name, source, measures)
        evaluation._check_applies(key)
        return evaluation

    def __call__(
        self,
        params: PyTree,
        progress: Callable[[Iterable], Iterable] = iter,
        on_bad: OnBad = None,
        keep: Callable[[Grams], None] = lambda grams: None,
    ) -> dict[str, float]:
        """Returns the finite numbers of each measure's summary, and the number of images.

        Args:
          params: of the model, on the mesh.
          progress: wraps the iterator of batches.
          on_bad: see `vit_jax.training.evaluations.Evaluation`, also for `keep`.
          keep: called with the Gram matrices of layer_similarity.
        """
        images = _ImagesOfRun(
            self.source,
            self.evaluator.transform(),
            has_labels=not self.source.multi_label,
            evaluator=self.evaluator,
            progress=progress,
            on_bad=on_bad,
        )
        values: dict[str, float] = {}
        count = 0
        # The train loop disallows implicit transfers; a measure moves a few numbers.
        with jax.transfer_guard("allow"):
            for measure in self.measures:
                pretrained = self._pretrained(self.evaluator.model_config, params)
                try:
                    if measure == "layer_similarity":
                        result = _similarity(measured(pretrained), images, keep)
                    else:
                        result = getattr(analysis, measure)(pretrained, images)
                except NotApplicableError as error:  # To these images, or at this step.
                    note(f"{self.name}: {measure} is left out: {error}")
                    continue
                summary = result.summary().items()
                values |= {key: value for key, value in summary if math.isfinite(value)}
                count = max(count, result.num_images)  # Minibatches may leave a few out.
        return {**values, "count": float(count)}

    def _pretrained(self, model_config: ModelConfig, params: PyTree) -> Pretrained:
        config = self.evaluator.config
        preprocess = run_preprocess(config, model_config).for_size(model_config.image_size)
        return Pretrained(
            model=build(model_config),
            params=params,
            config=model_config,
            preprocess=preprocess,
            labels=None,
            format="",
            published=model_config,
            left_out=(),
            notes=(),
            loss=config.loss.name,
            loaded_from="The model of the config",
        )

    def _check_applies(self, key: str) -> None:
        """Raises ConfigError if a measure refuses the model before it asks for images."""
        config = measured_config(self.evaluator.model_config)
        pretrained = self._pretrained(config, param_shapes(config))
        for measure in self.measures:
            images = _NoImages(self.source, self.evaluator.transform(), has_labels=False)
            try:
                getattr(analysis, measure)(pretrained, images)
            except _AskedForImages:
                pass
            except NotApplicableError as error:
                raise ConfigError(
                    f'{key}: "{measure}" does not apply: {error} Leave it out.'
                ) from error


def _similarity(
    model: Measured, images: ImageStream, keep: Callable[[Grams], None]
) -> LayerSimilarity:
    grams = list(minibatch_grams([model], [images], MINIBATCH, "all"))
    keep([layers for (layers,) in grams])
    return similarity_of([model], grams, MINIBATCH)


class _AskedForImages(Exception):
    """A measure begins to read images: it applies to the model."""


class _NoImages(ImageStream):
    """Images that nothing may read."""

    def batches(self, batch_size: int = BATCH_SIZE) -> NoReturn:
        """Raises _AskedForImages."""
        raise _AskedForImages


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ImagesOfRun(ImageStream):
    """The images of an evaluation, on the mesh of its run.

    Attributes:
      evaluator: of the run.
      progress: wraps the iterator of batches.
      on_bad: see `vit_jax.training.evaluations.Evaluation`.
    """

    evaluator: Evaluator
    progress: Callable[[Iterable], Iterable]
    on_bad: OnBad

    def batches(self, batch_size: int = BATCH_SIZE) -> Iterator[Batch]:
        """Yields all images; `batch_size` is rounded up to a multiple of the mesh's devices."""
        evaluator = self.evaluator
        on_bad = self.on_bad and partial(self.on_bad, self.source)
        # Not the batch size of the run: a measure over the images of a batch depends on it.
        with evaluator.batches(self.source, batch_size=batch_size, on_bad=on_bad) as batches:
            empty = True
            for batch in self.progress(batches):
                # Every process needs the rows of the others, too.
                on_all = jax.jit(_copies, out_shardings=replicated(evaluator.mesh))
                labels, weights = jax.device_get(on_all(batch["label"], batch["weight"]))
                if np.any(weights):
                    empty = False
                    yield Batch(batch["image"], labels, weights > 0)
        if empty:
            raise DataError(f"{self.source.name}: none of its images can be read.")


def _copies(label: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.copy(label), jnp.copy(weight)
