"""The list of the runs below a folder, and runs side by side."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from tests.runs_test import make_run, write_lines
from vit_jax.analysis import overlay
from vit_jax.analysis.comparison import compare_runs
from vit_jax.analysis.runs import read_runs
from vit_jax.errors import CheckpointError, ConfigError, DataError
from vit_jax.rundir import failure
from vit_jax.rundir import workdir as workdirs
from vit_jax.rundir.lock import LOCK
from vit_jax.sweeps import record as records
from vit_jax.sweeps.listing import list_runs, runs_table


def printed(renderable):
    console = Console(width=300)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def by_hand(folder, name, **kwargs):
    """A run that no sweep has started."""
    workdir = make_run(folder, name, **kwargs)
    (workdir / records.RECORD).unlink()
    return workdir


def saved(workdir, step):
    folder = workdir / "checkpoints" / str(step)
    folder.mkdir(parents=True)
    (folder / "_CHECKPOINT_METADATA").write_text("{}")


# Holds the lock of a file, for as long as its standard input is open.
HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    """Runs in every state; below them what is none."""
    saved(by_hand(tmp_path, "finished"), 12)
    saved(by_hand(tmp_path, "stopped", steps=(6,)), 8)
    failure.write(by_hand(tmp_path, "failed", steps=(6,)), DataError("a.png is broken.\nMore."))
    failure.write(by_hand(tmp_path, "full disk"), OSError())
    by_hand(tmp_path / "nested", "running", steps=(6,))
    failed = make_run(tmp_path / "sweep", "failed", status="failed", steps=(4,))
    records.change(failed, error="The loss is NaN.\nMore.")
    records.write(tmp_path / "sweep" / "waiting", records.Record(name="waiting"))
    by_hand(tmp_path, "without a config").joinpath("config.json").unlink()
    by_hand(tmp_path, "damaged").joinpath("metrics.jsonl").write_text('{"st\n{"step": 2}\n')
    model = by_hand(tmp_path, "converted")
    for name in ("metrics.jsonl", "timing.jsonl", "run.json"):
        (model / name).unlink()
    saved(model, 0)
    for name in ("published", ".hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / ".hidden" / "metrics.jsonl").touch()
    return tmp_path


def test_every_run_below_a_folder_with_its_state(folder):
    lock = str(folder / "nested" / "running" / LOCK)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        runs = {os.path.relpath(run.path, folder): run for run in list_runs(folder)}
        holder.communicate()
    assert {path: run.state for path, run in runs.items()} == {
        "converted": "model",
        "damaged": "broken",
        "failed": "failed",
        "finished": "finished",
        "full disk": "failed",
        "nested/running": "running",
        "stopped": "stopped",
        "sweep/failed": "failed",
        "sweep/waiting": "waiting",
        "without a config": "broken",
    }
    stopped = runs["stopped"]  # Its checkpoint is newer than its last evaluation.
    assert (stopped.step, stopped.total_steps, stopped.metric) == (8, 12, "test/top1")
    finished = runs["finished"]  # 0.5 + step / 100 at steps 6 and 12.
    assert (finished.best, finished.best_step, finished.last) == (0.62, 12, 0.62)
    assert "line 1 is not a JSON object" in runs["damaged"].error
    table = printed(runs_table(list(runs.values()), folder))
    assert "failed: DataError: a.png is broken." in table and "failed: OSError " in table
    assert "failed: The loss is NaN." in table and "More." not in table
    assert "8 of 12" in table and "62.00% at 12" in table
    assert "\nnested/running " in table  # Below the folder.


def test_the_best_value_is_that_of_the_configs_metric(tmp_path):
    workdir = by_hand(tmp_path, "run", checkpoint__best_metric="test/loss")
    write_lines(
        workdir / "metrics.jsonl",
        [{"step": t, "test/loss": x, "test/top1": 0.5} for t, x in ((2, 3.0), (4, 1.0), (6, 2.0))],
    )
    [run] = list_runs(workdir)
    assert (run.path, run.metric) == (str(workdir), "test/loss")
    assert (run.best, run.best_step, run.last) == (1.0, 4, 2.0)


def test_listed_paths_are_those_of_work_directories(tmp_path, monkeypatch):
    for name in ("a", "b"):
        by_hand(tmp_path / "runs", name)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    paths = [run.path for run in list_runs("../runs")]
    assert paths == ["../runs/a", "../runs/b"]
    assert [run.name for run in compare_runs(paths).runs] == ["a", "b"]


def test_what_is_no_folder_of_runs(tmp_path):
    assert list_runs(tmp_path) == []
    with pytest.raises(ConfigError, match="cannot be read"):
        list_runs(tmp_path / "missing")


# ------------------------------------------------------------------------------------ comparison


def test_runs_side_by_side(tmp_path):
    """Of different lengths, one of which is not finished and measures another evaluation, too."""
    short = by_hand(tmp_path / "x", "run", steps=(6,))
    longer = by_hand(tmp_path / "y", "run", optim__lr=0.5, loss__label_smoothing=0.1)
    lines = [json.loads(line) for line in (longer / "metrics.jsonl").read_text().splitlines()]
    lines[2]["test/loss"] = 0.01  # At step 6.
    write_lines(longer / "metrics.jsonl", lines)
    config = json.loads((longer / "config.json").read_text())
    config["log"]["compilation_cache"] = "/elsewhere"  # Of no influence.
    (longer / "config.json").write_text(json.dumps(config))
    out = tmp_path / "figure.png"
    result = compare_runs([short, longer], out=out)
    assert [run.name for run in result.runs] == ["x/run", "y/run"]
    assert result.differences == {"loss.label_smoothing": [0.0, 0.1], "optim.lr": [0.003, 0.5]}
    assert result.last["test/loss"] == [(6, 2 / 6), (12, 2 / 12)]
    assert result.best["test/loss"] == [(6, 2 / 6), (6, 0.01)]
    assert result.best["test/top1"] == [(6, 0.56), (12, 0.62)]
    text = printed(result.tables())
    assert "6 of 12" in text and "5,000" in text and "with label smoothing 0.1" in text
    with Image.open(out) as image:
        assert np.asarray(image.convert("L")).std() > 0


def test_runs_with_equal_configs(tmp_path):
    runs = [by_hand(tmp_path, name) for name in "ab"]
    result = compare_runs(runs)
    assert result.differences == {} and "The configs are equal." in printed(result.tables())


def test_lists_differ_in_their_elements_and_long_values_are_wrapped(tmp_path):
    resize = {"op": "resize", "method": "bilinear", "antialias": True}
    transforms = ({"op": "decode"}, resize, {"op": "value_range"})
    others = (transforms[0], resize | {"method": "bicubic"}, transforms[2])
    runs = [
        by_hand(tmp_path, "a", data__train_transforms=transforms, data__eval_transforms=transforms),
        by_hand(tmp_path, "b", data__train_transforms=others, data__eval_transforms=others[:2]),
    ]
    lines = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    write_lines(runs[0] / "metrics.jsonl", [line | {"test/top5": 1.0} for line in lines])
    result = compare_runs(runs)
    assert result.differences["data.train_transforms[1].method"] == ["bilinear", "bicubic"]
    assert len(result.differences["data.eval_transforms"][0]) == 3
    text = printed(result.tables())
    assert (
        max(map(len, text.splitlines())) <= 100 and "\n  b: decode, resize(method=bicubic)" in text
    )
    assert "test/top5, last" in text
    dataset = {"name": "x", "split": "train", "num_examples": 9, "num_classes": 2, "channels": 1}
    for run in runs:
        workdirs.write_json(run / workdirs.DATASET, dataset | {"class_names": ["a", "b"]})
    assert "top5" not in printed(compare_runs(runs).tables())


def test_equal_values_share_a_line_and_models_show_the_values_that_they_have(tmp_path):
    """Only one of the runs states its model in its config; the others leave it to the variant."""
    dataset = {"name": "x", "split": "train", "num_examples": 9, "num_classes": 2, "channels": 1}
    stated = {"model__pool": "gap", "model__ln_eps": 1e-6, "model__mlp_dim": 768}
    runs = [
        by_hand(tmp_path, "a", model__variant="Ti/4", init_from="checkpoints/of/a/longer/path"),
        by_hand(tmp_path, "b", model__variant="Ti/4", init_from="checkpoints/of/a/longer/path"),
        by_hand(tmp_path, "c", model__variant="Ti/4", **stated),
    ]
    for run in runs:
        workdirs.write_json(run / workdirs.DATASET, dataset | {"class_names": ["a", "b"]})
    result = compare_runs(runs)
    models = {k: v for k, v in result.differences.items() if k.startswith("model.")}
    assert models == {"model.pool": ["token", "token", "gap"]}
    assert "\n  a, b: checkpoints/of/a/longer/path " in printed(result.tables())


def test_runs_of_one_value_have_markers_of_their_own_and_a_slow_one_is_visible(tmp_path):
    runs = read_runs([by_hand(tmp_path, f"run {i}", steps=(6,)) for i in range(12)])
    figure = Figure()
    axes = figure.subplots()
    rates = np.geomspace(4, 450, len(runs)).tolist()
    runs = [
        dataclasses.replace(run, timing=[{"step": 6, "speed/img_per_s": rate}])
        for run, rate in zip(runs, rates, strict=True)
    ]
    overlay._panel(axes, "speed/img_per_s", runs, by_images=False)
    looks = {(line.get_marker(), line.get_color()) for line in axes.lines}
    assert len(looks) == len(runs) and axes.get_yscale() == "log"
    sizes = [line.get_markersize() for line in axes.lines]
    assert sizes == sorted(set(sizes), reverse=True)  # Equal values hide none.
    drawn = [line.get_transform().transform(line.get_xydata())[0] for line in axes.lines]
    points = axes.transData.transform([(6, rate) for rate in rates])
    np.testing.assert_allclose(drawn, points)  # At their true steps.


def test_an_evaluation_does_not_change_when_a_run_changed(tmp_path):
    workdir = by_hand(tmp_path, "run")
    for path in workdir.iterdir():
        os.utime(path, (1e9, 1e9))
    (workdir / "evaluation.json").touch()
    (changed,) = (run.changed for run in list_runs(tmp_path))
    assert changed.startswith("2001-09-0")


def test_what_cannot_be_compared(tmp_path):
    run = by_hand(tmp_path, "run")
    published = tmp_path / "published"
    published.mkdir()
    (published / workdirs.CONFIG).write_text('{"model_type": "vit"}')
    with pytest.raises(CheckpointError, match="published or converted model has none"):
        compare_runs([run, published])
    with pytest.raises(CheckpointError, match="google/vit does not exist: there are no training"):
        compare_runs([run, "google/vit"])
    with pytest.raises(ConfigError, match="is given twice"):
        compare_runs([run, os.path.join(run, ".")])
    with pytest.raises(ConfigError, match="at least two"):
        compare_runs([run])
