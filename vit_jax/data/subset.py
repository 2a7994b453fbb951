"""Some classes of a data set, some of its examples, a few of each class: any source, in part."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from vit_jax.data import order
from vit_jax.data.base import Example, Source, digest
from vit_jax.errors import ConfigError, DataError


class Subset(Source):
    """Some examples of a source, in its order; its classes may be fewer, and are renumbered."""

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
          source: the whole.
          ids: of the examples that are kept; all of them are of `classes`.
          classes: numbers of the source's classes: the i-th is class i here; None: all, as there.
          fingerprint: what tells this subset from others of the same source.
        """
        self._source, self._ids, self._fingerprint = source, ids, fingerprint
        self.name, self.split, self.channels = source.name, source.split, source.channels
        self.class_names, self.multi_label = source.class_names, source.multi_label
        self._number = None
        if classes is not None:
            self._number = {label: i for i, label in enumerate(classes)}
            self.class_names = tuple(source.class_names[label] for label in classes)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Example:
        example = self._source[int(self._ids[index])]
        return {**example, "label": self._renumbered(example["label"])}

    def label(self, index: int) -> Any:
        return self._renumbered(self._source.label(int(self._ids[index])))

    def _renumbered(self, label: Any) -> Any:
        return label if self._number is None else self._number[label]

    def describe(self, index: int) -> str:
        return self._source.describe(int(self._ids[index]))

    @property
    def fingerprint(self) -> str:
        return digest(self._source.fingerprint, self._fingerprint)


def of_classes(source: Source, classes: Sequence[Any]) -> Source:
    """The examples of some classes; the first of `classes` becomes class 0, and so on.

    Every label of the source is read, so it takes as long as reading the source once.

    Args:
      source: of single labels.
      classes: `config.data.classes`: numbers of classes of the source; (): all, as they are.

    Raises:
      ConfigError: a number is no class or comes twice, or the source has several labels an example.
      DataError: the source has no example of a class.
    """
    if not classes:
        return source
    _check_single(source, "data.classes")
    known = range(source.num_classes)
    if any(type(c) is not int or c not in known for c in classes) or len({*classes}) < len(classes):
        raise ConfigError(
            f"data.classes is {tuple(classes)}: write different class numbers of {source.name}, "
            f"from 0 to {source.num_classes - 1}."
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


def random_part(source: Source, examples: int, *, seed: int) -> Source:
    """Some examples, chosen by a seed whatever their class; those of n are among those of n + 1.

    They are the first of the permutation that `vit_jax.data.order` makes of the seed: the choice
    takes memory in proportion to the part, reads no label, and is equal in every release.

    Args:
      source: the whole.
      examples: `config.data.examples`: how many; 0: all that there are.
      seed: decides which.

    Raises:
      DataError: there are fewer.
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
    """As many examples of each class, chosen by a seed; those of k shots are among those of k + 1.

    Args:
      source: of single labels.
      shots: `config.data.shots`: examples of each class; 0: all that there are.
      seed: decides which.

    Raises:
      ConfigError: the source has several labels an example.
      DataError: a class has fewer examples.
    """
    if not shots:
        return source
    _check_single(source, "data.shots")
    labels = _labels(source)
    order = np.random.default_rng((seed, len(source))).permutation(len(source))
    chosen = []
    for label, name in enumerate(source.class_names):
        of_class = order[labels[order] == label]
        if len(of_class) < shots:
            raise DataError(
                f"data.shots is {shots}, but {source.name}, {source.split}, has "
                f"{len(of_class):,} examples of the class {name}."
            )
        chosen.append(of_class[:shots])
    ids = np.sort(np.concatenate(chosen))
    return Subset(source, ids, fingerprint=f"{shots} shots of {seed}")


def _labels(source: Source) -> Int[np.ndarray, "n"]:
    return np.array([source.label(i) for i in range(len(source))], np.int64)


def _check_single(source: Source, key: str) -> None:
    if source.multi_label:
        raise ConfigError(
            f"{key} is set, but an example of {source.name} may be of several classes: choose by "
            "data.split."
        )
