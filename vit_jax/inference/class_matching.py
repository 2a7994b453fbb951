"""Matches the classes of a data set with the outputs of a model, by their names."""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.data.base import Example, Source, digest
from vit_jax.errors import DataError
from vit_jax.pretrained import imagenet
from vit_jax.pretrained.class_names import UNNAMED, name_outputs

_SYNSET = re.compile(r"n\d{8}(?=$|[^0-9])")  # Also in names such as "n02085620-Chihuahua".
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Match:
    """A class of the data set and the output of the model that stands for it.

    Attributes:
      data_class: name in the data set.
      output: index of the output; None: there is none.
      label: name of the output.
      how: name, synset, lemma or position; without an output the reason.
    """

    data_class: str
    output: int | None
    label: str
    how: str


@dataclasses.dataclass(frozen=True)
class ClassMatching:
    """What the classes of a data set are for a model.

    Attributes:
      matches: one for each class of the data set, in its order.
      labels: a name for each output of the model.
      assumption: what the names do not say; "": nothing was assumed.
    """

    matches: tuple[Match, ...]
    labels: tuple[str, ...]
    assumption: str = ""

    @property
    def outputs(self) -> tuple[int, ...]:
        """Outputs with a class of the data set, in the order of these classes."""
        return tuple(match.output for match in self.matches if match.output is not None)

    @property
    def unmatched(self) -> tuple[Match, ...]:
        """Classes of the data set without an output."""
        return tuple(match for match in self.matches if match.output is None)

    @property
    def is_subset(self) -> bool:
        """Whether the model has outputs for other classes."""
        return len(self.outputs) < len(self.labels)

    def summary(self) -> str:
        """Returns a line such as "10 of 10 classes matched (10 by synset), the model has 1,000"."""
        ways = collections.Counter(match.how for match in self.matches if match.output is not None)
        how = ", ".join(f"{count:,} by {way}" for way, count in ways.items())
        text = (
            f"{len(self.outputs):,} of {len(self.matches):,} classes matched ({how}); the model "
            f"has {len(self.labels):,}"
        )
        if self.unmatched:
            shown = "; ".join(f"{m.data_class} ({m.how})" for m in self.unmatched[:_SHOWN])
            more = len(self.unmatched) - _SHOWN
            text += f". Without an output: {shown}" + (f"; and {more} more" if more > 0 else "")
        return text


def match_classes(
    class_names: Sequence[str], labels: Sequence[str] | None, *, num_outputs: int
) -> ClassMatching:
    """Finds the output of a model for each class of a data set.

    Names are compared as they are; then by synset ids (a model of ImageNet's 1,000 classes is known
    by its labels, or, without labels, assumed by their number); then by lemmas, the parts of a
    label between commas, without regard to case, hyphens and underscores. A lemma that two outputs
    have ("crane") matches neither. If the model or the data set has no names, and they have equally
    many classes, they are matched by position.

    Args:
      class_names: of the data set.
      labels: of the outputs; None: unknown.
      num_outputs: number of outputs of the model.

    Raises:
      DataError: no class has an output.
    """
    labels, assumption = name_outputs(labels, num_outputs)
    unnamed = labels is None or all(map(UNNAMED.fullmatch, class_names))
    if unnamed and len(class_names) == num_outputs:
        return _by_position(class_names, labels)
    if labels is None:
        raise DataError(
            f"The checkpoint names none of its {num_outputs:,} classes, and the data set has "
            f"{len(class_names):,}: {_shown(class_names)}. Evaluate its features: "
            "method knn, fewshot or probe."
        )
    ids = imagenet.ids_of_outputs(labels, num_outputs)
    matching = ClassMatching(tuple(_matches(class_names, labels, ids)), labels, assumption)
    if not matching.outputs:
        reasons = {match.how for match in matching.matches}
        ambiguous = " (some names fit several)" if any("several" in r for r in reasons) else ""
        raise DataError(
            f"No class of the data set is one of the model's{ambiguous}. The data set has "
            f"{_shown(class_names)}; the model has {_shown(labels)}. Name the classes as the model "
            "does, or by ImageNet's ids (n01440764); or evaluate the features: method knn, "
            "fewshot or probe."
        )
    return matching


def _by_position(class_names: Sequence[str], labels: Sequence[str] | None) -> ClassMatching:
    labels = tuple(labels or class_names)
    return ClassMatching(
        tuple(
            Match(name, i, label, "position")
            for i, (name, label) in enumerate(zip(class_names, labels, strict=True))
        ),
        labels,
        "the data set or the checkpoint has no class names: classes are matched by their position",
    )


def _matches(
    class_names: Sequence[str], labels: Sequence[str], ids: Sequence[str | None] | None
) -> Iterable[Match]:
    """Yields the match of each class of the data set."""
    names_of_ids = dict(imagenet.synsets())

    def all_lemmas(output: int) -> set[str]:
        synset = ids[output] if ids else None
        return imagenet.lemmas(labels[output]) | (
            imagenet.lemmas(names_of_ids[synset]) if synset else set()
        )

    def synset_of(output: int) -> set[str]:
        synset = ids[output] if ids else None
        return {synset} if synset else _synset(labels[output])

    ways: dict[str, tuple[Mapping[str, set[int]], Callable[[str], set[str]]]] = {
        "name": (_index(labels, lambda output: {labels[output]}), lambda name: {name}),
        "synset": (_index(labels, synset_of), _synset),
        "lemma": (
            _index(labels, all_lemmas),
            lambda name: imagenet.lemmas(names_of_ids.get(min(_synset(name), default=""), name)),
        ),
    }
    taken: dict[int, str] = {}
    for name in class_names:
        match = _best(name, labels, ways)
        if match.output in taken:
            other = taken[match.output]
            match = Match(name, None, "", f'"{match.label}" is matched with {other} already')
        elif match.output is not None:
            taken[match.output] = name
        yield match


def _best(name: str, labels: Sequence[str], ways: Mapping[str, Any]) -> Match:
    """Returns the match by the first way that finds exactly one output."""
    reason = "no such output"
    for how, (index, keys_of) in ways.items():
        outputs: set[int] = set().union(*(index.get(key, set()) for key in keys_of(name)))
        if len(outputs) == 1:
            (output,) = outputs
            return Match(name, output, labels[output], how)
        if outputs:
            numbers = ", ".join(str(output) for output in sorted(outputs)[:_SHOWN])
            reason = f"fits several outputs, {numbers}: name it by its synset"
    return Match(name, None, "", reason)


def _index(labels: Sequence[str], keys_of: Callable[[int], set[str]]) -> dict[str, set[int]]:
    index = collections.defaultdict(set)
    for output in range(len(labels)):
        for key in keys_of(output):
            index[key].add(output)
    return index


def _synset(name: str) -> set[str]:
    match = _SYNSET.match(name)
    return {match[0]} if match else set()


def _shown(names: Sequence[str]) -> str:
    separator = "; " if any("," in name for name in names[:_SHOWN]) else ", "
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return separator.join(names[:_SHOWN]) + more


class Matched(Source):
    """The examples of the matched classes, labelled with the outputs of a model.

    Examples of other classes are left out; with several labels, those without any matched one.
    """

    def __init__(self, source: Source, matching: ClassMatching):
        """Reads the labels, unless every class of a source with single labels is matched."""
        self._source = source
        self._outputs = [match.output for match in matching.matches]
        self.name, self.split, self.channels = source.name, source.split, source.channels
        self.class_names, self.multi_label = matching.labels, source.multi_label
        ids = range(len(source))
        if source.multi_label or matching.unmatched:
            ids = [i for i in ids if self._is_matched(source.label(i))]
        self._ids = np.asarray(ids, np.int64)
        if not len(self._ids):
            raise DataError(
                f"{source.name}, {source.split}, has no example of the {len(matching.outputs):,} "
                "matched classes."
            )

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Example:
        example = self._source[int(self._ids[index])]
        return {**example, "label": self._relabelled(example["label"])}

    def label(self, index: int) -> Any:
        return self._relabelled(self._source.label(int(self._ids[index])))

    def describe(self, index: int) -> str:
        return self._source.describe(int(self._ids[index]))

    @property
    def fingerprint(self) -> str:
        return digest(self._source.fingerprint, str(self._outputs))

    def _is_matched(self, label: Any) -> bool:
        if not self.multi_label:
            return self._output(label) is not None
        return any(hot and self._outputs[i] is not None for i, hot in enumerate(label))

    def _output(self, label: int) -> int | None:
        if not 0 <= label < len(self._outputs):
            raise DataError(
                f"{self.name}, {self.split}, has the label {label}, but labels go from 0 to "
                f"{len(self._outputs) - 1}: is this a split without labels?"
            )
        return self._outputs[label]

    def _relabelled(self, label: Any) -> Any:
        if not self.multi_label:
            return self._output(label)
        multi_hot = np.zeros(self.num_classes, np.float32)
        for i, hot in enumerate(label):
            if self._outputs[i] is not None:
                multi_hot[self._outputs[i]] = hot
        return multi_hot
