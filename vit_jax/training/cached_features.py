"""Linear probe: a frozen body's features are computed once, and the head is trained on them.

The run stays what it is: the same examples in the same order, the same optimizer, evaluations and
checkpoints of the whole model. Only what the loop is fed changes: features in place of images. It
gives what a run with the same frozen body gives that computes them again at every update.

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

from vit_jax.data.base import Example, Source
from vit_jax.data.sources import open_source
from vit_jax.errors import ConfigError
from vit_jax.evals.build import Evaluation
from vit_jax.evals.classification import Classification
from vit_jax.evals.evaluator import Evaluator
from vit_jax.models import ModelConfig, build
from vit_jax.optim import frozen_mask
from vit_jax.parallel.mesh import replicated
from vit_jax.parallel.rules import path_name
from vit_jax.training.experiment import Experiment

# Wraps an iterator of batches and reports progress: `vit_jax.parallel.watch.Watch.over`.
ProgressWrapper = Callable[[Iterable, str], Iterable]


class Head(nn.Module):
    """The head of a model by itself, to be given the parameters of the whole model."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, images: Float[Array, "b 1 1 features"], *, train: bool = False
    ) -> tuple[Float[Array, "b classes"], dict[str, Array]]:
        """Logits of features, which lie where a model's images do."""
        return nn.Dense(self.config.num_classes, name="head")(images[:, 0, 0]), {}


class Features(Source):
    """What a model makes of the images of a source."""

    def __init__(self, source: Source, features: Float[np.ndarray, "n d"], labels: np.ndarray):
        """Describes the features of all the source's examples, in its order."""
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
    """The transform of features."""
    return example


def cache_features(
    experiment: Experiment, params: PyTree, *, over: ProgressWrapper
) -> tuple[nn.Module, Experiment]:
    """The head by itself, and the experiment that trains it on features.

    Args:
      experiment: with `config.cache_features`. Features of its source are computed now, those of
        each evaluation when it is first due.
      params: of the whole model, on the mesh.
      over: that batches are counted by.

    Raises:
      ConfigError: more than the head is trained, or features would not be the same at every update.
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
    compute = partial(_compute, evaluator, over=over)
    cached = {}
    for name, evaluation in experiment.evals.items():
        split = config.evals[name].split
        known: list[Features] = []

        def run(params, over=iter, on_bad=None, split=split, known=known):
            if not known:
                source = open_source(config.data, split=split)
                known.append(compute(source, params))
            with evaluator.batches(known[0], transform=identity, workers=0) as batches:
                return classification.evaluate(params, over(batches))

        cached[name] = Evaluation(evaluation.every_steps, evaluation.fingerprint, run)
    source = compute(experiment.source, params)
    trained = dataclasses.replace(experiment, source=source, transform=identity, evals=cached)
    return Head(model_config), trained


def _compute(
    evaluator: Evaluator, source: Source, params: PyTree, *, over: ProgressWrapper
) -> Features:
    """The head's input for every example, on every host."""
    model = build(evaluator.model_config)

    @jax.jit
    def step(params, batch):
        _, intermediates = model.apply({"params": params}, batch["image"])
        values = intermediates["pre_logits"], batch["label"], batch["weight"]
        return jax.lax.with_sharding_constraint(values, replicated(evaluator.mesh))

    features, labels = [], []
    with evaluator.batches(source) as batches:
        for batch in over(batches, f"the features of {source.name}, {source.split}"):
            values, label, weight = jax.device_get(step(params, batch))
            features.append(values[weight > 0])
            labels.append(label[weight > 0])
    return Features(source, np.concatenate(features), np.concatenate(labels))


def _check(config: FrozenConfigDict, model_config: ModelConfig, params: PyTree) -> None:
    """Raises ConfigError unless features computed once are what every update would compute."""
    trained = [
        path_name(path)
        for path, frozen in jax.tree_util.tree_leaves_with_path(frozen_mask(config.optim, params))
        if not frozen and not path_name(path).startswith("head/")
    ]
    dropouts = ("dropout", "attention_dropout", "stochastic_depth")
    obstacles = {
        f"{len(trained)} parameters beside the head are trained, such as {trained[:1]}: list them "
        "in optim.freeze": trained,
        "data.train_transforms are not data.eval_transforms": (
            config.data.train_transforms != config.data.eval_transforms
        ),
        "mixup or CutMix is on": config.mix.mixup_alpha or config.mix.cutmix_alpha,
        "the body has dropout": any(getattr(model_config, key, 0) for key in dropouts),
        'data.on_bad is not "error"': config.data.on_bad != "error",
        "a distilled model has two heads": getattr(model_config, "distilled", False),
        "the model has no head": not model_config.num_classes,
    }
    reasons = [reason for reason, holds in obstacles.items() if holds]
    if reasons:
        raise ConfigError(
            f"cache_features cannot be: {'; '.join(reasons)}. Change that, or set cache_features "
            "to False."
        )
