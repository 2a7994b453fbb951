"""Estimates the cost of a run (parameters, FLOPs, memory) without training it."""

import dataclasses
import functools
import json

from ml_collections import FrozenConfigDict

from vit_jax.config import validate
from vit_jax.data.sources import open_source
from vit_jax.errors import ConfigError, VitJaxError
from vit_jax.models import (
    ModelConfig,
    forward_flops,
    num_params,
    num_params_non_embedding,
    read_section,
    update_flops_per_image,
)
from vit_jax.optim import total_steps
from vit_jax.sweeps.memory import bytes_per_device
from vit_jax.sweeps.plan import PlannedRun


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a run; None: unknown without the data.

    Attributes:
      params: number of parameters of the model.
      params_non_embedding: see `vit_jax.models.flops`.
      forward_flops: FLOPs of the forward pass of one image.
      steps: steps of the whole run.
      own_steps: steps that the run makes itself; of a branch, the steps after the trunk's state.
      total_train_flops: FLOPs of `own_steps`.
      bytes_per_device: memory of each device (vit_jax.sweeps.memory). A mesh axis of -1 counts as
        1, the fewest possible devices; with more devices each needs less.
      unknown: what is unknown, and why; "" if nothing is.
    """

    params: int
    params_non_embedding: int
    forward_flops: int
    steps: int | None
    own_steps: int | None
    total_train_flops: int | None
    bytes_per_device: int
    unknown: str = ""


def cost(run: PlannedRun) -> Cost:
    """Estimates the cost of a run.

    Raises:
      ConfigError: the config is invalid, or the model is unknown without a checkpoint.
    """
    config, unknown = run.config, []
    validate(config)
    if config.init_from and not config.model.variant:
        raise ConfigError(
            f"{run.name}: its model is defined by the checkpoint init_from={config.init_from}. Set "
            "model.variant to estimate the cost."
        )
    examples, classes, reason = _data(config)
    if not (config.model.num_classes or classes):
        unknown.append("the number of classes (the head is counted with one)")
    model_config = read_section(config.model, num_classes=classes or 1)
    steps = None
    if config.total_epochs is None or examples:
        steps = total_steps(config, examples or 0)
    else:
        unknown.append("the number of steps")
    own_steps = None if steps is None else steps - (run.branch_of[1] if run.branch_of else 0)
    return Cost(
        params=num_params(model_config),
        params_non_embedding=num_params_non_embedding(model_config),
        forward_flops=forward_flops(model_config),
        steps=steps,
        own_steps=own_steps,
        total_train_flops=None if own_steps is None else _flops(config, model_config, own_steps),
        bytes_per_device=bytes_per_device(config, model_config),
        unknown=f"{' and '.join(unknown)}: {reason}" if unknown else "",
    )


def total_train_flops(run: PlannedRun) -> float | None:
    """Returns the FLOPs of a run's own steps, computed without data.

    For comparing the durations of runs; counts the head with one class.

    Returns:
      None if the number of steps depends on the data, or the model on a checkpoint.
    """
    config = run.config
    if not config.model.variant or (config.total_epochs is not None and not config.data.examples):
        return None
    try:
        validate(config)
        model_config = read_section(config.model, num_classes=1)
        steps = total_steps(config, config.data.examples)
    except ConfigError:  # The run will report it.
        return None
    own_steps = steps - (run.branch_of[1] if run.branch_of else 0)
    return float(_flops(config, model_config, own_steps))


def _flops(config: FrozenConfigDict, model_config: ModelConfig, steps: int) -> int:
    return update_flops_per_image(model_config, config) * config.batch_size * steps


def _data(config: FrozenConfigDict) -> tuple[int | None, int | None, str]:
    """Returns the numbers of examples and classes (None: unknown), and why they are unknown."""
    data = config.data
    source_keys = {
        key: data[key]
        for key in ("source", "name", "data_dir", "manual_dir", "image_key", "label_key", "classes")
    }
    whole, classes, reason = _open(json.dumps(source_keys), data.split)
    examples = data.examples or (data.shots * classes if classes and data.shots else whole)
    return examples, classes, reason


@functools.cache
def _open(source_keys: str, split: str) -> tuple[int | None, int | None, str]:
    data = json.loads(source_keys)
    try:
        source = open_source(
            FrozenConfigDict({**data, "classes": tuple(data["classes"])}), split=split
        )
    except VitJaxError as error:
        return None, len(data["classes"]) or None, str(error).splitlines()[0]
    return len(source), source.num_classes, ""
