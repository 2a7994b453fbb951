"""Estimates the cost of a run (parameters, FLOPs, memory) without training it."""

import dataclasses
import functools
import json
from typing import Any

from ml_collections import FrozenConfigDict

from vit_jax.config import base_config, freeze, thaw, validate
from vit_jax.data import transforms
from vit_jax.data.base import Source
from vit_jax.data.decoded_crop import EXACT
from vit_jax.data.headers import check_headers
from vit_jax.data.sources import open_source
from vit_jax.data.subset import few_shot, num_examples, random_subset
from vit_jax.errors import ConfigError, DataError, VitJaxError
from vit_jax.models import (
    ModelConfig,
    forward_flops,
    num_params,
    num_params_non_embedding,
    read_section,
    update_flops_per_image,
)
from vit_jax.optim import make_schedule, total_steps
from vit_jax.planning.data_size import published_size
from vit_jax.sweeps.plan import PlannedRun
from vit_jax.training.memory import bytes_per_device, smallest_mesh
from vit_jax.training.periods import Periods


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a run; None: unknown without the data.

    Attributes:
      step: the result of `step_config`.
      model_config: the model; its head has one class if their number is unknown.
      examples: number of training examples in an epoch.
      params: number of parameters of the model.
      params_non_embedding: see `vit_jax.models.flops`.
      forward_flops: FLOPs of the forward pass of one image.
      update_flops_per_image: FLOPs of an update, for each image of its batch.
      steps: steps of the whole run.
      own_steps: steps that the run makes itself; of a branch, the steps after the trunk's state.
      total_train_flops: FLOPs of `own_steps`.
      unknown: what is unknown, and why; "" if nothing is.
    """

    step: FrozenConfigDict
    model_config: ModelConfig
    examples: int | None
    params: int
    params_non_embedding: int
    forward_flops: int
    update_flops_per_image: int
    steps: int | None
    own_steps: int | None
    total_train_flops: int | None
    unknown: str = ""

    @property
    def bytes_per_device(self) -> int:
        """Memory of each device (vit_jax.training.memory).

        A mesh axis of -1 counts as 1, the fewest possible devices; with more devices each needs
        less. With `model.remat="auto"` it is that without recomputation.

        Raises:
          VitJaxError: the mesh does not split the parameters.
        """
        return _bytes_per_device(self.step, self.model_config)


def cost(run: PlannedRun) -> Cost:
    """Checks the config of a run and estimates its cost.

    Whether checkpoints exist and data can be decoded is not checked; data that is not on this
    machine is no error.

    Raises:
      VitJaxError: the run could not start: its config is invalid, or does not fit its data; or the
        model is unknown without a checkpoint.
    """
    config, unknown = run.config, []
    validate(config)
    if config.init_from and not config.model.variant:
        raise ConfigError(
            f"{run.name}: its model is defined by the checkpoint init_from={config.init_from}. Set "
            "model.variant to estimate the cost."
        )
    source, reason = _open(_source_keys(config), config.data.split)
    if source is None and _open(_source_keys(config, classes=()), config.data.split)[0]:
        raise DataError(reason)  # The data is here, and the classes are wrong.
    examples, classes = _count(config, source)
    if not (config.model.num_classes or classes):
        unknown.append("the number of classes (the head is counted with one)")
    model_config = read_section(config.model, num_classes=classes or 1)
    steps = None
    if config.total_epochs is None or examples:
        steps = total_steps(config, examples or 0)
    else:
        unknown.append("the number of steps")
    own_steps = None if steps is None else steps - (run.branch_of[1] if run.branch_of else 0)
    _check(config, model_config, source, steps=steps, examples=examples)
    return Cost(
        step=step_config(config),
        model_config=model_config,
        examples=examples,
        params=num_params(model_config),
        params_non_embedding=num_params_non_embedding(model_config),
        forward_flops=forward_flops(model_config),
        update_flops_per_image=update_flops_per_image(model_config, config),
        steps=steps,
        own_steps=own_steps,
        total_train_flops=None if own_steps is None else _flops(config, model_config, own_steps),
        unknown=f"{' and '.join(unknown)}: {reason}" if unknown else "",
    )


def step_config(config: FrozenConfigDict) -> FrozenConfigDict:
    """Returns a copy in which keys that do not affect a step's memory and time have defaults.

    These are the seed, the length of the run, its learning rate, which examples it trains on, and
    what it resumes, evaluates, saves and logs. So the runs of a study share what is computed once
    for each result: to trace the step of a model takes seconds.
    """
    default, step = base_config(), thaw(config)
    for key in ("seed", "total_epochs", "total_examples", "resume", "evals", "checkpoint", "log"):
        step[key] = default[key]
    for key in ("examples", "shots"):
        step.data[key] = default.data[key]
    for key in ("lr", "schedule"):
        step.optim[key] = default.optim[key]
    step.total_steps = 1
    return freeze(step)


@functools.cache
def _bytes_per_device(step: FrozenConfigDict, model_config: ModelConfig) -> int:
    return bytes_per_device(step, model_config, smallest_mesh(step))


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


def _count(config: FrozenConfigDict, source: Source | None) -> tuple[int | None, int | None]:
    """Returns the numbers of training examples and of classes; None: unknown without the data."""
    whole, classes = published_size(config.data)
    classes = source.num_classes if source else classes or len(config.data.classes)
    whole = len(source) if source else whole
    examples = num_examples(config.data, whole=whole, num_classes=classes)
    return examples or None, classes or None


def _check(
    config: FrozenConfigDict,
    model_config: ModelConfig,
    source: Source | None,
    *,
    steps: int | None,
    examples: int | None,
) -> None:
    """Raises VitJaxError if a run could not start with its data, transforms or schedule."""
    if steps is not None:
        make_schedule(
            config.optim.schedule,
            total_steps=steps,
            batch_size=config.batch_size,
            num_examples=examples or 0,
        )
        Periods.of(config, total_steps=steps, num_examples=examples or 0)
    for key, decode in (("train_transforms", config.data.decode), ("eval_transforms", EXACT)):
        transforms.compose(
            config.data[key],
            image_size=model_config.image_size,
            channels=model_config.channels,
            key=f"data.{key}",
            decode=decode,
        )
    if source is None:
        return
    if model_config.num_classes < source.num_classes:
        raise ConfigError(
            f"model.num_classes is {model_config.num_classes}, but {source.name} has "
            f"{source.num_classes} classes."
        )
    if config.data.examples > len(source):
        random_subset(source, config.data.examples, seed=config.seed)
    if config.data.shots and config.data.source != "tfds":  # That would read every label.
        few_shot(source, config.data.shots, seed=config.seed)
    splits = (config.data.split, *(entry.split for entry in config.evals.values()))
    for split in splits:
        _, reason = _open(_source_keys(config), split)
        if reason:
            raise DataError(reason)
    if config.data.on_bad != "skip" and (reason := _broken(_source_keys(config), splits)):
        raise DataError(reason)


def _source_keys(config: FrozenConfigDict, **changes: Any) -> str:
    """Returns the keys that say which data set it is, with changes, as JSON."""
    keys = (
        "source", "name", "data_dir", "manual_dir", "image_key", "label_key", "classes",
        "follow_links", "test_fraction",
    )  # fmt: skip
    return json.dumps({key: config.data[key] for key in keys} | changes)


@functools.cache
def _open(source_keys: str, split: str) -> tuple[Source | None, str]:
    """Opens a split of a data set; returns None and the reason if it cannot be opened here."""
    data = json.loads(source_keys)
    try:
        source = open_source(
            FrozenConfigDict({**data, "classes": tuple(data["classes"])}), split=split
        )
    except VitJaxError as error:
        return None, str(error).splitlines()[0]
    return source, ""


@functools.cache
def _broken(source_keys: str, splits: tuple[str, ...]) -> str:
    """Returns an error that names the broken files of the splits; "" if none is found."""
    sources = [source for split in splits if (source := _open(source_keys, split)[0])]
    try:
        check_headers(sources, skip_bad=False)
    except DataError as error:
        return str(error)
    return ""
