"""Every golden checkpoint reproduces its reference implementation, at every resolution."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.conftest import ROOT, SHARED, campaign, slow
from vit_jax.pretrained.verification import fixtures, verify

pytestmark = pytest.mark.medium

GOLDENS = [SHARED / "goldens", SHARED / "cases/goldens"]
FIXTURES = [fixture for folder in GOLDENS if folder.is_dir() for fixture in fixtures(folder)]


HERE = pytest.mark.skipif(
    not FIXTURES, reason=f"{pathlib.Path(*GOLDENS[0].parts[-2:])} is not there"
)


@HERE
@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture["id"])
def test_outputs_are_within_ten_times_the_noise_of_float32(fixture):
    wrong = [difference for difference in verify(fixture) if not difference.is_close]
    assert not wrong, wrong


@HERE
@pytest.mark.parametrize("folder", [campaign(GOLDENS[0]), slow(GOLDENS[1])])
def test_outputs_with_the_default_optimisations(folder):
    """XLA's optimisations are on, which the other tests turn off, and there is one device."""
    command = [sys.executable, "-m", "vit_jax.convert", f"--verify={folder}"]
    env = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
