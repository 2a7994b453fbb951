"""Evaluates a model with the transforms, batches and loss of its run's config."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, PyTree
from ml_collections import FrozenConfigDict

from vit_jax.data import pipeline, transforms
from vit_jax.data.base import Source
from vit_jax.data.batches import Batches, LoaderOptions
from vit_jax.data.blocks import Transform
from vit_jax.data.decoded_cache import DecodedCache
from vit_jax.evals.classification import Classification
from vit_jax.models import ModelConfig, build
from vit_jax.parallel.mesh import batch_sharding, replicated
from vit_jax.telemetry.notes import warn

# A loader process takes seconds to start at every evaluation: one for so many examples at most.
EXAMPLES_PER_WORKER = 2000


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates a model; parameters and examples are arguments of its methods.

    Attributes:
      config: the config of the run.
      model_config: the config of its model.
      mesh: the mesh of batches and parameters; may differ from the mesh of the training.
      cache: of decoded images; None: there is none.
    """

    config: FrozenConfigDict
    model_config: ModelConfig
    mesh: Mesh
    cache: DecodedCache | None = None

    def transform(self) -> Transform:
        """Returns the transform from an example to the input of the model."""
        return transforms.compose(
            self.config.data.eval_transforms,
            image_size=self.model_config.image_size,
            channels=self.model_config.channels,
            key="data.eval_transforms",
            cache=self.cache,
        )

    def classification(self) -> Classification:
        """Returns the classification metrics, which compile once for each shape of a batch."""
        model = build(self.model_config)
        return Classification(
            lambda params, images: model.apply({"params": params}, images)[0],
            num_classes=self.model_config.num_classes,
            loss_name=self.config.loss.name,
        )

    def batches(
        self,
        source: Source,
        *,
        transform: Transform | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        on_bad: Callable[[int, str], None] | None = None,
    ) -> Batches:
        """Returns batches that contain each example once; the last one is padded with weight 0.

        Args:
          source: the examples.
          transform: None: the transform of the config.
          batch_size: rows of a batch; fewer if there are fewer examples. Rounded up to a multiple
            of the mesh's data and fsdp axes. None: the batch size of the config.
          workers: number of loader processes; None: that of the config, but at most one for each
            `EXAMPLES_PER_WORKER` examples.
          on_bad: see `vit_jax.data.pipeline.eval_batches`. None: an error or a warning, according
            to the config.
        """
        data = self.config.data
        if on_bad is None and data.on_bad == "skip":
            on_bad = partial(warn_of_bad, source)
        if workers is None:
            workers = min(data.workers, len(source) // EXAMPLES_PER_WORKER)
        return pipeline.eval_batches(
            source,
            transform or self.transform(),
            batch_size=self._rows(source, batch_size),
            sharding=batch_sharding(self.mesh),
            options=LoaderOptions.from_config(data, workers=workers),
            on_bad=on_bad,
        )

    def _rows(self, source: Source, batch_size: int | None) -> int:
        """Returns the rows of a batch: see `batches`."""
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        rows = min(batch_size or self.config.batch_size, len(source))
        return -(-rows // shards) * shards

    def padding(self, source: Source, *, batch_size: int | None = None) -> dict[str, Array]:
        """Returns a batch of padding alone, to compile programs with before images are read.

        Args:
          source: the examples.
          batch_size: as for `batches`.
        """
        rows, config = self._rows(source, batch_size), self.model_config
        label = ((source.num_classes,), jnp.float32) if source.multi_label else ((), jnp.int32)
        specs = {
            "image": ((*config.image_size, config.channels), jnp.float32),
            "label": label,
            "weight": ((), jnp.float32),
        }

        @partial(jax.jit, out_shardings=batch_sharding(self.mesh))
        def zeros():
            return {key: jnp.zeros((rows, *shape), dtype) for key, (shape, dtype) in specs.items()}

        return zeros()

    def compile(
        self, params: PyTree, batch: dict[str, Array]
    ) -> Callable[[PyTree, dict[str, Array]], dict[str, Array]]:
        """Compiles (params, batch) -> outputs, for batches like the given one.

        The outputs, replicated over the mesh, are `logits` f32[b, classes] (without a head they are
        the features), `features` f32[b, d], the head's input, and the batch's `label` and `weight`.
        """
        model = build(self.model_config)

        def outputs(params, batch):
            logits, intermediates = model.apply({"params": params}, batch["image"])
            values = {
                "logits": logits.astype(jnp.float32),
                "features": intermediates["pre_logits"],
                "label": batch["label"],
                "weight": batch["weight"],
            }
            return jax.lax.with_sharding_constraint(values, replicated(self.mesh))

        return jax.jit(outputs).lower(params, batch).compile()


def warn_of_bad(source: Source, example: int, message: str) -> None:
    """Warns of an example of a source that cannot be read; begins with its location."""
    location = source.describe(example)
    warn(f"{location}: it is not counted: {message.removeprefix(f'{location}: ')}")
