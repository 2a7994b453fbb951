"""Classification, evaluated exactly: every example counts once, on any mesh and batch size.

The device computes a few numbers per example, and no sums. Every host gathers them, drops the
padding, counts in integers, and adds real numbers with `math.fsum`. These sums are correctly
rounded: they do not depend on the batch size or on the order of the examples. Only the arithmetic
of each example on the device may differ, because XLA may order it differently for another batch
size: by about 1e-7 of its loss, in float32.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from vit_jax.config import CLASSIFICATION_METRICS
from vit_jax.errors import ConfigError, DataError
from vit_jax.evals.intervals import LEVEL, wilson
from vit_jax.optim.losses import loss_by_name, probabilities

_CALIBRATION_BINS = 15  # As in Guo et al. and most papers since.
TOP = 5  # Of the accuracy top5, which is 1 with at most so many classes.
_LARGEST_CONFUSION = 4096  # Classes; the int64 matrix then takes 128 MiB.

Batch = Mapping[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationReport:
    """All metrics of one split.

    With several true classes per example (multi-hot labels) a prediction is correct if it is one of
    them, as in ReaL (Beyer et al. 2020, arXiv 2006.07159), and there is no confusion matrix. The
    prediction for an example without a true class is never correct. ReaL excludes such examples:
    give them weight 0.
    """

    count: int  # Examples.
    top1: float  # Share of examples, like all accuracies here.
    top5: float  # True class among the five largest logits (all, with fewer classes).
    loss: float  # Mean, in nats, without label smoothing.
    ece: float  # Expected calibration error, 15 equal-width bins.
    class_count: Int[np.ndarray, " C"]  # Examples that have this true class.
    class_accuracy: Float[np.ndarray, " C"]  # Top-1 on these; NaN where there are none.
    # [true, predicted] examples; None for multi-hot labels and for more than 4096 classes.
    confusion: Int[np.ndarray, "C C"] | None
    # Reliability diagram: number of examples with confidence in (m/15, (m+1)/15], their mean
    # confidence and their accuracy; NaN where there are none.
    bin_count: Int[np.ndarray, " M"]
    bin_confidence: Float[np.ndarray, " M"]
    bin_accuracy: Float[np.ndarray, " M"]

    def scalars(self) -> dict[str, float]:
        """Returns the values that a train loop logs: top1, top5, loss, ece, count."""
        return {name: float(getattr(self, name)) for name in CLASSIFICATION_METRICS}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Returns 95% intervals of top1 and top5, see `vit_jax.evals.intervals.wilson`."""
        return {
            name: wilson(round(getattr(self, name) * self.count), self.count)
            for name in ("top1", "top5")
        }

    def to_json(self, *, class_names: Sequence[str] | None = None) -> str:
        """Returns all fields and `intervals` as a JSON object; NaN and missing values are null.

        Args:
          class_names: added as the field "class_names" if given, in the order of the classes.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["intervals"] = {"level": LEVEL, "method": "Wilson score"} | self.intervals()
        if class_names is not None:
            fields["class_names"] = list(class_names)
        return json.dumps({name: _jsonable(value) for name, value in fields.items()})


class Classification:
    """Evaluates a classifier on padded batches."""

    def __init__(
        self,
        apply_fn: Callable[[Any, Float[Array, "B H W ch"]], Float[Array, "B C"]],
        *,
        num_classes: int,
        loss_name: str,
    ):
        """Stores the settings; compiles nothing yet.

        Args:
          apply_fn: (params, images) -> logits of any float dtype.
          num_classes: C.
          loss_name: softmax_xent or sigmoid_xent, as in training.

        Raises:
          ConfigError: the loss is unknown.
        """
        self._apply = apply_fn
        self.num_classes = num_classes
        self._loss_name = loss_name
        self._loss = loss_by_name(loss_name)
        self._jitted: dict[NamedSharding | None, Callable[..., Any]] = {}

    def evaluate(self, params: Any, batches: Iterable[Batch]) -> dict[str, float]:
        """Returns accuracies, loss and calibration error, for the train loop.

        Args:
          params: the first argument of apply_fn.
          batches: global arrays {"image": f32[B,H,W,ch], "label": i32[B] or multi-hot f32[B,C],
            "weight": f32[B]}; weight is 1 for an example and 0 for padding. All processes pass
            the same batches, each holding its shards.

        Returns:
          top1, top5, loss, ece, count; equal in every process.

        Raises:
          DataError: there are no examples, or a label is not a class.
        """
        return self._measured(params, batches).scalars()

    def report(self, params: Any, batches: Iterable[Batch]) -> ClassificationReport:
        """Returns the metrics of `evaluate`, per-class accuracy, confusion and reliability.

        Args and Raises: see `evaluate`.
        """
        return self._measured(params, batches).report()

    def _measured(self, params: Any, batches: Iterable[Batch]) -> "Measurement":
        measurement = Measurement(self)
        for batch in batches:
            measurement.add(params, batch)
        return measurement

    def step_for(self, batch: Batch) -> Callable[..., dict[str, Array]]:
        """Returns the jitted step (params, batch) -> values of each example.

        They are replicated over the batch's mesh.
        """
        sharding = batch["weight"].sharding
        replicated = None
        if isinstance(sharding, NamedSharding):
            replicated = NamedSharding(sharding.mesh, PartitionSpec())
        if replicated not in self._jitted:
            self._jitted[replicated] = jax.jit(self._step, out_shardings=replicated)
        return self._jitted[replicated]

    def _step(self, params: Any, batch: Batch) -> dict[str, Array]:
        """Returns values per example and, for multi-hot labels, counts per class."""
        logits = self._apply(params, batch["image"]).astype(jnp.float32)  # [B, C]
        if logits.shape[-1] != self.num_classes:
            raise ConfigError(
                f"The model has {logits.shape[-1]} outputs, and the data set "
                f"{self.num_classes} classes: set model.num_classes to {self.num_classes}."
            )
        label, weight = batch["label"], batch["weight"]
        single = label.ndim == 1
        target = jax.nn.one_hot(label, self.num_classes) if single else label
        positive = target > 0  # [B, C]
        # Ties are broken in favour of the class with the lower number.
        _, best = jax.lax.top_k(logits, min(TOP, self.num_classes))  # [B, k]
        hits = jnp.take_along_axis(positive, best, axis=-1)
        confidence = probabilities(logits, loss_name=self._loss_name).max(axis=-1)
        values = {
            "loss": self._loss(logits, label),
            "confidence": confidence,
            "predicted": best[:, 0],
            "top1": hits[:, 0],
            "top5": hits.any(axis=-1),
            "weight": weight,
        }
        if single:
            return values | {"label": label}
        positive &= weight[:, None] > 0
        correct = positive & hits[:, :1]
        return values | {"class_hits": correct.sum(axis=0), "class_count": positive.sum(axis=0)}


class Measurement:
    """The values of each example that a `Classification` has measured, batch by batch.

    Several can be filled in one pass over the batches.
    """

    def __init__(self, classification: Classification):
        """Begins without examples."""
        self._classification = classification
        self._parts: list[dict[str, np.ndarray]] = []
        self._per_class = np.zeros((2, classification.num_classes), np.int64)
        self._previous: dict[str, Array] | None = None

    def add(self, params: Any, batch: Batch) -> None:
        """Measures a batch; see `Classification.evaluate`."""
        step = self._classification.step_for(batch)
        values = step(params, {key: batch[key] for key in _BATCH_KEYS})
        # The host collects the previous batch while the device computes this one.
        self._collect()
        self._previous = values

    def scalars(self) -> dict[str, float]:
        """Returns the result of `Classification.evaluate`."""
        return _summarise(self._examples()[0])

    def report(self) -> ClassificationReport:
        """Returns the result of `Classification.report`."""
        examples, class_hits, class_count = self._examples()
        scalars = _summarise(examples)
        _, bins = calibration(examples["confidence"], examples["top1"])
        confusion, num_classes = None, self._classification.num_classes
        if "label" in examples and num_classes <= _LARGEST_CONFUSION:
            confusion = np.zeros((num_classes, num_classes), np.int64)
            np.add.at(confusion, (examples["label"], examples["predicted"]), 1)
        return ClassificationReport(
            count=len(examples["loss"]),
            top1=scalars["top1"],
            top5=scalars["top5"],
            loss=scalars["loss"],
            ece=scalars["ece"],
            class_count=class_count,
            class_accuracy=_ratio(class_hits, class_count),
            confusion=confusion,
            bin_count=bins["bin_count"],
            bin_confidence=bins["bin_confidence"],
            bin_accuracy=bins["bin_accuracy"],
        )

    def _collect(self) -> None:
        """Adds the values of the previous batch, without its padding."""
        if self._previous is None:
            return
        host = jax.device_get(self._previous)
        self._previous = None
        is_example = _is_example(host.pop("weight"))
        if "class_hits" in host:
            self._per_class += np.stack([host.pop("class_hits"), host.pop("class_count")])
        self._parts.append({name: value[is_example] for name, value in host.items()})

    def _examples(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Returns the values of each example, and the correct and all examples of each class."""
        self._collect()
        parts, num_classes = self._parts, self._classification.num_classes
        if not sum(len(part["loss"]) for part in parts):
            raise DataError(
                "The split to evaluate has no examples: check its slice, and that the iterator of "
                "batches is not exhausted."
            )
        examples = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        per_class = self._per_class
        if "label" in examples:
            labels = _checked_labels(examples["label"], num_classes)
            per_class = np.stack(
                [
                    np.bincount(chosen, minlength=num_classes)
                    for chosen in (labels[examples["top1"]], labels)
                ]
            )
        return examples, per_class[0], per_class[1]


_BATCH_KEYS = ("image", "label", "weight")


def calibration(
    confidence: Float[np.ndarray, " N"],
    correct: Bool[np.ndarray, " N"],
    *,
    num_bins: int = _CALIBRATION_BINS,
) -> tuple[float, dict[str, np.ndarray]]:
    """Computes the expected calibration error: the mean gap between confidence and accuracy.

    Guo et al. 2017 (arXiv 1706.04599), equations 2 to 5: bins of equal width, ((m-1)/M, m/M],
    weighted by their number of examples.

    Args:
      confidence: probability of the predicted class.
      correct: whether the predicted class is the true one.
      num_bins: M.

    Returns:
      The error, and the bins: bin_count, bin_confidence, bin_accuracy (NaN where empty).
    """
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    index = np.searchsorted(edges[1:-1], confidence.astype(np.float64), side="left")
    count = np.bincount(index, minlength=num_bins)
    num_correct = np.bincount(index[correct], minlength=num_bins)
    total = np.array([math.fsum(confidence[index == m]) for m in range(num_bins)])
    error = math.fsum(np.abs(num_correct - total)) / len(confidence)
    bins = {
        "bin_count": count,
        "bin_confidence": _ratio(total, count),
        "bin_accuracy": _ratio(num_correct, count),
    }
    return error, bins


def _summarise(examples: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the scalar metrics of a split, from the values of its examples."""
    count = len(examples["loss"])
    return {
        "top1": int(examples["top1"].sum()) / count,
        "top5": int(examples["top5"].sum()) / count,
        "loss": math.fsum(examples["loss"]) / count,
        "ece": calibration(examples["confidence"], examples["top1"])[0],
        "count": float(count),
    }


def _is_example(weight: np.ndarray) -> np.ndarray:
    if not np.isin(weight, (0, 1)).all():
        raise DataError(
            f"Weights of an evaluation are 1 (an example) or 0 (padding); got {weight}."
        )
    return weight == 1


def _checked_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(
            f"Labels range from {labels.min()} to {labels.max()}, but there are {num_classes} "
            "classes, numbered from 0: is this the data set that the model was trained on?"
        )
    return labels


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Returns part / whole in float64, NaN where `whole` is 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _jsonable(value.tolist())
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
