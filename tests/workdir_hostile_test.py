"""Forged work directories: only VitJaxErrors are raised, and no name leads out of the folder."""

import json
import re

import pytest

from tests.small_run import run, small_config, train_on_one
from vit_jax.data import evaluated
from vit_jax.errors import CheckpointError, DataError, VitJaxError
from vit_jax.inference.evaluate import evaluate
from vit_jax.inference.results import write
from vit_jax.rundir.workdir import read_config

pytestmark = pytest.mark.medium


PLAIN = {"name": "x", "split": "train", "num_examples": 3, "num_classes": 2, "channels": 1}
HOSTILE = {
    "truncated": b'{"seed": 0, "batch_',
    "not UTF-8": b"\xff\xfe{}",
    "a list": b"[]",
    "huge": b'{"seed": "' + b"x" * 2**27 + b'"}',
    "text for a number": b'{"batch_size": "16"}',
    "a number for a section": b'{"model": 3}',
    "an eval of nothing": b'{"evals": {"x": null}}',
    "a giant": b'{"model": {"variant": "g/14", "width": 1000000000000}}',
    "transforms": b'{"data": {"eval_transforms": [1, {"op": ["x"]}, {"op": "__class__"}]}}',
}


def assert_only_our_errors(workdir, name):
    """Checks that evaluating and resuming raise VitJaxErrors and change nothing."""
    before = state_of(workdir)
    with pytest.raises(VitJaxError) as error:
        evaluate(workdir)
    assert name in str(error.value) or str(workdir) in str(error.value), error.value
    assert len(str(error.value)) < 4000
    assert "\n  File" not in str(error.value)
    with pytest.raises(VitJaxError):
        train_on_one(small_config(), workdir)
    assert state_of(workdir) == before


def state_of(workdir):
    """Returns the modification time of each file but the lock, which every run writes."""
    paths = (path for path in workdir.parent.rglob("*") if path.name != "lock")
    return {path: path.lstat().st_mtime_ns for path in paths if path.is_symlink() or path.is_file()}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_forged_config_is_refused(run_copy, content):
    (run_copy / "config.json").write_bytes(content)
    assert_only_our_errors(run_copy, "config.json")


@pytest.mark.parametrize(
    "content",
    [
        HOSTILE["truncated"],
        json.dumps(PLAIN).encode(),
        json.dumps({**PLAIN, "class_names": ["a", 2]}).encode(),
        json.dumps({**PLAIN, "class_names": ["a", "b"]}).encode(),  # Valid, but for another model.
    ],
    ids=range(4),
)
def test_a_forged_dataset_is_refused(run_copy, content):
    (run_copy / "dataset.json").write_bytes(content)
    assert_only_our_errors(run_copy, "dataset.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" " * 2**20 + b"{}", "larger than 1,048,576 bytes"),
        (b'{"optim": {"eps": NaN}}', "NaN is not a number of JSON"),
        (b'{"optim": {"eps": 1e400}}', "1e400 is not a number of JSON"),
        (b"[" * 500_000 + b"]" * 500_000, "nested too deeply"),
        (b'{"optim": {"epss": 1}}', "no key 'epss'. Did you mean \"eps\"?"),
    ],
)
def test_the_message_names_the_fault_of_a_config(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"clock": {"seconds": {"step": 1}, "device_seconds": 1e999, "examples": 10**400}},
        {"last_line": "12"},
        {"step": "12"},
    ],
)
def test_a_forged_loop_state_is_refused(run_copy, change):
    for step in (4, 8, 12):
        path = run_copy / "checkpoints" / str(step) / "chrono" / "metadata"
        if path.exists():
            loop_state = {**json.loads(path.read_text()), **change}
            del loop_state["digests"]  # As in release 0.1.0: no checksum, either.
            path.write_text(json.dumps(loop_state))
    with pytest.raises(CheckpointError):
        train_on_one(small_config(), run_copy)


def test_an_unknown_span_of_the_clock_counts_as_other_time(run_copy):
    path = run_copy / "checkpoints" / "12" / "chrono" / "metadata"
    loop_state = json.loads(path.read_text())
    loop_state["clock"]["seconds"]["naps"] = 1000.0
    del loop_state["digests"]
    path.write_text(json.dumps(loop_state))
    assert train_on_one(small_config(), run_copy) == 0


@pytest.mark.parametrize("name", ["checkpoints", "tb"])
def test_a_folder_that_is_a_link_is_not_written_to(tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VitJaxError, match=rf"{name} cannot be .*lead out of the work directory"):
        train_on_one(small_config(log__tensorboard=True), tmp_path / "run")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.slow
def test_no_name_in_a_work_directory_leads_out_of_it(run_copy, plain_run):
    names = ["../../../evil", "/etc/evil", "..", ".", "", "a/b", "nul\0", "a\nb", "x" * 999, "é"]
    dataset = json.loads((run_copy / "dataset.json").read_text())
    (run_copy / "dataset.json").write_text(json.dumps({**dataset, "class_names": names}))
    with pytest.MonkeyPatch.context() as patch:
        # The data set agrees with the names.
        opened = evaluated.open_source

        def open_source(*args, **kwargs):
            source = opened(*args, **kwargs)
            source.class_names = tuple(names)
            return source

        patch.setattr(evaluated, "open_source", open_source)
        write(evaluate(run_copy))
        write(evaluate(run_copy, split="test[:20]"))
        write(evaluate(run_copy / "checkpoints" / "8", split="test[20:]"))
    assert {path.name for path in run_copy.parent.iterdir()} == {"run"}
    added = {path.name for path in run_copy.iterdir()} - {path.name for path in plain_run.iterdir()}
    assert added == {
        "evaluation.json", "throughput.json", "confusion.png", "classes.png",
        "predictions.png", "samples",
        "evaluation-test_20", "evaluation-test_20_end-step-8",
    }  # fmt: skip
    samples = list((run_copy / "samples").iterdir())
    assert len(samples) == 10 and all(re.fullmatch(r"\d-[\w.-]*\.png", s.name) for s in samples)


def test_a_damaged_line_in_the_middle_is_named_and_nothing_is_lost(run_copy):
    path = run_copy / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\0\0\0\n", *lines[3:]]))
    before = {p: p.read_bytes() for p in run_copy.rglob("*") if p.is_file()}
    with pytest.raises(DataError, match=r"metrics.jsonl, line 3 is not a JSON object"):
        train_on_one(small_config(), run_copy)
    after = {p: p.read_bytes() for p in run_copy.rglob("*") if p.is_file() and p.name != "lock"}
    assert after == {p: content for p, content in before.items() if p.name != "lock"}
    path.write_bytes(b"".join(lines))
    run(run_copy)


def test_a_checkpoint_of_another_model_than_the_config_says(run_copy):
    config = json.loads((run_copy / "config.json").read_text())
    config["model"]["depth"] = 3
    (run_copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"step 12 does not fit the model of .*config.json"):
        evaluate(run_copy)


@pytest.mark.parametrize("name", ["config.json", "dataset.json"])
def test_a_lost_file_is_written_again_on_request(run_copy, name):
    before = (run_copy / name).read_bytes()
    (run_copy / name).unlink()
    with pytest.raises(CheckpointError, match=f"holds no {name}.*\n.*--allow_config_change"):
        train_on_one(small_config(), run_copy)
    assert train_on_one(small_config(), run_copy, allow_config_change=True) == 0
    assert (run_copy / name).read_bytes() == before
