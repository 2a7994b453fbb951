"""Predictions and evaluations of a run; the files of predictions and features."""

import json

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image

from vit_jax.data import pipeline
from vit_jax.data.files import find_images
from vit_jax.data.sources import open_source
from vit_jax.errors import CheckpointError, ConfigError, DataError
from vit_jax.inference.evaluate import evaluate
from vit_jax.inference.outputs import features_writer, predictions_writer
from vit_jax.inference.predict import _list_paths, predict
from vit_jax.inference.results import write
from vit_jax.pretrained.prediction import Prediction
from vit_jax.rundir.workdir import read_config


@pytest.fixture
def images(tmp_path, run_copy):
    """Test images as files of several formats and modes, with their labels in their names."""
    source = open_source(read_config(run_copy).data, split="test[:20]")
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for i in range(len(source)):
        image = Image.fromarray(source[i]["image"].squeeze())
        mode, ending = [("L", "png"), ("RGB", "png"), ("RGBA", "webp"), ("L", "BMP")][i % 4]
        parent = folder / "deeper" if i % 2 else folder
        lossless = {"lossless": True} if ending == "webp" else {}
        image.convert(mode).save(parent / f"{i:02d}.{ending}", **lossless)
    image.save(folder / ".hidden" / "x.png")
    return folder


@pytest.mark.medium
def test_predicts_a_folder_as_the_evaluation_does(run_copy, images):
    source = open_source(read_config(run_copy).data, split="test[:20]")
    predictions = list(predict(run_copy, [str(images)], top_k=10))
    assert len(predictions) == 20 and not any(p.error for p in predictions)
    for p in predictions:
        assert sum(p.probabilities) == pytest.approx(1, abs=1e-5)
        assert list(p.probabilities) == sorted(p.probabilities, reverse=True)
        assert sorted(p.classes) == list("0123456789")
    right = sum(
        p.classes[0] == str(source[int(p.path.rsplit("/", 1)[1][:2])]["label"]) for p in predictions
    )
    report = evaluate(run_copy, split="test[:20]")
    assert right / 20 == report.top1 and report.count == 20


@pytest.mark.medium
def test_a_batch_does_not_depend_on_its_neighbours(run_copy, images):
    files = sorted(map(str, images.rglob("*.png")))
    (alone,) = predict(run_copy, files[1:2])
    together = list(predict(run_copy, files))[1]
    assert alone.classes == together.classes
    np.testing.assert_allclose(alone.probabilities, together.probabilities, rtol=1e-5)


@pytest.mark.medium
def test_bad_files_are_reported_in_their_place(run_copy, images, tmp_path):
    good = str(images / "00.png")
    text, empty, cut = tmp_path / "text.png", tmp_path / "empty.jpg", tmp_path / "cut.png"
    text.write_text("not an image")
    empty.touch()
    cut.write_bytes((images / "00.png").read_bytes()[:60])
    paths = [good, str(text), str(empty), str(cut), str(tmp_path / "missing.png"), good]
    predictions = list(predict(run_copy, paths))
    assert [p.path for p in predictions] == paths
    assert [bool(p.error) for p in predictions] == [False, True, True, True, True, False]
    assert predictions[0] == Prediction(
        predictions[-1].path, predictions[-1].classes, predictions[-1].probabilities
    )
    assert "Not an image" in predictions[1].error and "No such file" in predictions[4].error
    assert [bool(p.error) for p in predict(run_copy, paths[1:5])] == [True] * 4


def test_arguments_are_checked_by_the_call_itself():
    for argument in ("top_k", "batch_size"):
        with pytest.raises(ConfigError, match=f"{argument} is 0: it must be at least 1"):
            predict("no checkpoint is read", ["x.png"], **{argument: 0})
    image = np.zeros((4, 4, 3), np.uint8)
    for images in (image, [image], [Image.fromarray(image)], Image.fromarray(image)):
        with pytest.raises(ConfigError, match=r"takes the paths .* model\(model.preprocess"):
            _list_paths(images)  # The tests' type checker stops `predict` itself.


def test_other_files_of_a_folder_are_named_and_left_out(tmp_path, caplog):
    (tmp_path / "deeper").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("a.jpg", "deeper/b.PNG", "notes.txt", "deeper/x.heic", ".y.gif", ".hidden/z.gif"):
        (tmp_path / name).touch()
    (tmp_path / "linked").symlink_to("deeper")
    names = [str(path.relative_to(tmp_path)) for path in find_images([str(tmp_path)])]
    assert names == ["a.jpg", "deeper/b.PNG"]
    assert "Skipped 2 files without an image's extension: 1 .heic, 1 .txt." in caplog.text
    assert f"{tmp_path / 'linked'} is not listed: it is a link" in caplog.text


def test_a_folder_without_images_names_its_files(tmp_path):
    (tmp_path / "clip.avi").touch()
    with pytest.raises(
        DataError, match=r"contains no image.*Skipped: clip\.avi\. To try such a file"
    ):
        find_images([str(tmp_path)])


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_outputs_hold_the_same(tmp_path, ending):
    predictions = [
        Prediction('a, "b".png', ("Ünï", "x"), (0.75, 0.25)),
        Prediction("bad.png", error="Not an image"),
    ]
    output = tmp_path / f"out.{ending}"
    with predictions_writer(output, num_shown=2) as writer:
        for prediction in predictions:
            writer.add(prediction)
        assert not output.exists()
    if ending == "jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        assert rows[0]["classes"] == ["Ünï", "x"] and rows[1]["error"] == "Not an image"
        return
    read = pyarrow.csv.read_csv if ending == "csv" else pyarrow.parquet.read_table
    rows = read(output).to_pylist()
    assert rows[0]["path"] == 'a, "b".png' and rows[0]["class_1"] == "Ünï"
    assert rows[0]["probability_2"] == 0.25 and rows[1]["error"] == "Not an image"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_features_of_every_file_in_order(tmp_path, ending):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3000, 5), np.float32)  # Several row groups.
    paths = [f"{'ü' * (i % 7)}{i}.png" for i in range(len(values))]
    bad = {0: "Not an image", 1500: "Broken", 2999: "Gone"}
    output = tmp_path / f"f.{ending}"
    with features_writer(output, paths, num_features=5) as writer:
        for i, (path, row) in enumerate(zip(paths, values, strict=True)):
            features = None if i in bad else row
            writer.add(Prediction(path, error=bad.get(i, ""), features=features))
    if ending == "npz":
        arrays = np.load(output)
        features, read_paths, errors = (arrays[k] for k in ("features", "paths", "errors"))
        assert np.isnan(features[list(bad)]).all()
    else:
        table = pyarrow.parquet.read_table(output)
        assert pyarrow.parquet.ParquetFile(output).num_row_groups == 3
        read_paths, errors = table["path"].to_pylist(), table["error"].to_pylist()
        rows = table["features"].to_pylist()
        assert [i for i, row in enumerate(rows) if row is None] == list(bad)
        features = np.array([row or [np.nan] * 5 for row in rows], np.float32)
    good = [i for i in range(len(paths)) if i not in bad]
    np.testing.assert_array_equal(features[good], values[good])
    assert list(read_paths) == paths
    assert {i: error for i, error in enumerate(errors) if error} == bad
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "npz"])
def test_an_interrupted_file_is_left_as_it_was(tmp_path, ending):
    output = tmp_path / f"out.{ending}"
    output.write_text("of yesterday")
    writer = (
        features_writer(output, ["a", "b"], num_features=2)
        if ending == "npz"
        else predictions_writer(output, num_shown=1)
    )
    with pytest.raises(KeyboardInterrupt), writer:
        writer.add(Prediction("a", ("x",), (1.0,), features=np.zeros(2, np.float32)))
        raise KeyboardInterrupt
    assert output.read_text() == "of yesterday" and list(tmp_path.iterdir()) == [output]


@pytest.mark.medium
def test_evaluation_files(run_copy):
    report = evaluate(run_copy)
    assert write(report) == run_copy
    written = json.loads((run_copy / "evaluation.json").read_text())
    assert written["count"] == 50 == report.count == np.sum(written["confusion"])
    assert written["split"] == "test[:50]" and written["step"] == 12
    assert written["top1"] == np.trace(np.array(written["confusion"])) / 50
    files = {"throughput.json", "confusion.png", "classes.png", "predictions.png", "samples"}
    assert files <= {p.name for p in run_copy.iterdir()}


@pytest.mark.slow
def test_an_older_checkpoint_is_evaluated_into_a_folder_of_its_own(run_copy):
    write(evaluate(run_copy))
    newest = (run_copy / "evaluation.json").read_bytes()
    write(evaluate(run_copy / "checkpoints" / "8"))
    assert (run_copy / "evaluation.json").read_bytes() == newest
    written = json.loads((run_copy / "evaluation-step-8" / "evaluation.json").read_text())
    assert (written["step"], written["count"]) == (8, 50)
    with pytest.raises(CheckpointError, match="not exist"):
        evaluate(run_copy / "checkpoints" / "9")


@pytest.mark.medium
def test_one_image_is_not_padded_to_a_training_batch(run_copy, images, monkeypatch):
    sizes = []
    original = pipeline.eval_batches

    def spy(*args, **kwargs):
        sizes.append(kwargs["batch_size"])
        return original(*args, **kwargs)

    monkeypatch.setattr(pipeline, "eval_batches", spy)
    assert len(list(predict(run_copy, [str(images / "00.png")]))) == 1
    assert sizes == [8]  # One, and as many as there are devices.
