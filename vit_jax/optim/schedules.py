"""The length of a run, and learning rate schedules. Steps count from 0."""

from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vit_jax.config import DURATION_UNITS
from vit_jax.errors import ConfigError, did_you_mean

NAMES = ("constant", "cosine", "linear", "rsqrt")
_MAX_STEPS = 2**31 - 1  # The state counts updates in 32 bits.


def total_steps(config: ConfigDict, num_examples: int) -> int:
    """Returns the number of updates in the run.

    Args:
      config: the run's config, with total_steps, total_epochs or total_examples, and batch_size.
      num_examples: in the training split.

    Raises:
      ConfigError: not exactly one of the three is set, or the run has no or too many steps.
    """
    steps = _in_steps(
        config, "total", total_steps=None, batch_size=config.batch_size, num_examples=num_examples
    )
    if steps is None:
        raise ConfigError(
            "The length of the run is not set: give one of total_steps, total_epochs, "
            "total_examples."
        )
    if not 0 < steps <= _MAX_STEPS:
        raise ConfigError(
            f"The run has {steps:,} steps: total_steps (_epochs, _examples) must amount to 1 to "
            f"{_MAX_STEPS:,}."
        )
    return steps


def resolve_duration(
    config: ConfigDict, name: str, *, total_steps: int, batch_size: int, num_examples: int
) -> int | None:
    """Converts a duration in any unit to a number of updates; None if no unit is set.

    Rounded to the nearest step, but at least one unless it is 0 (as big_vision does).

    Args:
      config: has `{name}_steps`, `{name}_epochs`, `{name}_examples`, `{name}_percent`, of which at
        most one is set; percent is a fraction: .1 is a tenth of the run.
      name: e.g. "warmup".
      total_steps: length of the run.
      batch_size: examples per update.
      num_examples: in the training split.

    Raises:
      ConfigError: several units are set, the value is negative, or a fraction is above 1.
    """
    return _in_steps(
        config, name, total_steps=total_steps, batch_size=batch_size, num_examples=num_examples
    )


def make_schedule(
    schedule_config: ConfigDict, *, total_steps: int, batch_size: int, num_examples: int
) -> optax.Schedule:
    """Returns the learning rate schedule, as a fraction of the peak.

    With p going from 0 to 1 between the end of warm-up and the end of the run:

        constant  1
        cosine    end + (1 - end) * (1 + cos(pi p)) / 2
        linear    1 - (1 - end) * p
        rsqrt     1 / sqrt(1 + steps since warm-up / timescale)

    These are multiplied by warm-up, which grows linearly from 0 at step 0 (so the first update
    changes nothing), and by cooldown, which falls linearly to 0 at the end of the run. Constant
    with cooldown is the schedule known as WSD. Values equal those of big_vision (linear and cosine
    also vision_transformer's).

    Args:
      schedule_config: `config.optim.schedule`.
      total_steps: length of the run.
      batch_size: examples per update.
      num_examples: in the training split.

    Returns:
      A function from the number of earlier updates to float32[].

    Raises:
      ConfigError: an unknown name, an invalid duration, rsqrt without timescale, or warm-up and
        cooldown longer than the run.
    """
    name, end = schedule_config.name, schedule_config.end
    if name not in NAMES:
        raise ConfigError(
            f"optim.schedule.name={name!r}: no such schedule. {did_you_mean(name, NAMES)}"
        )
    warmup, cooldown, timescale = (
        resolve_duration(
            schedule_config,
            duration,
            total_steps=total_steps,
            batch_size=batch_size,
            num_examples=num_examples,
        )
        for duration in ("warmup", "cooldown", "timescale")
    )
    warmup, cooldown = warmup or 0, cooldown or 0
    if warmup >= total_steps or warmup + cooldown > total_steps:
        raise ConfigError(
            f"{warmup} steps of warm-up and {cooldown} of cooldown do not fit into a run of "
            f"{total_steps} steps: shorten warmup_* or cooldown_*, or give them as _percent."
        )
    if not 0 <= end <= 1:
        raise ConfigError(f"optim.schedule.end={end} must be a fraction of lr, in [0, 1].")
    if timescale is not None and name != "rsqrt":
        raise ConfigError(
            f"optim.schedule.timescale_* is set, but {name} does not use it: set it to None, or "
            "optim.schedule.name to rsqrt."
        )
    if name == "rsqrt" and not timescale:
        raise ConfigError(
            "The rsqrt schedule needs a timescale above 0: set one of "
            f"{', '.join(f'optim.schedule.timescale_{unit}' for unit in DURATION_UNITS)}."
        )

    def schedule(step):
        since_warmup = jnp.maximum(jnp.float32(step) - warmup, 0.0)
        progress = jnp.minimum(since_warmup / (total_steps - warmup), 1.0)
        match name:
            case "constant":
                value = jnp.float32(1.0)
            case "cosine":
                value = end + (1.0 - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
            case "linear":
                value = end + (1.0 - end) * (1.0 - progress)
            case "rsqrt":
                assert timescale is not None  # Checked above.
                value = 1.0 / jnp.sqrt(1.0 + since_warmup / float(timescale))
        if warmup:
            value *= jnp.minimum(jnp.float32(step) / warmup, 1.0)
        if cooldown:
            value *= jnp.clip((total_steps - jnp.float32(step)) / cooldown, 0.0, 1.0)
        return value

    return schedule


def _in_steps(
    config: ConfigDict, name: str, *, total_steps: int | None, batch_size: int, num_examples: int
) -> int | None:
    keys = [f"{name}_{unit}" for unit in DURATION_UNITS]
    values: dict[str, Any] = {key: config[key] for key in keys if config.get(key) is not None}
    if not values:
        return None
    if len(values) > 1:
        raise ConfigError(f"{' and '.join(values)} are set: keep one, and set the others to None.")
    ((key, value),) = values.items()
    unit = key.rpartition("_")[2]
    if value < 0:
        raise ConfigError(f"{key}={value} must not be negative.")
    if unit == "percent" and value > 1:
        raise ConfigError(f"{key}={value} must be a fraction of the run: 0.1 is a tenth of it.")
    match unit:
        case "steps":
            return value
        case "epochs":
            steps = value * num_examples / batch_size
        case "examples":
            steps = value / batch_size
        case _:  # "percent"; the key exists only where total_steps is given.
            assert total_steps is not None
            # One step less than the run: so warm-up fits even into the shortest trial run.
            steps = min(value * total_steps, max(total_steps - 1, 0)) if value < 1 else total_steps
            return max(min(1, total_steps - 1), round(steps)) if value else 0
    # A product of two large numbers may be infinite.
    return max(1, round(min(steps, 2**62))) if value else 0
