"""From `config.evals` to evaluations that the train loop can run."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from jaxtyping import PyTree

from vit_jax.data import pipeline
from vit_jax.data.base import Source
from vit_jax.data.blocks import ExampleLoader
from vit_jax.data.sources import open_source
from vit_jax.errors import ConfigError, DataError, did_you_mean
from vit_jax.evals.evaluator import Evaluator

TYPES = ("classification",)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One entry of `config.evals`.

    Attributes:
      every_steps: it is due at every multiple, and at the end; 0: only at the end.
      fingerprint: of the examples: see `vit_jax.data.base.Source`.
      run: from parameters, a function that each batch is counted by, and one that is called with
        (source, example, message) for each bad example (None: the first ends it with a DataError),
        to values by name.
    """

    every_steps: int
    fingerprint: str
    run: Callable[
        [PyTree, Callable[[Iterable], Iterable], Callable[[Source, int, str], None] | None],
        dict[str, float],
    ]

    def due(self, step: int, total_steps: int) -> bool:
        """Whether the state after `step` updates is to be evaluated."""
        return step == total_steps or (self.every_steps > 0 and step % self.every_steps == 0)


def build_evals(evaluator: Evaluator, *, class_names: Sequence[str]) -> dict[str, Evaluation]:
    """All of `config.evals` by name.

    Each split is opened, and its first example prepared, now: a mistake should not show at the
    first evaluation, hours into a run.

    Args:
      evaluator: of the run.
      class_names: of the split that is trained on.

    Raises:
      ConfigError: an entry with an unknown type or key.
      DataError: a split that does not exist, has other classes, or whose images cannot be
        prepared.
    """
    config, evals = evaluator.config, {}
    classification = evaluator.classification()
    for name, entry in config.evals.items():
        if entry.get("type") not in TYPES:
            raise ConfigError(
                f'config.evals.{name}.type is "{entry.get("type")}". '
                + did_you_mean(str(entry.get("type")), TYPES)
            )
        source = open_source(config.data, split=entry.split)
        if tuple(source.class_names) != tuple(class_names):
            raise DataError(
                f"{source.name}: {entry.split} has the classes {_shown(source.class_names)}, and "
                f"{config.data.split} has {_shown(class_names)}: they must be the same."
            )
        load = ExampleLoader(source, evaluator.transform(), 0)
        if config.data.on_bad == "skip":
            pipeline.first_good_example(load)
        else:
            load(0, epoch=0)

        def run(params, over=iter, on_bad=None, source=source):
            with evaluator.batches(source, on_bad=on_bad and partial(on_bad, source)) as batches:
                return classification.evaluate(params, over(batches))

        evals[name] = Evaluation(entry.every_steps, source.fingerprint, run)
    return evals


def _shown(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(names[:5])}" + (", ..." if len(names) > 5 else "")
