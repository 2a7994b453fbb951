"""What commands import when they start: large libraries only where they are used."""

import subprocess
import sys

import pytest

from benchmarks.startup import VERBS, imports_of
from tests.conftest import ROOT

# Each takes from a tenth of a second to a second or more.
LARGE = (
    "grain", "matplotlib", "orbax", "pandas", "scipy.stats", "sklearn", "tensorflow",
    "tensorflow_datasets",
)  # fmt: skip
USES_ORBAX = ("train",)  # Every run has a store of checkpoints.


@pytest.mark.medium
def test_large_libraries_are_imported_where_they_are_used():
    # One process imports for all commands, those that may import Orbax last.
    verbs = sorted(VERBS, key=lambda verb: verb in USES_ORBAX)
    code = "import sys\n" + "\n".join(
        f"{imports_of(verb)}\nprint('{verb}', *(name for name in {LARGE} if name in sys.modules))"
        for verb in verbs
    )
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    imported = {verb: names for verb, *names in map(str.split, output.splitlines())}
    assert imported == {verb: ["orbax"] * (verb in USES_ORBAX) for verb in verbs}
