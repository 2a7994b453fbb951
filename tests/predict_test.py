"""Predictions and evaluations of a trained run."""

import json
import os
import pathlib

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image

from vit_jax import evaluate as evaluate_door
from vit_jax import predict as predict_door
from vit_jax.data import pipeline
from vit_jax.data.files import find_images
from vit_jax.data.sources import open_source
from vit_jax.errors import CheckpointError, DataError
from vit_jax.evaluate import evaluate
from vit_jax.predict import Prediction, predict, write
from vit_jax.rundir.workdir import read_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory, finished_run):
    workdir = tmp_path_factory.mktemp("trained")
    finished_run(workdir)
    return workdir


@pytest.fixture
def pictures(tmp_path, trained):
    """Test images as files of several formats and modes, with their labels in their names."""
    source = open_source(read_config(trained).data, split="test[:20]")
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for i in range(len(source)):
        image = Image.fromarray(source[i]["image"].squeeze())
        mode, ending = [("L", "png"), ("RGB", "png"), ("RGBA", "webp"), ("L", "BMP")][i % 4]
        place = folder / "deeper" if i % 2 else folder
        lossless = {"lossless": True} if ending == "webp" else {}
        image.convert(mode).save(place / f"{i:02d}.{ending}", **lossless)
    image.save(folder / ".hidden" / "x.png")
    return folder


@pytest.mark.medium
def test_predicts_a_folder_as_the_evaluation_does(trained, pictures):
    source = open_source(read_config(trained).data, split="test[:20]")
    found = list(predict(trained, [str(pictures)], top_k=10))
    assert len(found) == 20 and not any(p.error for p in found)
    for p in found:
        assert sum(p.probabilities) == pytest.approx(1, abs=1e-5)
        assert list(p.probabilities) == sorted(p.probabilities, reverse=True)
        assert sorted(p.classes) == list("0123456789")
    right = sum(
        p.classes[0] == str(source[int(p.path.rsplit("/", 1)[1][:2])]["label"]) for p in found
    )
    report = evaluate(trained, split="test[:20]")
    assert right / 20 == report.top1 and report.count == 20


@pytest.mark.medium
def test_a_batch_does_not_depend_on_its_neighbours(trained, pictures):
    files = sorted(map(str, pictures.rglob("*.png")))
    (alone,) = predict(trained, files[1:2])
    together = list(predict(trained, files))[1]
    assert alone.classes == together.classes
    np.testing.assert_allclose(alone.probabilities, together.probabilities, rtol=1e-5)


@pytest.mark.medium
def test_bad_files_are_reported_in_their_place(trained, pictures, tmp_path):
    good = str(pictures / "00.png")
    text, empty, cut = tmp_path / "text.png", tmp_path / "empty.jpg", tmp_path / "cut.png"
    text.write_text("not an image")
    empty.touch()
    cut.write_bytes((pictures / "00.png").read_bytes()[:60])
    paths = [good, str(text), str(empty), str(cut), str(tmp_path / "missing.png"), good]
    found = list(predict(trained, paths))
    assert [p.path for p in found] == paths
    assert [bool(p.error) for p in found] == [False, True, True, True, True, False]
    assert found[0] == Prediction(found[-1].path, found[-1].classes, found[-1].probabilities)
    assert "Not an image" in found[1].error and "No such file" in found[4].error
    assert [bool(p.error) for p in predict(trained, paths[1:5])] == [True] * 4


@pytest.mark.medium
def test_nothing_to_predict_is_an_error(trained, tmp_path):
    with pytest.raises(DataError, match="holds no image"):
        list(predict(trained, [str(tmp_path)]))
    with pytest.raises(DataError, match="Name at least one"):
        list(predict(trained, []))


def test_what_a_folder_holds_besides_images_is_told(tmp_path, caplog):
    (tmp_path / "deeper").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("a.jpg", "deeper/b.PNG", "anim.gif", "deeper/x.heic", ".y.gif", ".hidden/z.gif"):
        (tmp_path / name).touch()
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "link").symlink_to("deeper")
    os.mkfifo(tmp_path / "p.jpg")
    found = [str(path.relative_to(tmp_path)) for path in find_images([str(tmp_path)])]
    assert found == ["a.jpg", "broken.jpg", "deeper/b.PNG", "p.jpg"]
    assert "3 that do not look like images are left out: anim.gif, deeper/x.heic, link. Name" in (
        caplog.text
    )
    for i in range(9):
        (tmp_path / f"{i}.gif").touch()
    find_images([str(tmp_path)])
    assert (
        "12 that do not look like images are left out: 0.gif, 1.gif, 2.gif, 3.gif, 4.gif, ..."
        in (caplog.text)
    )


@pytest.mark.medium
def test_links_to_nothing_and_pipes_are_reported_in_their_place(trained, pictures):
    (pictures / "00.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(pictures / "p.jpg")
    found = {p.path: p.error for p in predict(trained, [str(pictures)]) if p.error}
    assert found.keys() == {str(pictures / "00.jpg"), str(pictures / "p.jpg")}
    assert "No such file" in found[str(pictures / "00.jpg")]
    assert "no regular file" in found[str(pictures / "p.jpg")]


def test_a_folder_without_images_names_what_is_there(tmp_path):
    (tmp_path / "anim.gif").touch()
    with pytest.raises(
        DataError, match=r"holds no image.*Left out: anim\.gif\. Name a file itself"
    ):
        find_images([str(tmp_path)])


def test_too_long_a_name_is_a_file_that_is_not_there():
    name = 300 * "x"
    assert find_images([name]) == [pathlib.Path(name)]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_outputs_hold_the_same(tmp_path, ending):
    predictions = [
        Prediction('a, "b".png', ("Ünï", "x"), (0.75, 0.25)),
        Prediction("bad.png", error="Not an image"),
    ]
    output = tmp_path / f"out.{ending}"
    write(predictions, output)
    if ending == "jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        assert rows[0]["classes"] == ["Ünï", "x"] and rows[1]["error"] == "Not an image"
        return
    read = pyarrow.csv.read_csv if ending == "csv" else pyarrow.parquet.read_table
    rows = read(output).to_pylist()
    assert rows[0]["path"] == 'a, "b".png' and rows[0]["class_1"] == "Ünï"
    assert rows[0]["probability_2"] == 0.25 and rows[1]["error"] == "Not an image"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.medium
def test_evaluation_files(trained):
    report = evaluate(trained)
    written = json.loads((trained / "evaluation.json").read_text())
    assert written["count"] == 50 == report.count == np.sum(written["confusion"])
    assert written["split"] == "test[:50]" and written["step"] == 12
    assert written["top1"] == np.trace(np.array(written["confusion"])) / 50
    assert {"confusion.png", "predictions.png", "samples"} <= {p.name for p in trained.iterdir()}


@pytest.mark.medium
def test_an_evaluation_of_data_in_a_folder_of_any_name(trained, monkeypatch, capsys):
    def renamed(*args, **kwargs):
        source = open_source(*args, **kwargs)
        source.name = "/data/\x1b[31m\udcff"
        return source

    monkeypatch.setattr(evaluate_door, "open_source", renamed)
    evaluate(trained, split="test[:10]")
    assert capsys.readouterr().out.startswith("/data/\ufffd[31m\ufffd, test[:10], after 12 steps")


def test_names_of_classes_make_names_of_files():
    name = evaluate_door._file_name(80 * "\N{CJK UNIFIED IDEOGRAPH-732B}")
    assert len(f".9-{name}.png.unfinished".encode()) < 200 and set(name) == {"\u732b"}
    assert evaluate_door._file_name("a/b: c\udcff" + 200 * "x") == "a_b_c_" + 94 * "x"


def test_the_help_shows_commands_as_they_are_typed():
    assert "\\\n" in predict_door.__doc__ and "\\\\" not in predict_door.__doc__


@pytest.mark.medium
def test_an_older_checkpoint_can_be_named(trained):
    report = evaluate(trained / "checkpoints" / "8", split="test[:10]")
    assert report.count == 10
    with pytest.raises(CheckpointError, match="not exist"):
        evaluate(trained / "checkpoints" / "9")


@pytest.mark.medium
def test_one_picture_is_not_padded_to_a_training_batch(trained, pictures, monkeypatch):
    sizes = []
    original = pipeline.eval_batches

    def spy(*args, **kwargs):
        sizes.append(kwargs["batch_size"])
        return original(*args, **kwargs)

    monkeypatch.setattr(pipeline, "eval_batches", spy)
    assert len(list(predict(trained, [str(pictures / "00.png")]))) == 1
    assert sizes == [8]  # One, and as many as there are devices.
