"""A run that is moved between one, two and four processes, with and without loader processes."""

import pytest

from tests.conftest import campaign, slow
from tests.exactness import PROCESS_STEPS, PROCESSES, TOLERANCE, moved_between_processes
from vit_jax.data import order
from vit_jax.rundir import workdir as workdirs
from vit_jax.telemetry.jsonlines import read_jsonl


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("stages", "steps"), [slow(((2, 1), (1, 0)), 12), campaign(PROCESSES, PROCESS_STEPS)]
)
def test_a_run_that_moves_between_processes_equals_one_that_does_not(tmp_path, stages, steps):
    stayed = moved_between_processes(tmp_path / "stayed", ((1, 0),), steps=steps)
    run = moved_between_processes(tmp_path / "moved", stages, steps=steps)
    differences = run.compared(stayed)
    assert len(run.losses) == steps
    assert differences["loss"] < TOLERANCE, differences
    assert differences["same accuracies"] and differences["evaluation"] < TOLERANCE, differences
    # What is measured inside the model, and its similarity with the final state, likewise.
    assert len(run.inside) == steps // 2
    similarities = [
        read_jsonl(workdirs.similarity_file(tmp_path / name / "run", "inside"))
        for name in ("moved", "stayed")
    ]
    assert [line["step"] for line in similarities[0]] == list(range(2, steps + 1, 2))
    for ours, theirs in zip(
        run.inside + similarities[0], stayed.inside + similarities[1], strict=True
    ):
        assert ours == pytest.approx(theirs, rel=1e-4)
    # Together the processes loaded every row once, equal to that of the unmoved run.
    assert len(run.rows) == steps * 64 and run.rows == stayed.rows
    # They follow the order: within an epoch, different examples are different images.
    ids = [
        i
        for step in range(steps)
        for i in order.example_ids(step, batch_size=64, num_examples=1442, seed=0).tolist()
    ]
    epochs = [e for e in range(2) for _ in range(1442)]
    seen = [run.rows[position] for position in sorted(run.rows)]
    assert len(set(zip(ids, epochs, strict=False))) == len(seen) >= len(set(seen))
    assert len(set(seen)) > 0.97 * min(1442, len(seen))  # Few digits are equal, pixel by pixel.
