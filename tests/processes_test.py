"""One run on one, two and four real processes in turn, with and without loader processes."""

import pytest

from tests.exactness import PROCESS_STEPS, PROCESSES, TOLERANCE, moved_between_processes
from vit_jax.data import order

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_run_that_moves_between_processes_is_the_one_that_stays(tmp_path):
    stayed = moved_between_processes(tmp_path / "stayed", ((1, 0),))
    run = moved_between_processes(tmp_path / "moved", PROCESSES)
    found = run.compared(stayed)
    assert len(run.losses) == PROCESS_STEPS
    assert found["loss"] < TOLERANCE, found
    assert found["same accuracies"] and found["evaluation"] < TOLERANCE, found
    # The processes were given all rows between them, no two a different one, none of them twice.
    assert len(run.rows) == PROCESS_STEPS * 64 and run.rows == stayed.rows
    # And these are what the order says: equal examples of an epoch and others differ.
    ids = [
        i
        for step in range(PROCESS_STEPS)
        for i in order.example_ids(step, batch_size=64, num_examples=1442, seed=0).tolist()
    ]
    epochs = [e for e in range(2) for _ in range(1442)]
    seen = [run.rows[place] for place in sorted(run.rows)]
    assert len(set(zip(ids, epochs, strict=False))) == len(seen) >= len(set(seen)) > 1400
