"""The table of a sweep's runs, and tables of others."""

import csv
import json
import os
import socket

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from etils import epath

from tests.small_run import small_config
from vit_jax.errors import ConfigError, DataError
from vit_jax.models import VitConfig, num_params, num_params_non_embedding, train_flops_per_image
from vit_jax.rundir import workdir as workdirs
from vit_jax.rundir.lock import lock
from vit_jax.scaling.table import read_runs
from vit_jax.sweeps import record as records
from vit_jax.sweeps.listing import list_runs
from vit_jax.sweeps.table import collect, config_hash

NUMBERS = {
    "params": 5000, "params_non_embedding": 4000, "forward_flops": 10**6,
    "update_flops_per_image": 3 * 10**6,
    "examples": 100, "total_steps": 12, "batch_size": 16, "device": "cpu", "num_devices": 1,
    "code_version": "0.2.0+gabc",
}  # fmt: skip


def make_run(folder, name, *, values=None, steps=(6, 12), status="finished", **changes):
    """Writes the files of a run of 12 steps, up to the last of `steps`."""
    workdir = folder / name
    record = records.Record(name=name, values=values or {}, status=status, attempts=1)
    records.write(workdir, record)
    workdirs.claim(workdir, small_config(**changes), {}, NUMBERS)
    lines = [
        {"step": step, "train/loss": 3 / step}
        | ({"test/loss": 2 / step, "test/top1": 0.5 + step / 100} if step % 6 == 0 else {})
        for step in range(2, max(steps) + 1, 2)
    ]
    write_lines(workdir / "metrics.jsonl", lines)
    timing = [{"step": line["step"], "time/device_hours": line["step"] / 10} for line in lines]
    write_lines(workdir / "timing.jsonl", timing)
    return workdir


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def table(folder):
    return read_runs(collect(folder))


def test_a_row_for_each_run_and_evaluation(tmp_path):
    values = {":model": "vit", "optim.lr": 3e-3, "data.examples": 100}
    make_run(tmp_path, "a", values=values)
    runs = table(tmp_path)
    assert list(runs["run"]) == ["a", "a"] and list(runs["evaluation"]) == ["test", "test"]
    assert list(runs["step"]) == [6, 12] and list(runs["final"]) == [False, True]
    assert list(runs["model"]) == ["vit", "vit"]
    assert list(runs["optim.lr"]) == [3e-3, 3e-3]
    last = {name: runs[name][-1] for name in runs}
    assert (last["params"], last["params_non_embedding"], last["steps"]) == (5000, 4000, 12)
    assert (last["examples"], last["examples_seen"], last["epochs"]) == (100, 192, 1.92)
    assert (last["forward_flops"], last["total_train_flops"]) == (1e6, 3e6 * 192)
    assert (last["loss"], last["top1"], last["device_hours"]) == (2 / 12, 0.62, 1.2)
    assert last["error"] == 1 - 0.62 and last["train_loss"] == 3 / 12
    assert (last["code_version"], last["device"], last["seed"]) == ("0.2.0+gabc", "cpu", 0)
    assert (last["status"], last["attempts"], last["error_message"]) == ("finished", 1, "")


def test_a_key_of_one_point_is_taken_from_the_configs_of_the_others(tmp_path):
    make_run(tmp_path, "a", values={"optim.lr": 0.5, ":model": "vit"}, optim__lr=0.5)
    make_run(tmp_path, "b", values={"data.shots": 3, "checkpoint.keep_steps": [4]}, data__shots=3)
    runs = table(tmp_path)
    of = {name: dict(zip(runs["run"], runs[name], strict=True)) for name in runs}
    assert of["optim.lr"] == {"a": 0.5, "b": 3e-3}
    assert of["data.shots"] == {"a": 0, "b": 3}
    assert of["model"] == {"a": "vit", "b": ""}
    assert of["checkpoint.keep_steps"] == {"a": "[]", "b": "[4]"}


@pytest.mark.parametrize(
    ("variant", "family"),
    [("Ti/7", "vit"), ("R26+S/32", "hybrid"), ("BiT-R50x3", "resnet"), ("Mixer-B/16", "mixer")],
)
def test_the_family_of_a_model(tmp_path, variant, family):
    """Runs of several are compared by it, whatever the sweep calls its models."""
    make_run(tmp_path, "a", values={":model": "my-own"}, model__variant=variant)
    assert list(table(tmp_path)["family"]) == [family] * 2


def test_a_swept_key_does_not_hide_a_column(tmp_path):
    make_run(tmp_path, "a", values={":examples": 7})
    runs = table(tmp_path)
    assert runs["examples"][0] == 100 and runs["swept.examples"][0] == 7


def test_a_run_without_an_evaluation_has_a_row(tmp_path):
    """With why: it waits, or it failed."""
    failed = records.Record(name="f", values={"seed": 3}, status="failed", attempts=2, error="No.")
    records.write(tmp_path / "f", failed)
    records.write(tmp_path / "w", records.Record(name="w", values={"seed": 4}))
    runs = table(tmp_path)
    assert list(runs["status"]) == ["failed", "waiting"]
    assert list(runs["seed"]) == [3, 4] and list(runs["evaluation"]) == ["", ""]
    assert list(runs["error_message"]) == ["No.", ""] and np.isnan(runs["loss"]).all()


def test_runs_are_in_the_order_of_their_numbers(tmp_path):
    names = ["lr=1e-4", "lr=0.001", "lr=0.01", "point-2", "point-10"]
    for name in reversed(names):
        records.write(tmp_path / name, records.Record(name=name))
    listed = [os.path.relpath(run.path, tmp_path) for run in list_runs(tmp_path)]
    assert list(table(tmp_path)["run"]) == names == listed


def test_other_folders_are_ignored(tmp_path):
    make_run(tmp_path, "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.jsonl").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    assert set(table(tmp_path)["run"]) == {"a"}


def test_a_torn_last_line_is_dropped(tmp_path):
    path = make_run(tmp_path, "a") / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert list(table(tmp_path)["step"]) == [6]


@pytest.mark.parametrize(
    "file, content",
    [
        ("metrics.jsonl", "no json\n" * 3),
        ("run.json", '{"params": 1' + "0" * 5000),
        ("config.json", '{"evals": 3, "batch_size": "many"}'),
    ],
)
def test_a_damaged_file_affects_only_its_run(tmp_path, file, content):
    make_run(tmp_path, "a")
    (make_run(tmp_path, "b") / file).write_text(content)
    runs = table(tmp_path)
    assert list(runs["run"]) == ["a", "a", "b"]
    assert runs["error_message"][-1] and runs["loss"][1] == 2 / 12


def test_killed_with_its_sweep_is_not_running(tmp_path):
    make_run(tmp_path, "a", status="running", steps=(6,))
    with lock(epath.Path(tmp_path)):
        assert list(table(tmp_path)["status"]) == ["running"]
    assert list(table(tmp_path)["status"]) == ["stopped"]


def test_finished_by_its_last_checkpoint(tmp_path):
    workdir = make_run(tmp_path, "a", status="running")
    state = workdir / "checkpoints" / "12"
    state.mkdir(parents=True)
    assert list(table(tmp_path)["status"]) == ["stopped"] * 2
    (state / "_CHECKPOINT_METADATA").touch()
    assert list(table(tmp_path)["status"]) == ["finished"] * 2


def test_both_files_hold_the_same(tmp_path):
    make_run(tmp_path, "a", values={"optim.lr": 0.1 + 0.2, ":model": 'a "b", c'})
    failed = records.Record(name="b", status="failed", error='Two\nlines, "quoted".', attempts=3)
    records.write(tmp_path / "b", failed)
    path = collect(tmp_path)
    ours, theirs = read_runs(path), read_runs(path.with_suffix(".csv"))
    assert list(ours) == list(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    with path.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["loss"] == repr(2 / 6) and rows[2]["error_message"] == failed.error


def test_written_again_it_has_the_same_bytes(tmp_path):
    make_run(tmp_path, "a", values={"seed": 1})
    first = [path.read_bytes() for path in (collect(tmp_path), tmp_path / "runs.csv")]
    for path in (tmp_path / "runs.parquet", tmp_path / "runs.csv"):
        path.write_bytes(b"something else")
    assert [path.read_bytes() for path in (collect(tmp_path), tmp_path / "runs.csv")] == first


# ------------------------------------------------------------------------------ tables of others


def test_columns_of_a_csv(tmp_path):
    path = tmp_path / "theirs.csv"
    path.write_text('n,d,name,ok,note\n1,2.5,"a, b",true,\n2,,c,false,x\n')
    runs = read_runs(path)
    assert runs["n"].dtype == np.int64 and list(runs["n"]) == [1, 2]
    assert runs["d"].dtype == np.float64 and runs["d"][0] == 2.5 and np.isnan(runs["d"][1])
    assert list(runs["name"]) == ["a, b", "c"] and list(runs["note"]) == ["", "x"]
    assert runs["ok"].dtype == bool and list(runs["ok"]) == [True, False]


def test_a_number_late_in_a_long_csv(tmp_path):
    """A column of whole numbers for megabytes, and then one that is not."""
    path = tmp_path / "long.csv"
    path.write_text("x,y\n" + "1,22222222222\n" * 200_000 + "0.5,text\n")
    runs = read_runs(path)
    assert runs["x"][-1] == 0.5 and runs["y"][-1] == "text"


def test_columns_of_a_parquet_file(tmp_path):
    path = tmp_path / "theirs.parquet"
    columns = {
        "small": pa.array([1, None], pa.int8()),
        "half": pa.array([0.5, 1.5], pa.float16()),
        "class": pa.array(["a", "b"]).dictionary_encode(),
        "number": pa.array([0.5, 2]).dictionary_encode(),
        "when": pa.array([1, 2], pa.timestamp("ns")),
        "nothing": pa.nulls(2),
    }
    pa.parquet.write_table(pa.table(columns), path)
    runs = read_runs(path)
    assert runs["small"][0] == 1 and np.isnan(runs["small"][1])
    assert list(runs["half"]) == [0.5, 1.5] and list(runs["class"]) == ["a", "b"]
    assert list(runs["number"]) == [0.5, 2] and runs["when"][0] != runs["when"][1]
    assert np.isnan(runs["nothing"]).all()
    path.rename(tmp_path / "X.PARQUET")
    assert list(read_runs(tmp_path / "X.PARQUET")["half"]) == [0.5, 1.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,a\n1,2,3\n", "several columns of one name: a. Rename them"),
        ("model,b\né,2\n".encode("latin1"), "is not UTF-8 text. Save it as UTF-8"),
    ],
)
def test_tables_of_others_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "x.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=f"x.csv.* {message}"):
        read_runs(tmp_path / "x.csv")


def test_files_that_are_no_tables_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"absent\.csv does not exist"):
        read_runs(tmp_path / "absent.csv")
    (tmp_path / "x.parquet").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"x\.parquet cannot be read"):
        read_runs(tmp_path / "x.parquet")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(DataError, match=r"must be a .parquet or a .csv file"):
        read_runs(tmp_path / "x.json")
    with pytest.raises(ConfigError, match="cannot be written"):
        collect(tmp_path / "absent")


# ---------------------------------------------------------------------------- columns of a run


def plain(**changes):
    return workdirs.config_to_json(small_config(**changes))


def test_folders_of_the_last_release_are_read(tmp_path):
    """0.2.0 called device_hours core_hours, and update_flops_per_image train_flops."""
    new, old = make_run(tmp_path, "new"), make_run(tmp_path, "old")
    for name, before, after in (
        ("timing.jsonl", "device_hours", "core_hours"),
        ("run.json", "update_flops_per_image", "train_flops"),
    ):
        text = (old / name).read_text()
        assert before in text
        (old / name).write_text(text.replace(before, after))
    runs = table(tmp_path)
    for name in ("device_hours", "total_train_flops"):
        values = [runs[name][runs["run"] == run.name].tolist() for run in (new, old)]
        assert values[0] == values[1] and not np.isnan(values[0]).any()


def test_the_hash_covers_what_changes_the_results():
    same = config_hash(plain())
    for changes in (
        {"data__data_dir": "/elsewhere"}, {"data__threads": 7}, {"log__every_steps": 3},
        {"timeout_seconds": 9}, {"mesh__fsdp": 4}, {"mesh__data": 2, "mesh__tensor": 2},
        {"checkpoint__every_steps": 7}, {"checkpoint__keep_steps": (3, 5)},
        {"checkpoint__best_metric": "test/top1"}, {"model__remat": "dots"},
        {"model__attention": "xla"},
    ):  # fmt: skip
        assert config_hash(plain(**changes)) == same, changes
    for changes in (
        {"seed": 1}, {"optim__lr": 0.1}, {"data__examples": 5}, {"resume": "/S/a/1"},
        {"model__depth": 1}, {"model__scan": False}, {"batch_size": 8}, {"optim__accum_steps": 2},
        {"model__dtype": "bfloat16"}, {"evals__test__split": "test[:40]"},
    ):  # fmt: skip
        assert config_hash(plain(**changes)) != same, changes
    moved = [config_hash(plain(resume=f"{path}/trunk/checkpoints/5")) for path in ("/S", "/T/x")]
    assert moved[0] == moved[1] != same


def test_parameters_without_embeddings():
    """By hand, for a block of width w: 4 w^2 + 4 w of attention, and so on."""
    cfg = VitConfig(
        width=8, depth=2, mlp_dim=16, num_heads=2, patch_size=(4, 4), image_size=(8, 8),
        channels=1, num_classes=3, pool="token",
    )  # fmt: skip
    w, m = 8, 16
    block = 4 * w * w + 4 * w + 2 * w * m + w + m + 4 * w
    assert num_params_non_embedding(cfg) == 2 * block + 2 * w
    embedding = 16 * w + w + (4 + 1) * w + w + w * 3 + 3
    assert num_params(cfg) == num_params_non_embedding(cfg) + embedding
    # Chinchilla's estimate, a token.
    assert train_flops_per_image(cfg) > 6 * num_params_non_embedding(cfg)


def test_a_run_on_another_machine_counts_as_running(tmp_path):
    """Locks of a network file system may be invisible from here."""
    workdir = make_run(tmp_path, "a", steps=(6,), status="running")
    owner = "process 7 on {}, started 2026-11-29T12:00:00+00:00\n"
    for host, status in ((socket.gethostname(), "stopped"), ("elsewhere", "running")):
        (workdir / "lock").write_text(owner.format(host))
        assert set(table(tmp_path)["status"]) == {status}
