"""Which checkpoints of a run are kept: the newest, some steps, the best by a metric."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orbax.checkpoint import checkpoint_managers as policies


def preservation(
    *,
    last: int,
    every_steps: int,
    steps: Sequence[int],
    best_metric: str,
    best_mode: str,
) -> Any:  # A policy of Orbax, a protocol that nothing can check at run time.
    """What is kept, for `vit_jax.checkpoints.store.Store`, whose arguments these are."""
    keep: list[Any] = [policies.LatestN(last)]
    if every_steps:
        keep.append(policies.EveryNSteps(every_steps))
    if steps:
        keep.append(policies.CustomSteps(list(steps)))
    if best_metric:
        keep.append(_Best(best_metric, best_mode))
    return policies.AnyPreservationPolicy(keep)


def superseded(policy: Any, metrics: Mapping[int, Mapping[str, float] | None]) -> list[int]:
    """The steps that a policy does not keep.

    Args:
      policy: from `preservation`.
      metrics: of each step that has a checkpoint, ascending; None for one that has none.
    """
    found = [_Saved(step, values) for step, values in metrics.items()]
    kept = policy.should_preserve(found, context=policies.PreservationContext())
    return [saved.step for saved, keep in zip(found, kept, strict=True) if not keep]


class _Saved(NamedTuple):
    """A checkpoint as Orbax's policies see it."""

    step: int
    metrics: Mapping[str, float] | None
    time: datetime.datetime | None = None  # Ours do not look at it.


class _Best(policies.PreservationPolicy):
    """Keeps the best checkpoint by a metric, of equals the newest.

    One without the metric cannot be the best. Those of release 0.1.0 have no metrics at all: one of
    them may be, and they are kept.
    """

    def __init__(self, metric: str, mode: str):
        self._metric, self._sign = metric, {"max": 1, "min": -1}[mode]

    def should_preserve(
        self,
        checkpoints: Sequence[Any],
        *,
        context: policies.PreservationContext,
    ) -> Sequence[bool]:
        values = {
            (self._sign * info.metrics[self._metric], info.step)
            for info in checkpoints
            if info.metrics and self._metric in info.metrics
        }
        best = max(values, default=(0, None))[1]
        return [info.step == best or info.metrics is None for info in checkpoints]
