"""Every measure against its slow formula in float64, over all reference checkpoints, as a table.

    python -m tests.measures_table FOLDER [CHECKPOINT ...]

writes FOLDER/table.md, which docs/analysis.md contains, and FOLDER/differences.csv. A difference is
the largest absolute one of an array, relative to the largest value of the array.
"""

import csv
import dataclasses
import pathlib
import sys
from collections.abc import Iterator

import jax
import numpy as np

from tests.measured_models import checkpoints, fixture
from tests.measures_compared import OURS, ROWS, THEIRS, Case

# Rows without a slow formula -> the arrays whose noise stands in its place.
NOISE = {
    "forward pass: attention": ("attn",),
    "forward pass: blocks, features": ("block", "tokens", "feature_map"),
}


def difference(ours: np.ndarray, want: np.ndarray) -> float:
    """Returns the largest difference, relative to the largest value."""
    ours, want = np.asarray(ours, np.float64), np.asarray(want, np.float64)
    assert ours.shape == want.shape
    return float(np.abs(ours - want).max() / max(np.abs(want).max(), 1e-300))


def noise_floor(name: str, kinds: tuple[str, ...]) -> float:
    """Returns the largest noise of the reference's arrays, relative to their largest value.

    The manifest has it: the reference implementation in float32, against the same in float64.
    """
    arrays = fixture(name)["expected_arrays"]
    values = [
        entry["noise_floor"] / entry["absmax"]
        for key, entry in arrays.items()
        if key.rstrip("0123456789") in kinds and entry["absmax"]
    ]
    return max(values, default=0.0)


@dataclasses.dataclass(frozen=True)
class Difference:
    """One quantity of one measure on one checkpoint."""

    measure: str
    checkpoint: str
    source: str
    quantity: str
    value: float


def differences(name: str) -> Iterator[Difference]:
    """Yields the differences of all measures on a checkpoint."""
    case = Case(name)
    with jax.default_matmul_precision("highest"):
        for measure, (_, compare) in ROWS.items():
            for source, quantity, ours, want in compare(case):
                yield Difference(measure, name, source, quantity, difference(ours, want))


def table(found: list[Difference]) -> str:
    """Returns the table in Markdown."""
    lines = [
        "| measure | slow formula | of our arrays | of the reference's arrays |",
        "|---|---|---|---|",
    ]
    for measure, (formula, _) in ROWS.items():
        cells = []
        for source in (OURS, THEIRS):
            of_source = [d for d in found if d.measure == measure and d.source == source]
            count = len({d.checkpoint for d in of_source})
            largest = max((d.value for d in of_source), default=0.0)
            cells.append(f"{largest:.0e} ({count})" if of_source else "-")
        if kinds := NOISE.get(measure):
            noise = max(noise_floor(name, kinds) for name in {d.checkpoint for d in found})
            formula = formula.format(noise=noise)
        lines.append(f"| `{measure}` | {formula} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(folder: pathlib.Path, names: list[str]) -> None:
    """Writes the table."""
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Difference] = []
    for name in names or checkpoints():
        found += differences(name)
        jax.clear_caches()  # The programs of 40 models need gigabytes.
        worst = max((d for d in found if d.checkpoint == name), key=lambda d: d.value)
        print(f"{name}: {worst.measure}, {worst.quantity}, {worst.value:.1e}", flush=True)
        with (folder / "differences.csv").open("w") as file:
            writer = csv.writer(file)
            writer.writerow([field.name for field in dataclasses.fields(Difference)])
            writer.writerows(map(dataclasses.astuple, found))
        (folder / "table.md").write_text(table(found))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])
