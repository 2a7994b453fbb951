"""The table of docs/analysis.md: all measures are in it, and its differences are still true."""

import re

import jax
import pytest

from tests.config_cases import ROOT
from tests.measures_compared import OURS, ROWS, THEIRS
from tests.measures_table import differences
from vit_jax.analysis.measures.registry import MEASURES

pytestmark = pytest.mark.medium
TIMES = 4  # Rounding depends on the processor, and the table has one digit.


def stated():
    """The differences of docs/analysis.md by measure and kind of array."""
    text = (ROOT / "docs/analysis.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| ([^|]+) \| ([^|]+) \|$", text, re.M)
    return {
        (measure, source): float(cell.split()[0])
        for measure, *cells in rows
        for source, cell in zip((OURS, THEIRS), cells, strict=True)
        if measure in ROWS and cell != "-"
    }


def test_every_measure_is_in_the_table():
    assert {name.partition(":")[0] for name in ROWS} - {"forward pass"} == set(MEASURES)
    assert {measure for measure, _ in stated()} == set(ROWS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vt_npz/gap_norep", "vt_npz/mixer", "bv_npz/map_learn", "bv_npz/bit_v1"]
)
def test_differences_are_at_most_those_of_the_documentation(name):
    limits, count = stated(), 0
    for found in differences(name):
        assert found.value <= TIMES * limits[found.measure, found.source], found
        count += 1
    jax.clear_caches()
    assert count > 10
