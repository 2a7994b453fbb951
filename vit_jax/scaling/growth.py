"""Finds out whether y grows with scale, as accuracies do: a law of errors says nothing about it."""

import dataclasses
import re
import shlex
from collections.abc import Sequence

from vit_jax.scaling import laws
from vit_jax.scaling.answer import Answer
from vit_jax.scaling.intervals import parameter_intervals
from vit_jax.scaling.question import Question
from vit_jax.scaling.selection import grows, scale_of

_LEVEL = 0.99  # Of the exponent's interval: one flat y in 200 seems to grow.
# "top1", "test/top5", "val_accuracy", "Top-1 accuracy (%)", but not "error_top1".
_ACCURACY = re.compile(
    r"(?!.*(?:err|loss))(?:.*[/_. -])?(?:top[-_ ]?[15]|acc|accuracy)[\s(\[%)\]]*", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Growth:
    """Which groups' laws are most likely of an accuracy, and what to do.

    Attributes:
      reason: a clause.
      advice: a sentence.
      groups: for each group, whether its law must not be used.
    """

    reason: str
    advice: str
    groups: tuple[bool, ...]

    @property
    def warning(self) -> str:
        """Returns the warning at the top of the report."""
        return f"Warning: {self.reason}, and a law of errors says nothing about it. {self.advice}"

    def doubt(self, index: int) -> str:
        """Returns why the law of a group must not be used, "" if it may be."""
        return f"{self.reason}. {self.advice}" if self.groups[index] else ""


def growth(
    answers: Sequence[Answer],
    question: Question,
    *,
    is_computed: bool,
) -> Growth | None:
    """Returns what to say if y is most likely an accuracy; None if it is not.

    It is if y grows with scale in a group, or if it is a column that is named like an accuracy. If
    it grows in most groups it is doubted in all, since the groups share the column.

    Args:
      answers: the groups' rows and laws.
      question: the question.
      is_computed: whether y is an expression of columns: then its name says nothing, and no
        expression for the error is proposed.
    """
    growing = [_grows(answer) for answer in answers]
    count = sum(growing)
    is_named = not is_computed and _ACCURACY.fullmatch(question.y.strip()) is not None
    if not count and not is_named:
        return None
    where = f" in {count} of {len(answers)} groups" if len(answers) > 1 else ""
    reason = f"{question.y} is named like an accuracy"
    if count:
        reason = f"{question.y} grows with {question.scale}{where}: it is most likely an accuracy"
    advice = _advice(answers, question, is_computed=is_computed)
    if not count:
        advice += " If it is an error, rename the column."
    in_all = is_named or count > len(answers) / 2
    return Growth(reason, advice, tuple(in_all or grown for grown in growing))


def _grows(answer: Answer) -> bool:
    """Tests the ranks of the rows that are not held back, and the exponent of a power law.

    Of the laws only power can grow. The law of IsoFLOP minima is of the best x, not of y. The
    interval of the exponent has its own level: at the 90% of a report, one in twenty flat y would
    seem to grow.
    """
    inputs, y = answer.data.select(~answer.data.held_back)
    if grows(scale_of(inputs), y):
        return True
    law = answer.law
    if law is None or law.law is not laws.POWER or answer.valleys is not None:
        return False
    if law.params["c"] <= 0:  # So is the lower end.
        return False
    found = parameter_intervals(law, level=_LEVEL, clusters=answer.data.clusters)
    return found["c"].low > 0


def _advice(answers: Sequence[Answer], question: Question, *, is_computed: bool) -> str:
    """Proposes an expression for the error, unless y is computed already or is no share."""
    highest = max(float(answer.data.y.max()) for answer in answers)
    if is_computed or highest > 100:
        return "Choose a column of errors or losses."
    maximum = 1 if highest <= 1 else 100
    return f"For the error, use {shlex.quote(f'--y={maximum}-{question.y}')}."
