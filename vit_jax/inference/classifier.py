"""Evaluates the classifier of a model, over all its outputs and over those that the data have."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vit_jax.data import transforms
from vit_jax.data.base import Source
from vit_jax.errors import DataError
from vit_jax.evals.classification import Classification, Measurement
from vit_jax.inference.class_matching import ClassMatching, Matched, match_classes
from vit_jax.inference.evaluation import Measured, Pictures, Result
from vit_jax.inference.model import Model
from vit_jax.inference.task import Task
from vit_jax.optim.losses import probabilities

NUM_IMAGES = 500  # predictions.png shows mistakes among these.


def match(task: Task, *, own_data: bool) -> ClassMatching | None:
    """Returns the outputs for the classes of the data; None: for a run's own data.

    Raises:
      CheckpointError: the model is no classifier.
      DataError: no class has an output.
    """
    model, source = task.model, task.source
    model.check_classifier(
        "Evaluate its features (method knn, fewshot or probe), or fine-tune it, see "
        "`vit-jax config finetune`."
    )
    if not own_data:
        return match_classes(source.class_names, model.labels, num_outputs=model.config.num_classes)
    names = model.labels or ()
    if source.class_names != names[: source.num_classes]:
        raise DataError(
            f"{source.name}, {source.split}, has the classes {', '.join(source.class_names[:9])}; "
            f"the model was trained on {', '.join(names[:9])}: choose a split with these classes."
        )
    return None


def classify(task: Task, matching: ClassMatching | None) -> Measured:
    """Evaluates the model's classifier, in one pass over the images.

    Args:
      task: the model and the examples.
      matching: of `match`.

    Raises:
      CheckpointError: a parameter is NaN or infinite.
      DataError: no image can be read.
      NonFiniteError: an output is NaN or infinite, though all parameters are finite.
    """
    model = task.model
    names = matching.labels if matching else model.labels
    assert names is not None  # `match` has compared them with the data set's.
    source = Matched(task.source, matching) if matching else task.source
    evaluator, num_outputs = model.evaluator, model.config.num_classes
    everything = Measurement(_metrics(num_outputs, model.loss))
    subset = matching.outputs if matching and matching.is_subset else ()
    alone = Measurement(_metrics(len(subset), model.loss)) if subset else None
    restrict = jax.jit(partial(_restrict, outputs=np.array(subset)))
    first = _First()
    task.watch.at("the compilation")
    padding = evaluator.padding(source, batch_size=task.batch_size)
    program = model.compile(padding)

    def measure(outputs: Mapping[str, Array]) -> None:
        scores = {"image" if key == "logits" else key: outputs[key] for key in _SCORES}
        everything.add(None, scores)
        if alone is not None:
            alone.add(None, restrict(scores))

    measure(program(padding))  # Compiles the metrics, too, and counts nothing.
    with evaluator.batches(
        source, batch_size=task.batch_size, on_bad=task.on_bad(source)
    ) as batches:
        for batch in task.throughput.reading(task.watched(source, "the evaluation")(batches)):
            outputs = task.throughput.computing(program, batch)
            first.add(outputs)
            measure(outputs)
    if not first.seen:
        raise DataError(f"{source.name}, {source.split}: no image can be read.")
    report = everything.report()
    task.throughput.images = report.count
    title = f"all {num_outputs:,} outputs" if alone else f"all {num_outputs:,} classes"
    results = {"classifier": Result(title, names, report)}
    if alone is not None:
        title = f"only the {len(subset):,} matched" if len(subset) > 1 else "only the one matched"
        chosen = tuple(names[output] for output in subset)
        results["matched_only"] = Result(title, chosen, alone.report())
    return Measured(
        source=task.source,
        results=results,
        matching=matching,
        left_out=len(task.source) - len(source),
        pictures=None if source.multi_label else first.pictures(model, source, names),
    )


@dataclasses.dataclass
class _First:
    """Collects the first readable examples, for predictions.png."""

    ids: list[np.ndarray] = dataclasses.field(default_factory=list)
    logits: list[np.ndarray] = dataclasses.field(default_factory=list)
    seen: int = 0

    def add(self, outputs: Mapping[str, Array]) -> None:
        """Adds the examples of a batch."""
        if self.seen < NUM_IMAGES:
            (good,) = np.nonzero(jax.device_get(outputs["weight"]))
            self.ids.append(self.seen + good)
            self.logits.append(jax.device_get(outputs["logits"])[good])
        self.seen += len(outputs["weight"])

    def pictures(self, model: Model, source: Source, names: Sequence[str]) -> Pictures:
        """Returns them with their probabilities."""
        logits = jnp.asarray(np.concatenate(self.logits)[:NUM_IMAGES])
        shares = np.asarray(probabilities(logits, loss_name=model.loss))
        ids = np.concatenate(self.ids)[:NUM_IMAGES]
        decode = model.evaluator.config.data.eval_transforms[0]
        uncropped = transforms.compose(
            (decode, {"op": "resize"}), image_size=model.config.image_size
        )
        return Pictures(source, uncropped, ids, shares, tuple(names))


_SCORES = ("logits", "label", "weight")


def _metrics(num_classes: int, loss_name: str) -> Classification:
    """Returns metrics of logits, in the place of images."""
    return Classification(lambda _, logits: logits, num_classes=num_classes, loss_name=loss_name)


def _restrict(batch: Mapping[str, Array], *, outputs: np.ndarray) -> dict[str, Array]:
    """Returns a batch with some of the outputs, and labels that are positions among these."""
    logits, label = batch["image"][:, outputs], batch["label"]
    if label.ndim == 2:
        label = label[:, outputs]
    else:
        positions = np.zeros(batch["image"].shape[1], np.int32)  # Padding has the label 0.
        positions[outputs] = np.arange(len(outputs))
        label = jnp.asarray(positions)[label]
    return {"image": logits, "label": label, "weight": batch["weight"]}
