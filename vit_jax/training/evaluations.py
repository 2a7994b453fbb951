"""Builds the evaluations of `config.evals` for the train loop."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from jaxtyping import PyTree
from ml_collections import FrozenConfigDict

from vit_jax.analysis.measures.hsic import Grams
from vit_jax.config import ANALYSIS, CLASSIFICATION
from vit_jax.data import pipeline
from vit_jax.data.base import Source
from vit_jax.data.blocks import ExampleLoader
from vit_jax.data.sources import open_source
from vit_jax.errors import ConfigError, DataError, did_you_mean
from vit_jax.evals.evaluator import Evaluator

TYPES = (CLASSIFICATION, ANALYSIS)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One entry of `config.evals`.

    Attributes:
      every_steps: due at every multiple of this, and at the end; 0: only at the end.
      num_examples: number of examples.
      fingerprint: fingerprint of the examples, see `vit_jax.data.base.Source`.
      run: (params, progress, on_bad, keep) -> values by name. `progress` wraps the iterator of
        batches; `on_bad` is called with (source, example, message) for each bad example; None: an
        error, or a warning if `data.on_bad` is "skip"; `keep` is called with the Gram matrices of
        the layers, if the evaluation measures their similarity.
    """

    every_steps: int
    num_examples: int
    fingerprint: str
    run: Callable[
        [
            PyTree,
            Callable[[Iterable], Iterable],
            Callable[[Source, int, str], None] | None,
            Callable[[Grams], None],
        ],
        dict[str, float],
    ]

    def is_due(self, step: int, total_steps: int) -> bool:
        """Returns whether the state after `step` updates is evaluated."""
        return step == total_steps or (self.every_steps > 0 and step % self.every_steps == 0)

    def precision(self, *, num_trained_on: int) -> str:
        """Returns a sentence about the size of the split and the precision of its accuracy.

        The 95% interval is Wilson's score interval for an accuracy of one half, the widest; z / (2
        sqrt(n + z^2)) on either side.
        """
        n, z = self.num_examples, 1.96
        share = n / (n + num_trained_on)
        half_width = z / (2 * math.sqrt(n + z**2))
        return (
            f"{n:,} of {n + num_trained_on:,} images ({share:.0%}); its accuracy has a 95% "
            f"interval of up to +-{100 * half_width:.0f} points"
        )


def open_splits(config: FrozenConfigDict, *, class_names: Sequence[str]) -> dict[str, Source]:
    """Opens the splits of `config.evals`, by the names of the evaluations.

    Args:
      config: the config of the run.
      class_names: classes of the training split.

    Raises:
      ConfigError: an entry has an unknown type.
      DataError: a split does not exist, or has other classes.
    """
    sources = {}
    for name, entry in config.evals.items():
        if entry.get("type") not in TYPES:
            raise ConfigError(
                f'config.evals.{name}.type is "{entry.get("type")}". '
                + did_you_mean(str(entry.get("type")), TYPES)
            )
        source = open_source(config.data, split=entry.split)
        if tuple(source.class_names) != tuple(class_names):
            raise DataError(
                f"{source.name}: {entry.split} has the classes "
                f"{_format_classes(source.class_names)}, and {config.data.split} has "
                f"{_format_classes(class_names)}: they must be the same."
            )
        sources[name] = source
    return sources


def build_evals(
    evaluator: Evaluator, *, sources: Mapping[str, Source], every_steps: Mapping[str, int]
) -> dict[str, Evaluation]:
    """Returns the evaluations of `config.evals` by name.

    Prepares the first example of each split now, so that a mistake does not show only at the first
    evaluation, hours into a run.

    Args:
      evaluator: the evaluator of the run.
      sources: the result of `open_splits`.
      every_steps: number of updates between evaluations, by name; 0: only at the end.

    Raises:
      ConfigError: a measure of an analysis is unknown, or does not apply to the model.
      DataError: the images of a split cannot be prepared.
    """
    config, evals = evaluator.config, {}
    classification = evaluator.classification()
    for name, source in sources.items():
        load = ExampleLoader(source, evaluator.transform(), 0)
        pipeline.first_example(load, skip_bad=config.data.on_bad == "skip")

        def classify(params, progress=iter, on_bad=None, keep=None, *, source=source):
            with evaluator.batches(source, on_bad=on_bad and partial(on_bad, source)) as batches:
                return classification.evaluate(params, progress(batches))

        run = classify
        if config.evals[name].type == ANALYSIS:
            from vit_jax.training.analysis_evaluation import AnalysisEvaluation

            run = AnalysisEvaluation.of(evaluator, name, source)
        evals[name] = Evaluation(every_steps[name], len(source), source.fingerprint, run)
    return evals


def _format_classes(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(names[:5])}" + (", ..." if len(names) > 5 else "")
