"""Classification, evaluated exactly: every example counts once, on any mesh and batch size.

The device computes a few numbers for each example and no sums. They are gathered to every host,
where the padding is thrown away, whole numbers are counted as integers, and real ones are added
with `math.fsum`: correctly rounded, so that neither the batch size nor the order of the examples
changes a bit of their sum. What is left is the arithmetic of each example on the device, which
XLA may order differently for another batch size: about 1e-7 of its loss, in float32.
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
from vit_jax.optim.losses import loss_by_name

_CALIBRATION_BINS = 15  # As Guo et al. and most papers since.
_LARGEST_CONFUSION = 4096  # Classes; the matrix has this squared, in int64: 128 MiB.

Batch = Mapping[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationReport:
    """Everything measured on one split.

    With several true classes per example (multi-hot labels) a prediction is right if it is any of
    them, as in ReaL (Beyer et al. 2020, arXiv 2006.07159), and there is no confusion matrix. An
    example without any true class is never right; ReaL leaves those out: give them weight 0.
    """

    count: int  # Examples.
    top1: float  # Share of examples, as all accuracies here.
    top5: float  # True class among the five largest logits (all, with fewer classes).
    loss: float  # Mean, in nats, without label smoothing.
    ece: float  # Expected calibration error, 15 equal-width bins.
    class_count: Int[np.ndarray, " C"]  # Examples that have this true class.
    class_accuracy: Float[np.ndarray, " C"]  # Top-1 on those; NaN where there are none.
    # [true, predicted] examples; None for multi-hot labels and for more than 4096 classes.
    confusion: Int[np.ndarray, "C C"] | None
    # Reliability: examples whose confidence is in (m/15, (m+1)/15], their mean confidence and
    # their accuracy, NaN where there are none.
    bin_count: Int[np.ndarray, " M"]
    bin_confidence: Float[np.ndarray, " M"]
    bin_accuracy: Float[np.ndarray, " M"]

    def scalars(self) -> dict[str, float]:
        """What a train loop logs: top1, top5, loss, ece, count."""
        return {name: float(getattr(self, name)) for name in CLASSIFICATION_METRICS}

    def to_json(self, *, class_names: Sequence[str] | None = None) -> str:
        """One JSON object with all fields; NaN, and what there is not, as null.

        Args:
          class_names: added under that name if given, in the order of the classes.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
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
        """Prepare; nothing is compiled yet.

        Args:
          apply_fn: (params, images) -> float32 logits, the same model each time.
          num_classes: C.
          loss_name: softmax_xent or sigmoid_xent: as the model was trained.

        Raises:
          ConfigError: an unknown loss.
        """
        self._apply = apply_fn
        self._num_classes = num_classes
        self._loss_name = loss_name
        self._loss = loss_by_name(loss_name)
        self._compiled: dict[NamedSharding | None, Callable[..., Any]] = {}

    def evaluate(self, params: Any, batches: Iterable[Batch]) -> dict[str, float]:
        """Accuracies, loss and calibration error, for the train loop.

        Args:
          params: the first argument of apply_fn.
          batches: global arrays {"image": f32[B,H,W,ch], "label": i32[B] or multi-hot f32[B,C],
            "weight": f32[B]}; weight is 1 for an example and 0 for padding. All processes give
            the same batches, each holding its part.

        Returns:
          top1, top5, loss, ece, count; the same in every process.

        Raises:
          DataError: no examples, or labels that are not classes.
        """
        examples, _, _ = self._measure(params, batches)
        return _summarise(examples)

    def report(self, params: Any, batches: Iterable[Batch]) -> ClassificationReport:
        """All that evaluate() gives, and per-class accuracy, confusion and reliability.

        Args and Raises: as evaluate().
        """
        examples, class_hits, class_count = self._measure(params, batches)
        _, bins = calibration(examples["confidence"], examples["top1"])
        confusion = None
        if "label" in examples and self._num_classes <= _LARGEST_CONFUSION:
            confusion = np.zeros((self._num_classes, self._num_classes), np.int64)
            np.add.at(confusion, (examples["label"], examples["predicted"]), 1)
        return ClassificationReport(
            **_summarise(examples) | {"count": len(examples["loss"])},
            class_count=class_count,
            class_accuracy=_ratio(class_hits, class_count),
            confusion=confusion,
            **bins,
        )

    def _measure(
        self, params: Any, batches: Iterable[Batch]
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Values of each example without padding; right and all examples of each class."""
        parts: list[dict[str, np.ndarray]] = []
        per_class = np.zeros((2, self._num_classes), np.int64)

        def collect(values: dict[str, Array]) -> None:
            host = jax.device_get(values)
            kept = _is_example(host.pop("weight"))
            if "class_hits" in host:
                per_class[:] += np.stack([host.pop("class_hits"), host.pop("class_count")])
            parts.append({name: value[kept] for name, value in host.items()})

        ahead = None  # The device works on a batch while the host takes the one before.
        for batch in batches:
            values = self._step_for(batch)(params, {k: batch[k] for k in _BATCH_KEYS})
            if ahead is not None:
                collect(ahead)
            ahead = values
        if ahead is not None:
            collect(ahead)
        if not sum(len(part["loss"]) for part in parts):
            raise DataError(
                "The split to evaluate has no examples: check its slice, and that the batches "
                "are not an iterator that was used up before."
            )
        examples = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if "label" in examples:
            labels = _checked_labels(examples["label"], self._num_classes)
            for row, chosen in enumerate((labels[examples["top1"]], labels)):
                per_class[row] = np.bincount(chosen, minlength=self._num_classes)
        return examples, per_class[0], per_class[1]

    def _step_for(self, batch: Batch) -> Callable[..., dict[str, Array]]:
        """The compiled step; its results are whole on every device of the batch's mesh."""
        sharding = batch["weight"].sharding
        whole = None
        if isinstance(sharding, NamedSharding):
            whole = NamedSharding(sharding.mesh, PartitionSpec())
        if whole not in self._compiled:
            self._compiled[whole] = jax.jit(self._step, out_shardings=whole)
        return self._compiled[whole]

    def _step(self, params: Any, batch: Batch) -> dict[str, Array]:
        """What is to be known of each example; of each class, for multi-hot labels."""
        logits = self._apply(params, batch["image"]).astype(jnp.float32)  # [B, C]
        if logits.shape[-1] != self._num_classes:
            raise ConfigError(
                f"The model has {logits.shape[-1]} outputs, and the data set "
                f"{self._num_classes} classes: set model.num_classes to {self._num_classes}."
            )
        label, weight = batch["label"], batch["weight"]
        single = label.ndim == 1
        target = jax.nn.one_hot(label, self._num_classes) if single else label
        positive = target > 0  # [B, C]
        # Of equal logits, the class with the lower number comes first.
        _, best = jax.lax.top_k(logits, min(5, self._num_classes))  # [B, k]
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
        right = positive & hits[:, :1]
        return values | {"class_hits": right.sum(axis=0), "class_count": positive.sum(axis=0)}


_BATCH_KEYS = ("image", "label", "weight")


def probabilities(logits: Float[Array, "*B C"], *, loss_name: str) -> Float[Array, "*B C"]:
    """What a model says of each class, as it was trained: they add up to 1 only with softmax."""
    return jax.nn.softmax(logits) if loss_name == "softmax_xent" else jax.nn.sigmoid(logits)


def calibration(
    confidence: Float[np.ndarray, " N"],
    correct: Bool[np.ndarray, " N"],
    *,
    num_bins: int = _CALIBRATION_BINS,
) -> tuple[float, dict[str, np.ndarray]]:
    """Expected calibration error: mean gap between confidence and accuracy.

    Guo et al. 2017 (arXiv 1706.04599), equations 2 to 5: bins of equal width, ((m-1)/M, m/M],
    weighted by their number of examples.

    Args:
      confidence: probability of the predicted class.
      correct: whether it is the true one.
      num_bins: M.

    Returns:
      The error, and the bins: bin_count, bin_confidence, bin_accuracy (NaN where empty).
    """
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    index = np.searchsorted(edges[1:-1], confidence.astype(np.float64), side="left")
    count = np.bincount(index, minlength=num_bins)
    right = np.bincount(index[correct], minlength=num_bins)
    total = np.array([math.fsum(confidence[index == m]) for m in range(num_bins)])
    error = math.fsum(np.abs(right - total)) / len(confidence)
    bins = {
        "bin_count": count,
        "bin_confidence": _ratio(total, count),
        "bin_accuracy": _ratio(right, count),
    }
    return error, bins


def _summarise(examples: dict[str, np.ndarray]) -> dict[str, float]:
    """The scalars of a split, from its examples' values."""
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
            f"Labels run from {labels.min()} to {labels.max()}, but there are {num_classes} "
            "classes, numbered from 0: is this the data set that the model was trained on?"
        )
    return labels


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Their quotient in float64, NaN where `whole` is 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _jsonable(value.tolist())
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
