"""Every golden checkpoint gives what its reference implementation gave, at every resolution."""

import pathlib

import pytest

from tests.conftest import SHARED
from vit_jax.checkpoints.verification import fixtures, verify

GOLDENS = SHARED / "goldens"
FIXTURES = fixtures(GOLDENS) if GOLDENS.is_dir() else []


@pytest.mark.skipif(not FIXTURES, reason=f"{pathlib.Path(*GOLDENS.parts[-2:])} is not there")
@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture["id"])
def test_outputs_are_within_ten_times_the_noise_of_float32(fixture):
    wrong = [difference for difference in verify(fixture) if not difference.right]
    assert not wrong, wrong
