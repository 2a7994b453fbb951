"""From `config.evals` to evaluations that the train loop can run."""

import dataclasses
from collections.abc import Callable

from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import FrozenConfigDict

from vit_jax.data import pipeline, transforms
from vit_jax.data.base import Source
from vit_jax.data.sources import open_source
from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.evals.classification import Classification
from vit_jax.models import Vit, VitConfig
from vit_jax.parallel.mesh import batch_sharding

TYPES = ("classification",)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One entry of `config.evals`.

    Attributes:
      every_steps: it is due at every multiple, and at the end; 0: only at the end.
      run: from parameters to values by name.
    """

    every_steps: int
    run: Callable[[PyTree], dict[str, float]]

    def due(self, step: int, total_steps: int) -> bool:
        """Whether the state after `step` updates is to be evaluated."""
        return step == total_steps or (self.every_steps > 0 and step % self.every_steps == 0)


def build_evals(config: FrozenConfigDict, cfg: VitConfig, mesh: Mesh) -> dict[str, Evaluation]:
    """All of `config.evals` by name; their splits are opened now, so that errors come early.

    Raises:
      ConfigError: an entry with an unknown type or key.
      DataError: a split that does not exist.
    """
    evals = {}
    evaluator = classifier(config, cfg)  # One, compiled once for all splits.
    for name, entry in config.evals.items():
        if entry.get("type") not in TYPES:
            raise ConfigError(
                f'config.evals.{name}.type is "{entry.get("type")}". '
                + did_you_mean(str(entry.get("type")), TYPES)
            )
        source = open_source(config.data, split=entry.split, seed=config.seed)

        def run(params, source=source):
            with eval_batches(config, cfg, source, mesh) as batches:
                return evaluator.evaluate(params, batches)

        evals[name] = Evaluation(entry.every_steps, run)
    return evals


def classifier(config: FrozenConfigDict, cfg: VitConfig) -> Classification:
    """The classification metrics of a run's model."""
    model = Vit(cfg)
    return Classification(
        lambda params, images: model.apply({"params": params}, images)[0],
        num_classes=cfg.num_classes,
        loss_name=config.loss.name,
    )


def eval_batches(
    config: FrozenConfigDict,
    cfg: VitConfig,
    source: Source,
    mesh: Mesh,
    *,
    on_bad: Callable[[int, str], None] | None = None,
) -> pipeline.Batches:
    """A split's examples as the run's model is evaluated on: each once, padded by weight 0.

    Args:
      config: of the run.
      cfg: of its model.
      source: of the examples.
      mesh: that the batches will lie on; need not be the one of the training.
      on_bad: see `vit_jax.data.pipeline.eval_batches`.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return pipeline.eval_batches(
        source,
        transforms.build(config.data.eval_transforms, image_size=cfg.image_size),
        batch_size=-(-config.batch_size // parts) * parts,
        sharding=batch_sharding(mesh),
        on_bad=on_bad,
        workers=config.data.workers,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )
