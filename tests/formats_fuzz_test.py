"""Random models of timm and transformers give equal outputs or are refused; see foreign_models.

python -m tests.formats_fuzz_test [SEEDS]      the outcomes of 300 or SEEDS models, counted
"""

import collections
import pathlib
import sys
import tempfile

import jax
import numpy as np
import pytest

from tests.foreign_models import Made, make
from vit_jax.errors import VitJaxError
from vit_jax.pretrained.load import load_pretrained

pytestmark = pytest.mark.medium

LIBRARIES = ("timm_bare", "timm_folder", "transformers")


def outcome(made: Made) -> str:
    """Returns "equal", "different" or "refused", and the reason."""
    try:
        pretrained = load_pretrained(made.path, hints=made.hints)
    except VitJaxError as error:
        return f"refused: {error}"
    with jax.default_matmul_precision("highest"), jax.disable_jit(False):
        logits, intermediates = pretrained.model.apply({"params": pretrained.params}, made.images)
    ours = {"logits": logits, **intermediates}
    for name, expected in made.expected.items():
        array = np.asarray(ours[name])
        if (
            array.shape != expected.shape
            or not np.abs(array - expected).max() <= made.allowed[name]
        ):
            far = np.abs(array - expected).max() if array.shape == expected.shape else array.shape
            return f"different: {name} by {far}; {pretrained.notes}"
    return "equal"


def check(library: str, seed: int, folder: pathlib.Path) -> str:
    made = make(library, seed, folder)
    result = outcome(made)
    assert not result.startswith("different"), (
        f"{library} {seed}: {result}\n{made.description} {made.hints}"
    )
    return result


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("seed", range(2))
def test_a_random_model_is_equal_or_refused(library, seed, tmp_path):
    check(library, seed, tmp_path)


@pytest.mark.campaign
@pytest.mark.timeout(0)
@pytest.mark.parametrize("library", LIBRARIES)
def test_hundreds_of_random_models_are_equal_or_refused(library, tmp_path):
    counts = collections.Counter()
    for seed in range(100, 500):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            counts[check(library, seed, pathlib.Path(folder)).partition(":")[0]] += 1
    assert counts["equal"] >= 100, counts


def main() -> None:
    """Prints the outcomes of many models, and those that differ."""
    for library in LIBRARIES:
        counts = collections.Counter()
        for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 300):
            with tempfile.TemporaryDirectory() as folder:
                made = make(library, seed, pathlib.Path(folder))
                result = outcome(made)
            counts[result.partition(":")[0]] += 1
            if result.startswith("different"):
                print(
                    f"{library} {seed}: {result}\n  {made.description}\n  {made.hints}", flush=True
                )
        print(library, dict(counts), flush=True)


if __name__ == "__main__":
    main()
