"""Parts of a batch: what a processor computes at once, so that its caches hold the activations."""

from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from vit_jax.models import ModelConfig, VitConfig

# Fewer make products slower, and each part adds the gradients of all parameters to their sum once.
_TOKENS = 800
_RANDOM = ("dropout", "attention_dropout", "stochastic_depth")


def number_of_parts(config: FrozenConfigDict, model_config: ModelConfig, mesh: Mesh) -> int:
    """Returns the number of parts in which each microbatch is computed, one after the other.

    On a CPU a train step is bound by the memory that it touches, and computes several parts faster
    than the whole (benchmarks/README.md): loss, metrics and gradient are their means, equal up to
    rounding. One elsewhere; for a model with random numbers, whose masks would be other ones; and
    on several devices, where each part would add the gradients over the devices.

    Args:
      config: the config of the run.
      model_config: the config of its model.
      mesh: the mesh of the batch.
    """
    on_one_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    if not on_one_cpu or not isinstance(model_config, VitConfig):
        return 1
    if any(getattr(model_config, name) for name in _RANDOM):
        return 1
    images = config.batch_size // config.optim.accum_steps
    wanted = max(1, round(images * model_config.num_tokens / _TOKENS))
    return next(n for n in range(min(wanted, images), 0, -1) if images % n == 0)
