"""The entries of `config.evals`: the evaluations of a run."""

from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax.config.durations import duration
from vit_jax.errors import ConfigError, did_you_mean

CLASSIFICATION, ANALYSIS = "classification", "analysis"
# The metrics of an evaluation of the type classification.
CLASSIFICATION_METRICS = ("top1", "top5", "loss", "ece", "count")


def classification_eval(
    *,
    split: str,
    every_steps: int = 0,
    every_epochs: float | None = None,
    every_percent: float | None = None,
) -> ConfigDict:
    """Returns an entry of `config.evals`: top-1, top-5, loss, calibration error on one split.

    Args:
      split: of the data set of `config.data`; slices are allowed.
      every_steps: evaluate at every multiple, and at the end; 0: only at the end.
      every_epochs: the same in passes over the training split, instead of `every_steps`.
      every_percent: the same in fractions of the run: .1 is ten times in all.
    """
    return _entry(CLASSIFICATION, split, every_steps, every_epochs, every_percent)


def analysis_eval(
    *,
    split: str,
    measures: tuple[str, ...],
    every_steps: int = 0,
    every_epochs: float | None = None,
    every_percent: float | None = None,
) -> ConfigDict:
    """Returns an entry of `config.evals`: the main numbers of measures of `vit_jax.analysis`.

    Args:
      split: as for `classification_eval`; a few images are enough, such as test[:64].
      measures: their names, such as ("attention_distance",); layer_similarity also gives the
        similarity with the final state.
      every_steps: as for `classification_eval`, like those below.
      every_epochs: in passes over the training split.
      every_percent: in fractions of the run.
    """
    entry = _entry(ANALYSIS, split, every_steps, every_epochs, every_percent)
    entry.measures = measures
    return entry


def _entry(
    kind: str,
    split: str,
    every_steps: int,
    every_epochs: float | None,
    every_percent: float | None,
) -> ConfigDict:
    entry = ConfigDict({"type": kind, "split": split, **duration("every")})
    entry.every_epochs, entry.every_percent = every_epochs, every_percent
    if every_epochs is None and every_percent is None:
        entry.every_steps = every_steps
    return entry


def eval_form(kind: Any) -> ConfigDict:
    """Returns an entry with the keys and types of those of a type, classification if unknown."""
    if kind == ANALYSIS:
        return analysis_eval(split="", measures=())
    return classification_eval(split="")


def check_evals(config: ConfigDict | FrozenConfigDict) -> None:
    """Checks names and periods of the evaluations, and that the best metric is one of theirs.

    Raises:
      ConfigError: the message names the key.
    """
    for name, entry in config.evals.items():
        if name == "train":
            raise ConfigError(
                "evals.train: its metrics would have the names of the training metrics, such as "
                "train/loss. Give it another name."
            )
        if (entry.every_steps or 0) < 0:
            raise ConfigError(
                f"evals.{name}.every_steps is {entry.every_steps}: it must be positive, or 0 to "
                "evaluate only at the end."
            )
    best = config.checkpoint.best_metric
    measured = [
        f"{name}/{metric}"
        for name, entry in config.evals.items()
        if entry.type != ANALYSIS
        for metric in CLASSIFICATION_METRICS
    ]
    if best and best not in measured:
        raise ConfigError(
            f'checkpoint.best_metric is "{best}", which the run does not measure. '
            + (did_you_mean(best, measured) if measured else "It has no config.evals.")
        )
