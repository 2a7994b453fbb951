"""What an evaluation works on: a model and the examples of a split."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from etils import epath
from ml_collections import FrozenConfigDict

from vit_jax.data.base import Source
from vit_jax.data.evaluated import describe_division, first_split, open_split
from vit_jax.data.locate import locate_data
from vit_jax.errors import ConfigError
from vit_jax.evals.evaluator import warn_of_bad
from vit_jax.inference.folders import folder_of_run, folder_on_data
from vit_jax.inference.model import Model
from vit_jax.inference.progress import OnProgress, counted
from vit_jax.inference.throughput import Throughput
from vit_jax.parallel.watch import Watch

Data = str | os.PathLike | FrozenConfigDict


@dataclasses.dataclass(frozen=True)
class Task:
    """A model and the examples to evaluate; adds up the time, and collects bad examples.

    Attributes:
      model: with the data in its config.
      source: the split.
      own_data: whether these are the data of the model's run because none were named.
      default_split: the first split that the config of the model's run evaluates; "": none, or the
        data are not those of the run.
      batch_size: None: that of the model's config.
      watch: the watchdog.
      on_progress: called with the images that are done, and all.
      throughput: is added to.
      bad: {location: message} of examples that cannot be read.
    """

    model: Model
    source: Source
    own_data: bool
    default_split: str
    batch_size: int | None
    watch: Watch
    on_progress: OnProgress | None
    throughput: Throughput = dataclasses.field(default_factory=Throughput)
    bad: dict[str, str] = dataclasses.field(default_factory=dict)

    def folder(self, source: Source, changed: list[str]) -> epath.Path:
        """Returns the folder of the results; `changed` are settings that are not by default."""
        run = self.model.run
        if run is not None and self.own_data and not changed:
            return folder_of_run(run, split=source.split, default_split=self.default_split)
        return folder_on_data(
            self.model.checkpoint, run, data=source.name, split=source.split, settings=changed
        )

    def notes_on_split(self, source: Source) -> list[str]:
        """Returns which images a split has, if the data are not divided into splits.

        Also if a run was evaluated on others: those that have moved into its test split, it may
        have been trained on.
        """
        fraction = self.model.evaluator.config.data.test_fraction
        division = describe_division(source, test_fraction=fraction)
        if not division:
            return []
        trained_on = self.model.trained_on
        if trained_on is None or not (self.own_data or self.default_split):
            return [division]
        evals = trained_on.config.evals
        names = [name for name, entry in evals.items() if entry.split == source.split]
        before = trained_on.dataset.get("evals")  # Release 0.1.0 wrote none.
        before = before if isinstance(before, dict) else {}
        if all(before.get(name, source.fingerprint) == source.fingerprint for name in names):
            return [division]
        changed = (
            "has other images than when the run was trained (files have changed, or the run is of "
            "an older release): it may have been trained on some of them"
        )
        return [division, f"{source.split} {changed}"]

    def on_bad(self, source: Source) -> Callable[[int, str], None] | None:
        """Returns the function for bad examples; None: they are errors."""
        if self.model.evaluator.config.data.on_bad != "skip":
            return None

        def collect(example: int, message: str) -> None:
            location = source.describe(example)
            self.bad[location] = message.removeprefix(f"{location}: ")
            warn_of_bad(source, example, message)

        return collect

    def watched(self, source: Source, location: str) -> Callable[[Iterable], Iterator]:
        """Returns a wrapper of an iterator of batches, for time-out and progress."""
        rows = self.batch_size or self.model.evaluator.config.batch_size

        def wrap(batches: Iterable) -> Iterator:
            batches = self.watch.iterate(batches, location)
            return counted(batches, self.on_progress, rows=rows, total=len(source))

        return wrap


def _keys(data: FrozenConfigDict) -> dict[str, Any]:
    """Returns the keys of a config's `data`, without its transforms."""
    transforms = ("train_transforms", "eval_transforms")
    return {key: value for key, value in data.items() if key not in transforms}


def _is_data_of(data: FrozenConfigDict, keys: Mapping[str, Any]) -> bool:
    """Whether keys of `config.data` name the data set of a run."""
    folders = [os.path.realpath(folder or "") for folder in (data.data_dir, keys.get("data_dir"))]
    return (
        data.source == keys["source"]
        and data.name == keys.get("name", "")
        and folders[0] == folders[1]
    )


def open_task(
    model: Model,
    data: Data | None,
    split: str,
    batch_size: int | None,
    watch: Watch,
    on_progress: OnProgress | None,
) -> Task:
    """Opens the data; the arguments are those of `vit_jax.inference.evaluate.evaluate`.

    Raises:
      ConfigError: there are no data, or two splits.
    """
    watch.at("the data")
    default, trained_on = "", model.trained_on
    if data is None:
        if trained_on is None:
            raise ConfigError(
                f"{model.checkpoint} is not a run, so the data to evaluate on are unknown: name a "
                "folder of images or a data set of TFDS as data (--data)."
            )
        default = first_split(trained_on.config)
        if not (split or default):
            raise ConfigError("The run's config evaluates no split: name one as split (--split).")
        if model.run is None:
            model = model.with_data(_keys(trained_on.config.data))
    elif isinstance(data, FrozenConfigDict):
        model = model.with_data(_keys(data.data))
        split = split or first_split(data)
    else:
        keys = locate_data(os.fspath(data))
        named_split = keys.pop("split", "")
        if split and named_split:
            raise ConfigError(
                f'The data "{data}" name a split already: leave the other, "{split}", out.'
            )
        if trained_on is not None and _is_data_of(trained_on.config.data, keys):
            # The data of the run: by default its split, without what it was trained on.
            keys["test_fraction"] = trained_on.config.data.test_fraction
            default = first_split(trained_on.config)
        model, split = model.with_data(keys | {"on_bad": "skip"}), split or named_split
    source = open_split(model.evaluator.config.data, split or default)
    # The outputs of a model in memory may be of other classes than its run's.
    own_data = data is None and model.run is not None
    return Task(model, source, own_data, default, batch_size, watch, on_progress)
