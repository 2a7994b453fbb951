"""Subsets of any source: some classes, random examples, or a few examples of each class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax.data import order
from vit_jax.data.base import Example, Source, digest
from vit_jax.errors import ConfigError, DataError


class Subset(Source):
    """Some examples of a source, in its order; optionally with fewer, renumbered classes."""

    def __init__(
        self,
        source: Source,
        ids: Int[np.ndarray, "n"],
        *,
        classes: Sequence[int] | None = None,
        fingerprint: str,
    ):
        """Describes the subset; reads no example.

        Args:
          source: the full source.
          ids: of the examples to keep, all of which are of `classes`.
          classes: class ids of the source: the i-th becomes class i. None: all, not renumbered.
          fingerprint: distinguishes this subset from others of the same source.
        """
        self._source, self._ids, self._fingerprint = source, ids, fingerprint
        self.name, self.split, self.channels = source.name, source.split, source.channels
        self.class_names, self.multi_label = source.class_names, source.multi_label
        self.divided_from, self.reads_groups = source.divided_from, source.reads_groups
        self._new_label = None
        if classes is not None:
            self._new_label = {label: i for i, label in enumerate(classes)}
            self.class_names = tuple(source.class_names[label] for label in classes)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Example:
        example = self._source[int(self._ids[index])]
        return {**example, "label": self._renumbered(example["label"])}

    def read(self, indices: Sequence[int]) -> list[Example]:
        examples = self._source.read([int(self._ids[index]) for index in indices])
        return [{**example, "label": self._renumbered(example["label"])} for example in examples]

    def label(self, index: int) -> Any:
        return self._renumbered(self._source.label(int(self._ids[index])))

    def _renumbered(self, label: Any) -> Any:
        return label if self._new_label is None else self._new_label[label]

    def describe(self, index: int) -> str:
        return self._source.describe(int(self._ids[index]))

    def file(self, index: int) -> str | None:
        return self._source.file(int(self._ids[index]))

    @property
    def fingerprint(self) -> str:
        return digest(self._source.fingerprint, self._fingerprint)


def num_examples(data: ConfigDict | FrozenConfigDict, *, whole: int, num_classes: int) -> int:
    """Returns how many examples of a split a run trains on, without reading it; 0: unknown.

    Args:
      data: `config.data`.
      whole: the number of examples of the split; 0: unknown.
      num_classes: the number of its classes; 0: unknown.
    """
    return data.examples or (data.shots * num_classes if data.shots else whole)


def select_classes(source: Source, classes: Sequence[Any]) -> Source:
    """Returns the examples of some classes; the first of `classes` becomes class 0, and so on.

    It reads every label, which takes as long as reading the source once.

    Args:
      source: with one label per example.
      classes: `config.data.classes`: class ids of the source; (): returns `source`.

    Raises:
      ConfigError: a class id is invalid or repeated, or the source is multi-label.
      DataError: the source has no example of a class.
    """
    if not classes:
        return source
    _check_single_label(source, "data.classes")
    valid = range(source.num_classes)
    if any(type(c) is not int or c not in valid for c in classes) or len({*classes}) < len(classes):
        raise ConfigError(
            f"data.classes is {tuple(classes)}: write different class ids of {source.name}, from 0 "
            f"to {source.num_classes - 1}."
        )
    labels = _labels(source)
    for label in classes:
        if label not in labels:
            raise DataError(
                f"data.classes: {source.name}, {source.split}, has no example of class {label}, "
                f"{source.class_names[label]}."
            )
    (ids,) = np.nonzero(np.isin(labels, classes))
    return Subset(source, ids, classes=classes, fingerprint=f"classes {tuple(classes)}")


def random_subset(source: Source, examples: int, *, seed: int) -> Source:
    """Returns a random subset of the examples (nested: n examples are among n + 1).

    They are the first of the permutation of `vit_jax.data.order` for the seed. So the choice needs
    memory proportional to the subset, reads no label, and is the same in every release.

    Args:
      source: the full source.
      examples: `config.data.examples`: size of the subset; 0: returns `source`.
      seed: of the choice.

    Raises:
      DataError: the source has fewer examples.
    """
    if not examples:
        return source
    if examples > len(source):
        raise DataError(
            f"data.examples is {examples:,}, but {source.name}, {source.split}, has "
            f"{len(source):,}: give at most that, or 0 for all."
        )
    ids, _ = order.examples_at(
        np.arange(examples, dtype=np.int64), num_examples=len(source), seed=seed
    )
    return Subset(source, np.sort(ids), fingerprint=f"{examples} examples of {seed}")


def few_shot(source: Source, shots: int, *, seed: int) -> Source:
    """Returns random examples, equally many of each class (nested: k shots are among k + 1).

    Args:
      source: with one label per example.
      shots: `config.data.shots`: examples of each class; 0: returns `source`.
      seed: of the choice.

    Raises:
      ConfigError: the source is multi-label.
      DataError: a class has fewer examples.
    """
    if not shots:
        return source
    _check_single_label(source, "data.shots")
    labels = _labels(source)
    permutation = np.random.default_rng((seed, len(source))).permutation(len(source))
    chosen = []
    for label, name in enumerate(source.class_names):
        class_ids = permutation[labels[permutation] == label]
        if len(class_ids) < shots:
            raise DataError(
                f"data.shots is {shots}, but {source.name}, {source.split}, has "
                f"{len(class_ids):,} examples of the class {name}."
            )
        chosen.append(class_ids[:shots])
    ids = np.sort(np.concatenate(chosen))
    return Subset(source, ids, fingerprint=f"{shots} shots of {seed}")


def _labels(source: Source) -> Int[np.ndarray, "n"]:
    return np.array([source.label(i) for i in range(len(source))], np.int64)


def _check_single_label(source: Source, key: str) -> None:
    if source.multi_label:
        raise ConfigError(
            f"{key} is set, but an example of {source.name} may be of several classes: choose "
            "examples by data.split instead."
        )
