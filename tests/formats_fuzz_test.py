"""Random legal models of timm and transformers are loaded equal, or refused; see foreign_models.

Counts of many models, and what differs:

    python -m tests.formats_fuzz_test --first=0 --models=300
"""

import argparse
import collections
import pathlib
import re
import tempfile
import traceback

import jax
import numpy as np
import pytest

from tests.foreign_models import Made, make
from vit_jax.errors import VitJaxError
from vit_jax.pretrained.load import load_pretrained

pytestmark = pytest.mark.medium

LIBRARIES = ("timm_bare", "timm_unhinted", "timm_folder", "timm_entry_point", "transformers")
ASSUMED = "assumed, as the file does not tell"


def outcome(made: Made) -> str:
    """equal, assumed (another model, but the notes say what was assumed), different or refused."""
    try:
        pretrained = load_pretrained(made.path, hints=made.hints)
    except VitJaxError as error:
        return f"refused: {error}"
    with jax.default_matmul_precision("highest"), jax.disable_jit(False):
        logits, intermediates = pretrained.model.apply({"params": pretrained.params}, made.images)
    ours = {"logits": logits, **intermediates}
    for name, wanted in made.wanted.items():
        array = np.asarray(ours[name])
        if array.shape != wanted.shape or not np.abs(array - wanted).max() <= made.allowed[name]:
            noted = any(note.startswith(ASSUMED) for note in pretrained.notes)
            far = np.abs(array - wanted).max() if array.shape == wanted.shape else array.shape
            kind = "assumed" if noted and not made.is_described else "different"
            return f"{kind}: {name} by {far}; {pretrained.notes}"
    return "equal"


def check(library: str, seed: int, folder: pathlib.Path) -> str:
    made = make(library, seed, folder)
    found = outcome(made)
    assert not found.startswith("different"), f"{library} {seed}: {found}\n{made.what} {made.hints}"
    return found


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("seed", range(2))
def test_a_random_model_is_equal_or_refused(library, seed, tmp_path):
    check(library, seed, tmp_path)


@pytest.mark.campaign
@pytest.mark.timeout(0)
@pytest.mark.parametrize("library", LIBRARIES)
def test_hundreds_of_random_models_are_equal_or_refused(library, tmp_path):
    found = collections.Counter()
    for seed in range(100, 500):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            found[check(library, seed, pathlib.Path(folder)).partition(":")[0]] += 1
    assert found["equal"] >= 100, found


def main() -> None:
    """Prints what became of many models, by reason."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--libraries", default=",".join(LIBRARIES))
    arguments = parser.parse_args()
    for library in arguments.libraries.split(","):
        counts, reasons = collections.Counter(), collections.Counter()
        for seed in range(arguments.first, arguments.first + arguments.models):
            with tempfile.TemporaryDirectory() as folder:
                made = make(library, seed, pathlib.Path(folder))
                try:
                    found = outcome(made)
                except Exception:
                    found = f"error: {traceback.format_exc()}"
                kind, _, why = found.partition(": ")
                counts[kind] += 1
                if kind in ("different", "error"):
                    print(f"{library} {seed}: {found}\n  {made.what}\n  {made.hints}", flush=True)
                reasons[kind, re.sub(rf"{re.escape(folder)}\S*|\d+", "", why)[:110]] += 1
        print(library, dict(counts), flush=True)
        for (kind, why), n in reasons.most_common():
            if kind in ("refused", "assumed"):
                print(f"  {n:4} {kind}: {why!r}")


if __name__ == "__main__":
    main()
