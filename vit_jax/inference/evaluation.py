"""The results of an evaluation."""

import dataclasses
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from vit_jax.data.base import Source
from vit_jax.data.blocks import Transform
from vit_jax.evals.classification import ClassificationReport
from vit_jax.inference.class_matching import ClassMatching
from vit_jax.inference.throughput import Throughput


@dataclasses.dataclass(frozen=True)
class Result:
    """The metrics of one way to classify the images of a split.

    Attributes:
      description: what was done, such as "all 1,000 outputs" or "kNN (k=20, temperature 0.07)".
      class_names: of the report.
      report: the metrics.
      settings: numbers that the method uses or has chosen.
    """

    description: str
    class_names: tuple[str, ...]
    report: ClassificationReport
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FewShot:
    """Few-shot accuracies, see `vit_jax.evals.fewshot`.

    Attributes:
      accuracies: {number of shots: top-1 for each seed}.
      omitted: {number of shots: why it was not measured}.
    """

    accuracies: dict[int, tuple[float, ...]]
    omitted: dict[int, str]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The first readable examples of a split with their probabilities, to be drawn.

    Attributes:
      source: the split.
      transform: from an example to an uncropped uint8 image of the model's size.
      ids: positions in the split.
      probabilities: of all classes.
      class_names: the classes of probabilities and labels.
    """

    source: Source
    transform: Transform
    ids: Int[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n classes"]
    class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured on the examples of a split.

    Attributes:
      source: the split, with the classes of the data set.
      results: by method. "classifier" is over all outputs of the model, "matched_only" over those
        that are classes of the data set (absent if all are); "knn" and "probe" are on features.
      fewshot: few-shot accuracies; None: not measured.
      train_split: what the methods on features were trained on, in words; "": nothing.
      matching: the outputs of the model for the classes of the data set; None: they are the same.
      left_out: number of examples of classes without an output; they are not counted.
      pictures: examples for predictions.png; None: examples have several labels, or the classifier
        was not evaluated.
    """

    source: Source
    results: dict[str, Result]
    fewshot: FewShot | None = None
    train_split: str = ""
    matching: ClassMatching | None = None
    left_out: int = 0
    pictures: Pictures | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation:
    """What `vit_jax.inference.evaluate.evaluate` returns.

    Attributes:
      checkpoint: as it was named.
      step: of a run's checkpoint; None: a published checkpoint.
      measured: the metrics.
      bad: {location: why the image could not be read}; these are not counted.
      settings: image size, dtype, batch size and preprocessing.
      notes: what was assumed, and what was not measured.
      throughput: of reading the images and the model.
      folder: where `vit_jax.inference.results.write` writes by default.
    """

    checkpoint: str
    step: int | None
    measured: Measured
    bad: dict[str, str]
    settings: dict[str, Any]
    notes: tuple[str, ...]
    throughput: Throughput
    folder: epath.Path

    def __repr__(self) -> str:
        """Returns a line for each method; `vit_jax.inference.results.table` has all numbers."""
        source = self.measured.source
        lines = [f"{self.checkpoint} on {source.name}, {source.split}"]
        for result in self.results.values():
            low, high = result.report.intervals()["top1"]
            lines.append(
                f"{result.description}: top-1 {result.report.top1:.2%} of "
                f"{result.report.count:,} (95% interval {low:.1%} to {high:.1%})"
            )
        for shots, values in (
            self.measured.fewshot.accuracies.items() if self.measured.fewshot else ()
        ):
            lines.append(f"{shots}-shot regression: top-1 {np.mean(values):.2%}")
        return "\n".join((*lines, *(f"note     {note}" for note in self.notes)))

    @property
    def results(self) -> dict[str, Result]:
        """The metrics by method: see `Measured`."""
        return self.measured.results

    @property
    def report(self) -> ClassificationReport:
        """The metrics of the classifier over all outputs; of features, those of `shown`.

        Raises:
          ValueError: only few-shot accuracies were measured.
        """
        result = self.results.get("classifier", self.shown)
        if result is None:
            raise ValueError("Only few-shot accuracies were measured: see measured.fewshot.")
        return result.report

    @property
    def shown(self) -> Result | None:
        """The method of confusion.png, classes.png and the least accurate classes.

        The classifier over the matched outputs alone, if it has others; else over all; on features
        the one with the highest top-1. None: only few-shot accuracies were measured.
        """
        for name in ("matched_only", "classifier"):
            if name in self.results:
                return self.results[name]
        results = self.results.values()
        return max(results, key=lambda result: result.report.top1, default=None)

    @property
    def top1(self) -> float:
        """Top-1 accuracy of `report`."""
        return self.report.top1

    @property
    def count(self) -> int:
        """Number of examples that were counted."""
        return self.report.count
