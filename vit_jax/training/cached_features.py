"""Linear probe: computes the features of a frozen body once, and trains the head on them.

Only the input of the train loop changes: features instead of images. The order of the examples, the
optimizer, the evaluations and the checkpoints (of the whole model) stay the same. The result equals
that of a run with the same frozen body that recomputes the features at every update.

The features are float32 in the memory of every process: 768 numbers an example, 3.9 GB for
ImageNet's 1.28 million images and a ViT-B.
"""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, PyTree
from ml_collections import FrozenConfigDict

from vit_jax.config import ANALYSIS
from vit_jax.data.base import Example, Source
from vit_jax.data.sources import open_source
from vit_jax.errors import ConfigError
from vit_jax.evals.classification import Classification
from vit_jax.evals.evaluator import Evaluator
from vit_jax.models import ModelConfig, build
from vit_jax.optim import frozen_mask
from vit_jax.parallel.mesh import replicated
from vit_jax.parallel.rules import path_name
from vit_jax.training.experiment import Experiment

# Wraps an iterator of batches and reports progress: `vit_jax.parallel.watch.Watch.iterate`.
ProgressWrapper = Callable[[Iterable, str], Iterable]


class Head(nn.Module):
    """The head of a model; reads its parameters from those of the whole model."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, images: Float[Array, "b 1 1 features"], *, train: bool = False
    ) -> tuple[Float[Array, "b classes"], dict[str, Array]]:
        """Returns the logits of features, which are passed in the place of images."""
        return nn.Dense(self.config.num_classes, name="head")(images[:, 0, 0]), {}


class Features(Source):
    """A source whose images are replaced by a model's features of them."""

    def __init__(self, source: Source, features: Float[np.ndarray, "n d"], labels: np.ndarray):
        """Takes the features and labels of all examples of `source`, in its order."""
        self._source, self._features, self._labels = source, features, labels
        self.name, self.split, self.class_names = source.name, source.split, source.class_names
        self.multi_label = source.multi_label

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, index: int) -> Example:
        return {"image": self._features[index][None, None], "label": self._labels[index]}

    def describe(self, index: int) -> str:
        return self._source.describe(index)


def identity(example: Example, rng: np.random.Generator) -> Example:
    """Returns a feature unchanged: features need no transform."""
    return example


def cache_features(
    experiment: Experiment, params: PyTree, *, progress: ProgressWrapper
) -> tuple[nn.Module, Experiment]:
    """Returns the head as a module, and the experiment that trains it on features.

    Features of the training data are computed now, those of each evaluation when it is first due.

    Args:
      experiment: its config has `cache_features`.
      params: parameters of the whole model, on the mesh.
      progress: wraps the batches whose features are computed.

    Raises:
      ConfigError: parameters outside the head are trained, or features change between updates.
    """
    config, model_config, evaluator = (
        experiment.config,
        experiment.model_config,
        experiment.evaluator,
    )
    _check(config, model_config, params)
    classification = Classification(
        lambda params, features: Head(model_config).apply({"params": params}, features)[0],
        num_classes=model_config.num_classes,
        loss_name=config.loss.name,
    )
    compute = partial(_compute, evaluator, progress=progress)
    cached = {}
    for name, evaluation in experiment.evals.items():
        split = config.evals[name].split
        computed: list[Features] = []

        def run(params, progress=iter, on_bad=None, keep=None, *, split=split, computed=computed):
            if not computed:
                source = open_source(config.data, split=split)
                computed.append(compute(source, params))
            with evaluator.batches(computed[0], transform=identity, workers=0) as batches:
                return classification.evaluate(params, progress(batches))

        cached[name] = dataclasses.replace(evaluation, run=run)
    source = compute(experiment.source, params)
    head_experiment = dataclasses.replace(
        experiment, source=source, transform=identity, evals=cached
    )
    return Head(model_config), head_experiment


def _compute(
    evaluator: Evaluator, source: Source, params: PyTree, *, progress: ProgressWrapper
) -> Features:
    """Returns the head's input for every example, complete on every host."""
    model = build(evaluator.model_config)

    @jax.jit
    def step(params, batch):
        _, intermediates = model.apply({"params": params}, batch["image"])
        values = intermediates["pre_logits"], batch["label"], batch["weight"]
        return jax.lax.with_sharding_constraint(values, replicated(evaluator.mesh))

    features, labels = [], []
    with evaluator.batches(source) as batches:
        for batch in progress(batches, f"the features of {source.name}, {source.split}"):
            values, label, weight = jax.device_get(step(params, batch))
            features.append(values[weight > 0])
            labels.append(label[weight > 0])
    return Features(source, np.concatenate(features), np.concatenate(labels))


def _check(config: FrozenConfigDict, model_config: ModelConfig, params: PyTree) -> None:
    """Raises ConfigError unless every update would compute the same features."""
    trained = [
        path_name(path)
        for path, frozen in jax.tree_util.tree_leaves_with_path(frozen_mask(config.optim, params))
        if not frozen and not path_name(path).startswith("head/")
    ]
    dropouts = ("dropout", "attention_dropout", "stochastic_depth")
    conditions = {
        f"{len(trained)} parameters outside the head are trained, such as {trained[:1]}: list them "
        "in optim.freeze": trained,
        "data.train_transforms differ from data.eval_transforms": (
            config.data.train_transforms != config.data.eval_transforms
        ),
        "mixup or CutMix is on": config.mix.mixup_alpha or config.mix.cutmix_alpha,
        "the body has dropout": any(getattr(model_config, key, 0) for key in dropouts),
        'data.on_bad is not "error"': config.data.on_bad != "error",
        "a distilled model has two heads": getattr(model_config, "distilled", False),
        "an evaluation analyses the whole model, which the run does not change": any(
            entry.type == ANALYSIS for entry in config.evals.values()
        ),
        "the model has no head": not model_config.num_classes,
    }
    reasons = [reason for reason, holds in conditions.items() if holds]
    if reasons:
        raise ConfigError(
            f"cache_features=True is not possible: {'; '.join(reasons)}. Change that, or set "
            "cache_features to False."
        )
