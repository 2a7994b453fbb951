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
    """Returns the policy for the `keep_*` and `best_*` arguments of `Store`, documented there."""
    rules: list[Any] = [policies.LatestN(last)]
    if every_steps:
        rules.append(policies.EveryNSteps(every_steps))
    if steps:
        rules.append(policies.CustomSteps(list(steps)))
    if best_metric:
        rules.append(_Best(best_metric, best_mode))
    return policies.AnyPreservationPolicy(rules)


def superseded(policy: Any, metrics: Mapping[int, Mapping[str, float] | None]) -> list[int]:
    """Returns the steps that a policy does not keep.

    `metrics` has an entry for each checkpoint, in ascending order of steps; None without metrics.
    """
    infos = [_CheckpointInfo(step, values) for step, values in metrics.items()]
    kept = policy.should_preserve(infos, context=policies.PreservationContext())
    return [info.step for info, keep in zip(infos, kept, strict=True) if not keep]


class _CheckpointInfo(NamedTuple):
    """A checkpoint as Orbax's policies see it."""

    step: int
    metrics: Mapping[str, float] | None
    time: datetime.datetime | None = None  # Not read by the policies used here.


class _Best(policies.PreservationPolicy):
    """Keeps the best checkpoint by a metric; of equal ones, the newest.

    A checkpoint without this metric cannot be the best. Checkpoints of release 0.1.0 have no
    metrics at all: each may be the best, so all are kept.
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
