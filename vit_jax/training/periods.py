"""How often a run saves and evaluates, in updates."""

import dataclasses
import math
from collections.abc import Mapping

from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax.config import DURATION_UNITS, check_best
from vit_jax.errors import ConfigError
from vit_jax.optim import resolve_duration


@dataclasses.dataclass(frozen=True)
class Periods:
    """Numbers of updates between saves and between evaluations.

    Attributes:
      save: between saves.
      evaluate: between evaluations, by name; 0: only at the end.
    """

    save: int
    evaluate: Mapping[str, int]

    @classmethod
    def of(cls, config: FrozenConfigDict, *, total_steps: int, num_examples: int) -> "Periods":
        """Converts `checkpoint.every_*` and `evals.NAME.every_*` to updates.

        Args:
          config: the run's config.
          total_steps: length of the run.
          num_examples: in the training split.

        Raises:
          ConfigError: a period is given in two units or negative; saves have none; or the metric
            `checkpoint.best_metric` is measured at too few of the saved steps.
        """

        def steps(section: ConfigDict | FrozenConfigDict, key: str) -> int:
            try:
                period = resolve_duration(
                    section,
                    "every",
                    total_steps=total_steps,
                    batch_size=config.batch_size,
                    num_examples=num_examples,
                )
            except ConfigError as error:
                raise ConfigError(f"{key}: {error}") from error
            if isinstance(fraction := section.get("every_percent"), float) and fraction:
                # Rounded up: a tenth of a run is due at most ten times. 1e-9: rounding errors.
                return math.ceil(fraction * total_steps - 1e-9)
            is_set = any(section.get(f"every_{unit}") for unit in DURATION_UNITS)
            return max(period or 0, int(is_set))

        save = steps(config.checkpoint, "checkpoint")
        if not save:
            units = ", ".join(f"every_{unit}" for unit in DURATION_UNITS)
            raise ConfigError(
                f"checkpoint: it is not set how often the run saves: give one of {units}, above 0."
            )
        evaluate = {name: steps(entry, f"evals.{name}") for name, entry in config.evals.items()}
        if best := config.checkpoint.best_metric:
            name = best.rpartition("/")[0]
            check_best(config, total_steps=total_steps, save=save, evaluate=evaluate[name])
        return cls(save, evaluate)
