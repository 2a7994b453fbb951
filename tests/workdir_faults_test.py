"""Work directories whose disk is full, or whose files were deleted or replaced during a run."""

import shutil

import pytest

from tests.small_run import run, small_config, train_on_one
from tests.train_run_test import arrays, assert_same_bits
from vit_jax.checkpoints.load import locate
from vit_jax.data import pipeline
from vit_jax.errors import DataError
from vit_jax.rundir import workdir as workdirs
from vit_jax.telemetry import MetricWriter, read_jsonl
from vit_jax.telemetry.growing import open_growing

# Orbax leaves tasks of a failed save to a closed event loop.
pytestmark = [
    pytest.mark.medium,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("leaves_nothing"),
]


def at_draw(monkeypatch, draw, act):
    """Calls `act` after `draw` batches; 4 are drawn before the save of step 4."""
    original = pipeline.Batches.__next__
    drawn = []

    def act_and_draw(self):
        drawn.append(None)
        if len(drawn) == draw:
            act()
        return original(self)

    monkeypatch.setattr(pipeline.Batches, "__next__", act_and_draw)


# ------------------------------------------------------------- deleted and replaced files of a run


def delete(path):
    path.unlink()


def replace(path):
    path.rename(path.with_suffix(".old"))
    path.write_bytes(path.with_suffix(".old").read_bytes())


@pytest.mark.parametrize(
    ("name", "damage", "verb"),
    [("metrics.jsonl", replace, "replaced"), ("timing.jsonl", delete, "deleted")],
)
def test_a_run_ends_when_a_file_of_lines_was_deleted(tmp_path, monkeypatch, name, damage, verb):
    with monkeypatch.context() as patch:
        at_draw(patch, 7, lambda: damage(tmp_path / name))
        with pytest.raises(DataError, match=rf"{name} was {verb}.*restore the file"):
            train_on_one(small_config(), tmp_path)
    assert locate(tmp_path).step == 4  # No checkpoint is ahead of the metrics.


@pytest.mark.slow
def test_a_resumed_run_reports_lost_lines(run_copy, caplog, plain_run):
    shutil.rmtree(run_copy / "checkpoints" / "12")
    delete(run_copy / "metrics.jsonl")
    run(run_copy)
    assert "ends at step None, but it had step 8" in caplog.text
    assert [line["step"] for line in read_jsonl(run_copy / "metrics.jsonl")] == [10, 12]
    assert_same_bits(arrays(run_copy, 12), arrays(plain_run, 12))


def test_a_line_is_not_written_through_a_link_to_elsewhere(tmp_path):
    elsewhere = tmp_path / "precious"
    elsewhere.write_text("mine")
    (tmp_path / "run").mkdir()
    for name in ("metrics.jsonl", "config.json"):
        (tmp_path / "run" / name).symlink_to(elsewhere)
    with pytest.raises(DataError, match=r"metrics.jsonl"):
        open_growing(tmp_path / "run" / "metrics.jsonl")
    workdirs.write_json(tmp_path / "run" / "config.json", {"replaced": "not followed"})
    assert elsewhere.read_text() == "mine"


# -------------------------------------------------------------------------------------- full disks


def test_a_full_disk_is_named():
    file = open_growing("/dev/full")
    with pytest.raises(DataError, match=r"/dev/full cannot be written: No space left on device"):
        file.append(b"line\n")


def test_the_first_error_is_the_one_raised(tmp_path, caplog):
    with (
        pytest.raises(KeyError, match="first"),
        MetricWriter(tmp_path, resume_step=None, tensorboard=True, wandb_project="", config={}),
    ):
        (tmp_path / "metrics.jsonl").unlink()
        raise KeyError("first")
    assert "metrics.jsonl was deleted" in caplog.text


# ------------------------------------------------------------------------------- what is evaluated
