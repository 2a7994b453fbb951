"""Evaluates features by k nearest neighbours, few-shot regression and a linear probe."""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from vit_jax.data.base import Source
from vit_jax.data.evaluated import ALL, open_split
from vit_jax.errors import ConfigError, DataError
from vit_jax.evals import fewshot, neighbours, probe
from vit_jax.evals.classification import Classification, ClassificationReport
from vit_jax.inference.evaluation import FewShot, Measured, Result
from vit_jax.inference.task import Task
from vit_jax.telemetry.progress import format_count

METHODS = ("knn", "fewshot", "probe")
_BATCH_SIZE = 4096  # Rows of scores that are measured at a time.
_NO_VOTES = 1e-12  # Share of the votes of a class without any, so that its loss is finite.


@dataclasses.dataclass(frozen=True)
class FeatureTable:
    """Features and labels of the readable examples of a split.

    Attributes:
      features: the input of the model's head.
      labels: classes of the data set.
    """

    features: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]


def evaluate_features(task: Task, methods: Iterable[str], *, train_split: str) -> Measured:
    """Evaluates the model's features.

    Args:
      task: the model and the examples to evaluate; if these are all of data that are not
        divided, the test split is taken.
      methods: some of `METHODS`.
      train_split: whose features and labels are used.

    Raises:
      ConfigError: the split to train on is the evaluated one.
      DataError: a split has several labels for an example, other classes, or no readable image.
    """
    data, source = task.model.evaluator.config.data, task.source
    if source.split == ALL:
        source = open_split(data, "test")
    train_source = open_split(data, train_split)
    if train_source.fingerprint == source.fingerprint:
        raise ConfigError(
            f"{source.split} would be both trained and evaluated on: name another as split "
            "(--split) or train_split (--train_split)."
        )
    if train_source.class_names != source.class_names:
        raise DataError(
            f"{source.name}: {train_source.split} and {source.split} differ in their classes."
        )
    train, test = (compute_features(task, split) for split in (train_source, source))
    names, results, fewshot = source.class_names, {}, None
    for method in methods:
        task.watch.at(method)
        if method == "knn":
            results[method] = nearest_neighbours(train, test, names)
        elif method == "probe":
            results[method] = linear_probe(train, test, names)
        else:
            fewshot = few_shot(train, test, names)
    trained = f"{train_source.split}, {len(train.labels):,} images"
    return Measured(source, results, fewshot, train_split=trained)


def compute_features(task: Task, source: Source) -> FeatureTable:
    """Returns the features of every example of a split, complete on every host.

    They are float32 in memory: 768 numbers an example, 3.9 GB for ImageNet's 1.28 million images
    and a ViT-B.

    Raises:
      DataError: the examples have several labels, or no image can be read.
    """
    if source.multi_label:
        raise DataError(
            f"{source.name} has several labels for an example: kNN, few-shot regression and probes "
            "need one. Use the method classifier."
        )
    evaluator = task.model.evaluator
    task.watch.at("the compilation")
    padding = evaluator.padding(source, batch_size=task.batch_size)
    program = task.model.compile(padding)
    watched = task.watched(source, f"the features of {source.split}")
    features, labels = [], []
    with evaluator.batches(
        source, batch_size=task.batch_size, on_bad=task.on_bad(source)
    ) as batches:
        for batch in task.throughput.reading(watched(batches)):
            outputs = jax.device_get(task.throughput.computing(program, batch))
            good = outputs["weight"] > 0
            features.append(outputs["features"][good])
            labels.append(outputs["label"][good])
            task.throughput.images += int(good.sum())
    if not features:
        raise DataError(f"{source.name}, {source.split}: no image can be read.")
    return FeatureTable(np.concatenate(features), np.concatenate(labels))


def nearest_neighbours(
    train: FeatureTable, test: FeatureTable, class_names: tuple[str, ...]
) -> Result:
    """Evaluates kNN, see `vit_jax.evals.neighbours`; its probabilities are shares of the votes."""
    settings = {
        "k": min(neighbours.K, len(train.labels)),
        "temperature": neighbours.TEMPERATURE,
    }
    votes = neighbours.neighbour_votes(
        train.features, train.labels, test.features, num_classes=len(class_names)
    )
    title = f"kNN (k={settings['k']}, temperature {settings['temperature']:g})"
    report = _report(np.log(np.maximum(votes, _NO_VOTES)), test.labels)
    return Result(title, class_names, report, settings)


def few_shot(train: FeatureTable, test: FeatureTable, class_names: tuple[str, ...]) -> FewShot:
    """Evaluates ridge regression on a few labels, see `vit_jax.evals.fewshot`."""
    accuracies, omitted = {}, {}
    counts = np.bincount(train.labels, minlength=len(class_names))
    fewest = int(counts.argmin())
    for shots in fewshot.SHOTS:
        if counts[fewest] < shots:
            examples = format_count(int(counts[fewest]), "training example")
            omitted[shots] = f'the class "{class_names[fewest]}" has {examples}'
            continue
        accuracies[shots] = tuple(
            _few_shot_accuracy(train, test, shots, num_classes=len(class_names), seed=seed)
            for seed in range(fewshot.SEEDS)
        )
    return FewShot(accuracies, omitted)


def _few_shot_accuracy(
    train: FeatureTable, test: FeatureTable, shots: int, *, num_classes: int, seed: int
) -> float:
    chosen = fewshot.choose_shots(train.labels, shots, num_classes=num_classes, seed=seed)
    scores = fewshot.ridge_scores(
        train.features[chosen], train.labels[chosen], test.features, num_classes=num_classes
    )
    return _report(scores, test.labels).top1


def linear_probe(train: FeatureTable, test: FeatureTable, class_names: tuple[str, ...]) -> Result:
    """Evaluates a linear probe, see `vit_jax.evals.probe`.

    Raises:
      DataError: the training examples are too few.
    """
    if np.bincount(train.labels).max() < 2 or len(np.unique(train.labels)) < 2:
        raise DataError(
            "A linear probe needs training images of two classes, and two of a class: the choice "
            "of its regularisation holds some out."
        )
    fitted = probe.fit_probe(train.features, train.labels, num_classes=len(class_names))
    settings = {
        "inverse_penalty": fitted.inverse_penalty,
        "held_out_accuracy": fitted.held_out_accuracy,
        "has_converged": fitted.has_converged,
    }
    title = f"linear probe (C={fitted.inverse_penalty:.3g})"
    report = _report(fitted.logits(test.features), test.labels)
    return Result(title, class_names, report, settings)


def _report(
    scores: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> ClassificationReport:
    """Measures scores as logits."""
    size = min(_BATCH_SIZE, len(labels))
    batches = (
        {
            "image": jnp.asarray(scores[start : start + size], jnp.float32),
            "label": jnp.asarray(labels[start : start + size], jnp.int32),
            "weight": jnp.ones(len(labels[start : start + size]), jnp.float32),
        }
        for start in range(0, len(labels), size)
    )
    return _metrics(scores.shape[1]).report(None, batches)


@functools.cache  # Few-shot accuracies are many reports of equal shapes.
def _metrics(num_classes: int) -> Classification:
    """Returns metrics of scores, in the place of images."""
    return Classification(
        lambda _, scores: scores, num_classes=num_classes, loss_name="softmax_xent"
    )
