"""Extends a run: the same config with a larger length.

Each update depends on the config and its step only, so from the last checkpoint on an extended run
equals, to the bit, a run of the longer config that starts from that state (`config.resume`). If the
learning rate does not depend on the length (constant or rsqrt, without cooldown and without
durations in percent), it equals a run that had the larger length from its start; else the updates
made before followed the shorter schedule, and the learning rate changes abruptly.
"""

import numpy as np
from ml_collections import FrozenConfigDict

from vit_jax.config import DURATION_UNITS
from vit_jax.errors import ConfigError
from vit_jax.optim import make_schedule, total_steps

LENGTHS = ("total_steps", "total_epochs", "total_examples")


def check_longer(old: FrozenConfigDict, new: FrozenConfigDict, num_examples: int) -> None:
    """Checks that a config has at least as many steps as the run had.

    Args:
      old: the config of the run.
      new: the config that it is continued with.
      num_examples: in the training split.

    Raises:
      ConfigError: it has fewer.
    """
    before, after = total_steps(old, num_examples), total_steps(new, num_examples)
    if after < before:
        raise ConfigError(
            f"--extend: the run has {before:,} steps, and would have {after:,}: raise total_steps, "
            "_epochs or _examples."
        )


def describe(old: FrozenConfigDict, new: FrozenConfigDict, *, num_examples: int, step: int) -> str:
    """Returns what extending a run changes.

    Args:
      old: the config of the run.
      new: the config that it is continued with.
      num_examples: in the training split.
      step: number of updates made; at least 1.
    """
    before, after = total_steps(old, num_examples), total_steps(new, num_examples)
    text = f"extend  from {before:,} to {after:,} steps, at step {step:,}: "
    if not _depends_on_length(new):
        return text + f"equal to a run that had {after:,} steps from its start"
    last, following = (
        _learning_rate(config, at, num_examples) for config, at in ((old, step - 1), (new, step))
    )
    return text + (
        f"the {new.optim.schedule.name} schedule now ends at step {after:,}, so the learning rate "
        f"goes from {last:.3g} to {following:.3g}. A run that had {after:,} steps from its start "
        "would differ"
    )


def _learning_rate(config: FrozenConfigDict, step: int, num_examples: int) -> float:
    schedule = make_schedule(
        config.optim.schedule,
        total_steps=total_steps(config, num_examples),
        batch_size=config.batch_size,
        num_examples=num_examples,
    )
    return config.optim.lr * float(np.asarray(schedule(step)))


def _depends_on_length(config: FrozenConfigDict) -> bool:
    """Returns whether the learning rate of a step depends on the length of the run."""
    schedule = config.optim.schedule
    keys = [f"cooldown_{unit}" for unit in DURATION_UNITS] + ["warmup_percent", "timescale_percent"]
    return schedule.name in ("cosine", "linear") or any(schedule[key] for key in keys)
