"""One run that is told to stop and goes on elsewhere, four times, is the run that stayed."""

import pytest

from tests.exactness import MOVES, STEPS, TOLERANCE, moved, whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_run_that_moves_is_the_one_that_stays(tmp_path):
    stayed = whole(tmp_path / "stayed", (1, 1, 1))
    run = moved(tmp_path / "moved", MOVES)
    found = run.compared(stayed)
    assert len(run.losses) == STEPS
    assert found["loss"] < TOLERANCE, found
    assert found["same accuracies"] and found["evaluation"] < TOLERANCE, found
    # Every row of every batch was drawn once, wherever that was: the same pixels and labels.
    assert len(run.rows) == STEPS * 64 and run.rows == stayed.rows
