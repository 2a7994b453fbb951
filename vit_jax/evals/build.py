"""From `config.evals` to evaluations that the train loop can run."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from absl import logging
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import FrozenConfigDict

from vit_jax.data import pipeline, transforms
from vit_jax.data.base import Source
from vit_jax.data.blocks import ExampleLoader
from vit_jax.data.sources import open_source
from vit_jax.errors import ConfigError, DataError, did_you_mean
from vit_jax.evals.classification import Classification
from vit_jax.models import ModelConfig, build
from vit_jax.parallel.mesh import batch_sharding

TYPES = ("classification",)

# A loader process takes seconds to start, at every evaluation: it must have enough to do.
EXAMPLES_PER_WORKER = 2000


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One entry of `config.evals`.

    Attributes:
      every_steps: it is due at every multiple, and at the end; 0: only at the end.
      fingerprint: of the examples: see `vit_jax.data.base.Source`.
      run: from parameters, a function that each batch is counted by, and one that is called with
        (source, example, message) for each bad example (None: the first ends it with a DataError),
        to values by name.
    """

    every_steps: int
    fingerprint: str
    run: Callable[
        [PyTree, Callable[[Iterable], Iterable], Callable[[Source, int, str], None] | None],
        dict[str, float],
    ]

    def due(self, step: int, total_steps: int) -> bool:
        """Whether the state after `step` updates is to be evaluated."""
        return step == total_steps or (self.every_steps > 0 and step % self.every_steps == 0)


def build_evals(
    config: FrozenConfigDict, model_config: ModelConfig, mesh: Mesh, *, class_names: Sequence[str]
) -> dict[str, Evaluation]:
    """All of `config.evals` by name.

    Each split is opened, and its first example prepared, now: a mistake should not show at the
    first evaluation, hours into a run.

    Args:
      config: of the run.
      model_config: of its model.
      mesh: of its batches.
      class_names: of the split that is trained on.

    Raises:
      ConfigError: an entry with an unknown type or key.
      DataError: a split that does not exist, has other classes, or whose images cannot be
        prepared.
    """
    evals = {}
    evaluator = classifier(config, model_config)  # One, compiled once for all splits.
    for name, entry in config.evals.items():
        if entry.get("type") not in TYPES:
            raise ConfigError(
                f'config.evals.{name}.type is "{entry.get("type")}". '
                + did_you_mean(str(entry.get("type")), TYPES)
            )
        source = open_source(config.data, split=entry.split)
        if tuple(source.class_names) != tuple(class_names):
            raise DataError(
                f"{source.name}: {entry.split} has the classes {_shown(source.class_names)}, and "
                f"{config.data.split} has {_shown(class_names)}: they must be the same."
            )
        transform = _transform(config, model_config)
        load = ExampleLoader(source, transform, 0)
        if config.data.on_bad == "skip":
            pipeline.first_good(load)
        else:
            load(0, epoch=0)

        def run(params, over=iter, on_bad=None, source=source):
            with eval_batches(
                config,
                model_config,
                source,
                mesh,
                batch_size=config.batch_size,
                on_bad=on_bad and partial(on_bad, source),
            ) as batches:
                return evaluator.evaluate(params, over(batches))

        evals[name] = Evaluation(entry.every_steps, source.fingerprint, run)
    return evals


def _transform(config: FrozenConfigDict, model_config: ModelConfig) -> transforms.Transform:
    return transforms.build(
        config.data.eval_transforms,
        image_size=model_config.image_size,
        channels=model_config.channels,
        key="data.eval_transforms",
    )


def _warn(example: int, message: str) -> None:
    logging.warning("Example %d is bad and is not counted: %s", example, message)


def _shown(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(names[:5])}" + (", ..." if len(names) > 5 else "")


def classifier(config: FrozenConfigDict, model_config: ModelConfig) -> Classification:
    """The classification metrics of a run's model."""
    model = build(model_config)
    return Classification(
        lambda params, images: model.apply({"params": params}, images)[0],
        num_classes=model_config.num_classes,
        loss_name=config.loss.name,
    )


def eval_batches(
    config: FrozenConfigDict,
    model_config: ModelConfig,
    source: Source,
    mesh: Mesh,
    *,
    batch_size: int,
    on_bad: Callable[[int, str], None] | None = None,
) -> pipeline.Batches:
    """A split's examples as the run's model is evaluated on: each once, padded by weight 0.

    Args:
      config: of the run.
      model_config: of its model.
      source: of the examples.
      mesh: that the batches will lie on; need not be the one of the training.
      batch_size: rows of a batch, at most; fewer if there are fewer examples. Rounded up to
        a multiple of the mesh's parts.
      on_bad: see `vit_jax.data.pipeline.eval_batches`. None: as the run's config says, an error or
        a warning.
    """
    if on_bad is None and config.data.on_bad == "skip":
        on_bad = _warn
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return pipeline.eval_batches(
        source,
        _transform(config, model_config),
        batch_size=-(-min(batch_size, len(source)) // parts) * parts,
        sharding=batch_sharding(mesh),
        on_bad=on_bad,
        workers=min(config.data.workers, len(source) // EXAMPLES_PER_WORKER),
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )
