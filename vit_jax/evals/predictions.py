"""What a model says of each example of a split."""

from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from vit_jax.evals.classification import probabilities
from vit_jax.models import ModelConfig, build
from vit_jax.parallel.mesh import replicated


def predict(
    model_config: ModelConfig,
    params: PyTree,
    batches: Iterable[dict[str, Array]],
    *,
    loss_name: str,
    mesh: Mesh,
) -> Iterator[tuple[Float[np.ndarray, "b classes"], dict[str, np.ndarray]]]:
    """Probabilities of each class, batch by batch.

    Args:
      model_config: of the model.
      params: of the model, on the mesh.
      batches: {"image", "label", "weight"} as `vit_jax.data.pipeline.eval_batches` gives.
      loss_name: that the model was trained with: softmax_xent or sigmoid_xent.
      mesh: that all of this lies on.

    Yields:
      Probabilities, and the batch they belong to on the host, padding (weight 0) included.
    """
    model = build(model_config)

    @jax.jit
    def step(params, batch):
        logits, _ = model.apply({"params": params}, batch["image"])
        everywhere = jax.lax.with_sharding_constraint((logits, batch), replicated(mesh))
        return probabilities(everywhere[0], loss_name=loss_name), everywhere[1]

    for batch in batches:
        yield jax.device_get(step(params, batch))
