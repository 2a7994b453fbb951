"""A run that is stopped and resumed on other meshes equals the run that stayed on one."""

import pytest

from tests.conftest import campaign, slow
from tests.exactness import MOVES, STEPS, TOLERANCE, moved, whole


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("meshes", "steps"), [slow(((2, 1, 2), (1, 4, 1)), 8), campaign(MOVES, STEPS)]
)
def test_a_run_that_moves_is_the_one_that_stays(tmp_path, meshes, steps):
    stayed = whole(tmp_path / "stayed", (1, 1, 1), steps=steps)
    run = moved(tmp_path / "moved", meshes, steps=steps)
    difference = run.compared(stayed)
    assert len(run.losses) == steps
    assert difference["loss"] < TOLERANCE, difference
    assert difference["same accuracies"] and difference["evaluation"] < TOLERANCE, difference
    # Every row of every batch was drawn once, wherever that was: the same pixels and labels.
    assert len(run.rows) == steps * 64 and run.rows == stayed.rows
