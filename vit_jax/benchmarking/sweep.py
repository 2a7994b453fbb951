"""Combinations of settings and batch sizes: compared with one another, or swept."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from vit_jax.benchmarking.case import DTYPES, Case, choices, parse_mesh, settled_choices
from vit_jax.benchmarking.result import Result
from vit_jax.benchmarking.run import Effort, benchmark
from vit_jax.benchmarking.turns import Report
from vit_jax.errors import ConfigError, did_you_mean

_SCAN = {"true": True, "false": False}


@dataclasses.dataclass(frozen=True)
class Grid:
    """Values of a case's fields; fields without values have those of the base config."""

    variants: Sequence[str]
    image_sizes: Sequence[int]
    batch_sizes: Sequence[int]
    dtypes: Sequence[str]
    remats: Sequence[str]
    scans: Sequence[bool]
    attentions: Sequence[str]
    mesh: tuple[int, ...] = (1, 1, 1)
    optimizer: str = "sgd"

    @classmethod
    def parse(cls, texts: Mapping[str, Sequence[str]], *, mesh: str, optimizer: str) -> "Grid":
        """Returns the grid of the command's flags, by their names.

        Raises:
          ConfigError: a value is not accepted.
        """
        grid = cls(
            variants=texts["variant"],
            image_sizes=_numbers("size", texts["size"]),
            batch_sizes=_numbers("batch", texts["batch"]),
            dtypes=_words("dtype", texts["dtype"], DTYPES),
            remats=_words("remat", texts["remat"], choices("remat")),
            scans=[_SCAN[word] for word in _words("scan", texts["scan"], tuple(_SCAN))],
            attentions=_words("attention", texts["attention"], choices("attention")),
            mesh=parse_mesh(mesh),
            optimizer=optimizer,
        )
        for name in ("variant", "size", "batch", "dtype"):
            if not texts[name]:
                raise ConfigError(f"--{name} is empty: name at least one value.")
        for _, cases in grid.groups():
            for case in cases:
                case.model_config()  # Raises ConfigError before anything is measured.
        return grid

    def groups(self) -> Iterator[tuple[str, list[Case]]]:
        """Yields the cases of each model, size, batch and dtype, with what they have in common."""
        for variant, size, batch, dtype in itertools.product(
            self.variants, self.image_sizes, self.batch_sizes, self.dtypes
        ):
            case = Case(variant, size, batch, dtype, mesh=self.mesh, optimizer=self.optimizer)
            settings = itertools.product(
                self.remats or [None], self.scans or [None], self.attentions or [None]
            )
            cases = [
                dataclasses.replace(case, remat=remat, scan=scan, attention=attention)
                for remat, scan, attention in settings
            ]
            yield case.describe_workload(), cases

    def sweeps(self) -> Iterator[tuple[str, list[Case]]]:
        """Yields the cases of each model, size and dtype, for every batch size.

        Of --remat and --scan, every value but auto is tried if none is named.
        """
        wide = dataclasses.replace(
            self, remats=self.remats or settled_choices("remat"), scans=self.scans or (True, False)
        )
        for variant, size, dtype in itertools.product(wide.variants, wide.image_sizes, wide.dtypes):
            one = dataclasses.replace(wide, variants=[variant], image_sizes=[size], dtypes=[dtype])
            cases = [case for _, group in one.groups() for case in group]
            yield f"{variant}, {size} px, {dtype}, {self.optimizer}", cases


def measure_groups(
    grid: Grid, *, peers: Sequence[str], effort: Effort, report: Report
) -> Iterator[tuple[str, list[Result]]]:
    """Yields title and results of each group of a grid, whose members take turns."""
    for title, cases in grid.groups():
        yield title, benchmark(cases, peers=peers, effort=effort, report=report)


def measure_sweeps(
    grid: Grid, *, effort: Effort, report: Report
) -> Iterator[tuple[str, list[Result]]]:
    """Yields title and results of each sweep of a grid, the fastest first.

    Each case is measured by itself, since all together may not fit in memory. Those without a
    throughput, such as those that ran out of memory, are last.
    """
    for title, cases in grid.sweeps():
        results = []
        for number, case in enumerate(cases):
            report(f"case {number + 1} of {len(cases)}: {case.describe_workload()}")
            results += benchmark([case], effort=effort, report=report)
        yield title, sorted(results, key=_speed, reverse=True)


def _speed(result: Result) -> float:
    rate = result.train_rate()
    return -math.inf if rate is None else rate.median


def _numbers(flag: str, texts: Sequence[str]) -> list[int]:
    for text in texts:
        if not text.isdigit() or int(text) < 1:
            raise ConfigError(f"--{flag}={text}: write whole numbers, such as 32,64.")
    return [int(text) for text in texts]


def _words(flag: str, texts: Sequence[str], accepted: Sequence[str]) -> list[str]:
    for text in texts:
        if text not in accepted:
            raise ConfigError(f"--{flag}={text} is not known. {did_you_mean(text, accepted)}")
    return list(texts)
