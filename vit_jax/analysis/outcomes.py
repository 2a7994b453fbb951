"""The results of all measures of one or several checkpoints."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from vit_jax.telemetry.progress import format_count

_COLUMN = 28  # Characters of a checkpoint's name at the head of a column.


@dataclasses.dataclass(frozen=True)
class Subject:
    """What was measured.

    Attributes:
      name: where the checkpoint was loaded from, or what it is.
      description: a few lines: size, classes, format, notes.
      folder: of its files; None: nothing was written.
      sizes: {"image size", "patch size" or "number of tokens": text}, those that the model has.
    """

    name: str
    description: str
    folder: epath.Path | None
    sizes: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a measure.

    Attributes:
      measure: its name.
      subjects: index of the checkpoint, or of the two that it compares.
      result: what the measure returned; None: it does not apply, or failed.
      reason: why there is no result.
      failed: whether that was an error, and not that the measure does not apply.
      left_out: whether it was not tried, for want of images.
      seconds: how long it took, with compilation.
      files: that were written.
    """

    measure: str
    subjects: tuple[int, ...]
    result: Any
    reason: str
    seconds: float
    failed: bool = False
    left_out: bool = False
    files: tuple[epath.Path, ...] = ()

    @property
    def state(self) -> str:
        """Returns why there is no result, in a word or two that the reason follows."""
        return "failed" if self.failed else "left out" if self.left_out else "does not apply"

    def line(self) -> str:
        """Returns a line for the terminal."""
        name = f"  {self.measure:22}"
        if self.result is not None:
            return f"{name} {self.seconds:6.1f} s"
        return f"{name} {self.state}: {self.reason}"

    def summary(self) -> dict[str, float]:
        """Returns the numbers of the overview; {} of a result that has none."""
        summary = getattr(self.result, "summary", None)
        return summary() if summary is not None else {}


class Number(NamedTuple):
    """A number of a summary.

    Attributes:
      name: of the metric.
      unit: such as "pixels"; "": none.
      values: of each checkpoint; None where it has none.
    """

    name: str
    unit: str
    values: list[float | None]


def path_parts(name: str) -> list[str]:
    """Returns the parts of a path; RUN/checkpoints/8 is one part, "RUN at step 8"."""
    *before, end = name.rstrip("/").split("/")
    step = end.partition(" ")[0]
    if before[1:] and before[-1] == "checkpoints" and step.isdigit():
        return [*before[:-2], f"{before[-2]} at step {step}"]
    return [*before, end]


def last_part(name: str) -> str:
    """Returns the last part of a path, or its end, as much as a column has room for."""
    *before, end = path_parts(name)
    if end.isdigit():  # The patch size in a model's name.
        end = "/".join([*before[-1:], end])
    return end if len(end) <= _COLUMN else f"…{end[1 - _COLUMN :]}"


def number_text(value: float | int | None) -> str:
    """Returns four significant digits; whole numbers as they are."""
    if value is None or not math.isfinite(value):
        return "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


@dataclasses.dataclass(frozen=True, repr=False)
class Analysis:
    """The result of `analyze`; `analysis["attention_distance"]` is that of the first checkpoint.

    Attributes:
      subjects: the checkpoints.
      images: how many of what.
      locations: of the images, such as paths of files; () of more than 10,000, or without images.
      bad: {location: message} of images that could not be read.
      outcomes: of each measure and checkpoint, in the order of the report.
      folder: of the files; None: nothing was written.
      version: release of vit_jax.
      missing: the measures that are not done yet: a report is also written after each one.
    """

    subjects: tuple[Subject, ...]
    images: str
    bad: Mapping[str, str]
    outcomes: tuple[Outcome, ...]
    folder: epath.Path | None
    version: str
    locations: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def __getitem__(self, measure: str) -> Any:
        """Returns the result of a measure of the first checkpoint.

        Raises:
          KeyError: there is none; the message says why.
        """
        for outcome in self.outcomes:
            if outcome.measure == measure and outcome.subjects == (0,):
                if outcome.result is None:
                    raise KeyError(f"{measure}: {outcome.reason}")
                return outcome.result
        raise KeyError(f"{measure} was not measured")

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The outcomes that are errors."""
        return tuple(outcome for outcome in self.outcomes if outcome.failed)

    def of(self, measure: str) -> list[Outcome]:
        """Returns the outcomes of a measure: of each checkpoint, then of each pair."""
        return [outcome for outcome in self.outcomes if outcome.measure == measure]

    def measures(self) -> list[str]:
        """Returns the names of the measures, in the order of the report."""
        return list(dict.fromkeys(outcome.measure for outcome in self.outcomes))

    def numbers(self) -> dict[str, list[Number]]:
        """Returns {measure: the numbers of its summary}, of measures that have one.

        The value of a pair, whose name ends in "_with_checkpoint_1", is in the column of the other.
        """
        found: dict[str, dict[str, Number]] = {}
        for outcome in self.outcomes:
            index, of_pair = outcome.subjects[-1], len(outcome.subjects) > 1
            units = getattr(outcome.result, "summary_units", {})
            for key, value in outcome.summary().items():
                name = f"{key}_with_checkpoint_1" if of_pair else key
                rows = found.setdefault(outcome.measure, {})
                empty = Number(name, units.get(key, ""), [None] * len(self.subjects))
                row = rows.setdefault(name, empty)
                row.values[index] = value if math.isfinite(value) else None
            if outcome.measure == "attention_distance" and outcome.result is not None:
                self._add_uniform(found[outcome.measure], index, outcome.result)
        return {measure: list(rows.values()) for measure, rows in found.items()}

    def _add_uniform(self, rows: dict[str, Number], index: int, result: Any) -> None:
        """Adds what equal attention on all tokens has: it depends on a model's sizes alone."""
        for name, unit, value in (
            ("distance_of_uniform_attention", "pixels", result.uniform_distance),
            ("entropy_of_uniform_attention", "nats", result.uniform_entropy),
        ):
            empty = Number(name, unit, [None] * len(self.subjects))
            rows.setdefault(name, empty).values[index] = value

    def differing_sizes(self) -> dict[str, list[str]]:
        """Returns {size: that of each checkpoint}, of the sizes in which checkpoints differ."""
        names = dict.fromkeys(name for subject in self.subjects for name in subject.sizes)
        rows = {name: [s.sizes.get(name, "none") for s in self.subjects] for name in names}
        return {name: row for name, row in rows.items() if len(set(row)) > 1}

    def overview(self) -> dict[str, list[float | None]]:
        """Returns {name of a summary: its value for each checkpoint, None where it has none}."""
        return {row.name: row.values for rows in self.numbers().values() for row in rows}

    def overview_text(self) -> str:
        """Returns the numbers for a terminal: aligned, below the names of their measures."""
        tables = self.numbers()
        if not tables:
            return ""
        rows = [row for rows in tables.values() for row in rows]
        width = max(len(row.name) for row in rows) + 4
        heads = [f"{i + 1}. {last_part(subject.name)}" for i, subject in enumerate(self.subjects)]
        if len(heads) == 1:
            lines, column = [], 12
        else:
            column = max(12, *(len(head) + 2 for head in heads))
            differing = self.differing_sizes().items()
            lines = [f"different {name}: {', '.join(row)}" for name, row in differing]
            lines.append(" " * width + "".join(head.rjust(column) for head in heads))
        for measure, numbers in tables.items():
            lines.append(measure)
            for row in numbers:
                name = f"  {row.name.replace('_', ' ')}".ljust(width)
                values = "".join(number_text(value).rjust(column) for value in row.values)
                lines.append(f"{name}{values}  {row.unit}".rstrip())
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Returns what analysis.json has; the files of the measures have their numbers."""
        return {
            "vit_jax": self.version,
            "checkpoints": [
                {"name": subject.name, "description": subject.description}
                for subject in self.subjects
            ],
            "complete": not self.missing,
            "missing": list(self.missing),
            "images": self.images,
            "locations": list(self.locations),
            "bad_images": dict(self.bad),
            "overview": self.overview(),
            "units": {row.name: row.unit for rows in self.numbers().values() for row in rows},
            "measures": [
                {
                    "measure": outcome.measure,
                    "checkpoints": list(outcome.subjects),
                    "seconds": round(outcome.seconds, 3),
                    "failed": outcome.failed,
                    "reason": outcome.reason,
                    "files": [str(self.relative(file)) for file in outcome.files],
                }
                for outcome in self.outcomes
            ],
        }

    def relative(self, file: epath.Path) -> str:
        """Returns the path of a file from the folder of the report."""
        assert self.folder is not None  # There are no files without it.
        return str(file).removeprefix(str(self.folder)).lstrip("/")

    def __repr__(self) -> str:
        """Returns a few lines: checkpoints, images, what was measured and what was not."""
        done = sum(outcome.result is not None for outcome in self.outcomes)
        lines = [subject.name for subject in self.subjects]
        lines += [self.images, format_count(done, "result")]
        lines += [outcome.line().strip() for outcome in self.outcomes if outcome.result is None]
        return "\n".join(lines + ([f"in {self.folder}"] if self.folder else []))
