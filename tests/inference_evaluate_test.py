"""Published checkpoints are evaluated on images: with their head, or by their features."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import scipy.special
from ml_collections import ConfigDict

from tests.commands import call
from tests.config_cases import get_config
from tests.data_fingerprint_test import on
from tests.images import make
from tests.small_run import run
from tests.tiny_checkpoints import VIT, tiny
from vit_jax.config import classification_eval
from vit_jax.data.sources import open_source
from vit_jax.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from vit_jax.inference.evaluate import evaluate
from vit_jax.inference.predict import predict
from vit_jax.inference.results import table, to_json, write
from vit_jax.pretrained.exports import export
from vit_jax.pretrained.load import load_pretrained

pytestmark = pytest.mark.medium

LABELS = ("portrait", "unicorn, monoceros", "Temple", "flower", "dragon")
CLASSES = ("flower", "portrait", "temple")  # Of the folder, sorted.
OUTPUTS = (3, 0, 2)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 60 images of three classes, without folders for splits."""
    folder = tmp_path_factory.mktemp("data") / "images"
    make(folder, each=20)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A published classifier with random parameters, whose classes are more than the folder's."""
    folder = tmp_path_factory.mktemp("checkpoint") / "vit"
    export(tiny(labels=LABELS), folder, to="hf")
    return str(folder)


@pytest.fixture(scope="module")
def evaluation(checkpoint, images):
    return evaluate(checkpoint, images, batch_size=16)


def saved(folder, loss="softmax_xent", **changes):
    """A path of a saved model of another kind."""
    export(dataclasses.replace(tiny(**changes), loss=loss), folder, to="hf")
    return str(folder)


def logits_of(checkpoint, images):
    """Logits and labels by the plain interface, one image after the other."""
    pretrained = load_pretrained(checkpoint)
    files = [(path, label) for label, name in enumerate(CLASSES)
             for path in sorted((images / name).iterdir())]  # fmt: skip
    prepared = pretrained.preprocess([path for path, _ in files])
    logits, _ = pretrained(prepared)
    return np.asarray(logits), np.array([label for _, label in files])


def test_accuracy_over_all_outputs_and_over_the_matched_ones(evaluation, checkpoint, images):
    logits, labels = logits_of(checkpoint, images)
    every, matched = (evaluation.results[k].report for k in ("classifier", "matched_only"))
    assert every.count == matched.count == 60
    assert every.top1 == (logits.argmax(axis=1) == np.array(OUTPUTS)[labels]).mean()
    assert matched.top1 == (logits[:, OUTPUTS].argmax(axis=1) == labels).mean()
    np.testing.assert_array_equal(every.class_count, [20, 0, 20, 20, 0])
    np.testing.assert_array_equal(matched.class_count, [20, 20, 20])
    confidence = scipy.special.softmax(logits[:, OUTPUTS].astype(np.float64), axis=1).max(axis=1)
    gap = matched.bin_count @ np.nan_to_num(matched.bin_confidence)
    assert gap == pytest.approx(confidence.sum(), rel=1e-5)


def test_parameters_that_are_not_finite_are_named(images, tmp_path):
    model = tiny(labels=LABELS)
    head = {**model.params["head"], "bias": model.params["head"]["bias"].at[1].set(np.nan)}
    broken = dataclasses.replace(model, params=model.params | {"head": head})
    one = next(images.glob("*/*"))
    for use in (
        lambda: evaluate(broken, images),
        lambda: list(predict(broken, one)),
        lambda: export(broken, tmp_path / "exported", to="hf"),
    ):
        with pytest.raises(CheckpointError, match=r"not finite .*: head/bias\. "):
            use()
    assert not (tmp_path / "exported").exists()
    embedding = jax.tree.map(lambda leaf: leaf + 1e38, model.params["embedding"])
    large = dataclasses.replace(model, params=model.params | {"embedding": embedding})
    with pytest.raises(NonFiniteError, match="though the parameters are"):
        list(predict(large, one))


def test_what_was_matched_and_how_is_told(evaluation):
    matches = evaluation.measured.matching.matches
    assert [(m.data_class, m.output, m.label, m.how) for m in matches] == [
        ("flower", 3, "flower", "name"), ("portrait", 0, "portrait", "name"),
        ("temple", 2, "Temple", "lemma"),
    ]  # fmt: skip
    text = table(evaluation)
    assert "3 of 3 classes matched (2 by name, 1 by lemma); the model has 5" in text
    assert "all 5 outputs" in text and "only the 3 matched" in text
    rates = evaluation.throughput.to_json()
    assert 0 < rates["images_per_second"] <= rates["model_images_per_second"]
    assert rates["images"] == 60 and 0 < rates["waiting_share"] < 1


def test_files(evaluation, tmp_path):
    folder = write(evaluation, tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {
        "evaluation.json", "throughput.json", "confusion.png", "classes.png", "predictions.png",
    }  # fmt: skip
    content = json.loads((folder / "evaluation.json").read_text())
    assert content == to_json(evaluation)
    assert content["top1"] == evaluation.top1 and content["settings"]["image_size"] == [32, 32]
    assert content["class_names"] == list(LABELS) and content["class_intervals"][1] is None
    assert content["matched_only"]["class_names"] == ["flower", "portrait", "Temple"]
    low, high = content["matched_only"]["intervals"]["top1"]
    assert low <= content["matched_only"]["top1"] <= high


def test_a_class_without_an_output_is_left_out(checkpoint, images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images" / "flower").rename(tmp_path / "images" / "rose")
    evaluation = evaluate(checkpoint, tmp_path / "images")
    assert evaluation.count == 40 and evaluation.measured.left_out == 20
    assert "left out 20 examples" in table(evaluation) and "rose (no such output)" in table(
        evaluation
    )


def test_one_broken_image_is_named_and_not_counted(checkpoint, images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    broken = tmp_path / "images" / "temple" / "broken.png"
    broken.write_text("no image")
    evaluation = evaluate(checkpoint, tmp_path / "images")
    assert evaluation.count == 60 and list(evaluation.bad) == [str(broken)]
    assert "not read 1 example, not counted" in table(evaluation)
    for path in (tmp_path / "images").rglob("*.*"):
        path.write_text("no image")
    with pytest.raises(DataError, match="no image can be read"):
        evaluate(checkpoint, tmp_path / "images")


def test_a_sigmoid_for_each_class(images, tmp_path):
    checkpoint = saved(tmp_path / "vit", loss="sigmoid_xent", labels=LABELS)
    report = evaluate(checkpoint, images).results["matched_only"].report
    logits, labels = logits_of(checkpoint, images)
    confidence = 1 / (1 + np.exp(-logits[:, OUTPUTS].astype(np.float64)))
    assert report.top1 == (confidence.argmax(axis=1) == labels).mean()
    total = report.bin_count @ np.nan_to_num(report.bin_confidence)
    assert total == pytest.approx(confidence.max(axis=1).sum(), rel=1e-5)


def test_another_size_and_bfloat16(evaluation, checkpoint, images):
    other = evaluate(checkpoint, images, image_size=(48, 32), dtype="bfloat16")
    assert other.settings["image_size"] == [48, 32] and other.settings["dtype"] == "bfloat16"
    assert other.count == 60 and other.report.loss != evaluation.report.loss
    assert other.folder.name == "images-all-48x32-bfloat16"
    with pytest.raises(ConfigError, match=r"height 33, which is not a multiple of the patch"):
        evaluate(checkpoint, images, image_size=33)


def test_features_of_a_model_without_a_head(images, tmp_path):
    export(tiny(num_classes=0), tmp_path / "vit", to="hf")
    evaluation = evaluate(str(tmp_path / "vit"), images)
    assert list(evaluation.results) == ["knn", "probe"]
    counts = {name: result.report.count for name, result in evaluation.results.items()}
    measured = evaluation.measured
    assert counts == {"knn": len(measured.source), "probe": len(measured.source)}
    # The same images are tested as in a run on this folder.
    config = get_config("finetune", f"root={images}")
    (entry,) = config.evals.values()
    tested = open_source(config.data, split=entry.split)
    assert measured.source.fingerprint == tested.fingerprint and len(tested) == 12
    assert measured.train_split == f"train, {60 - len(measured.source)} images"
    assert set(measured.fewshot.accuracies) == {1, 5, 10} and set(measured.fewshot.omitted) == {25}
    text = table(evaluation)
    assert " top-1 " in text and "top-5" not in text  # Of three classes it is always 100%.
    assert '25-shot regression: not measured, the class "flower" has 16 training examples' in text
    best = max(evaluation.results.values(), key=lambda result: result.report.top1)
    assert evaluation.shown is best and evaluation.report is best.report
    assert evaluation.top1 == best.report.top1
    assert f"least accurate classes ({best.description})" in text
    content = json.loads((write(evaluation, tmp_path / "out") / "evaluation.json").read_text())
    assert content["knn"]["k"] == 20 and len(content["fewshot"]["top1"]["5"]) == 3
    # The least that can be asked of random features of three photographs.
    assert evaluation.results["probe"].report.top1 > 0.5


def test_a_regression_has_no_classes_but_features(images, tmp_path):
    checkpoint = saved(tmp_path / "vit", loss="")
    with pytest.raises(CheckpointError, match=r"its head is for regression.*method knn"):
        evaluate(checkpoint, images, method="classifier")
    evaluation = evaluate(checkpoint, images, method="knn")
    assert list(evaluation.results) == ["knn"] and evaluation.measured.fewshot is None


def test_names_that_match_nothing(images, tmp_path):
    checkpoint = saved(tmp_path / "vit", labels=("a", "b", "c", "d", "e"))
    with pytest.raises(DataError, match=r"No class of the data set is one of the model's"):
        evaluate(checkpoint, images, method="classifier")
    evaluation = evaluate(checkpoint, images)
    assert set(evaluation.results) == {"knn", "probe"}
    assert any("No class of the data set" in note for note in evaluation.notes)
    with pytest.raises(ConfigError, match="test would be both trained and evaluated on"):
        evaluate(checkpoint, images, method="knn", split="test", train_split="test")


def test_a_run_on_other_data(plain_run, images):
    """Its classes are digits; the folder's are not."""
    evaluation = evaluate(plain_run, images, method="knn")
    assert evaluation.folder == plain_run / "evaluation-images-test-knn"
    assert evaluation.settings["image_size"] == [8, 8]


def test_a_run_in_memory_is_evaluated_on_the_images_that_it_held_out(plain_run):
    """Not on all images of the data: it was trained on the others."""
    of_path, model = evaluate(plain_run), load_pretrained(plain_run)
    for evaluation in (evaluate(model), evaluate(model, "digits")):
        assert evaluation.measured.source.fingerprint == of_path.measured.source.fingerprint
        assert (evaluation.count, evaluation.top1) == (50, of_path.top1)
        # Its parameters may have changed since, so its results do not replace those of the run.
        assert plain_run not in evaluation.folder.parents


@pytest.mark.slow  # It trains.
def test_a_run_whose_test_images_have_changed_says_so(tmp_path, images):
    shutil.copytree(images, tmp_path / "images")
    test = ConfigDict({"test": classification_eval(split="test", every_steps=1)})
    run(tmp_path / "run", **on(tmp_path / "images", evals=test))
    by_workdir, by_data = (
        evaluate(tmp_path / "run"),
        evaluate(tmp_path / "run", tmp_path / "images"),
    )
    in_memory = load_pretrained(tmp_path / "run")
    assert by_workdir.report.count == by_data.report.count == 12
    assert evaluate(in_memory, tmp_path / "images").report.count == 12
    assert len(by_workdir.notes) == len(by_data.notes) == 1
    for path in list((tmp_path / "images" / "flower").iterdir()):
        shutil.copy(path, path.with_stem(f"again-{path.stem}"))
    for evaluation in (
        evaluate(tmp_path / "run"),
        evaluate(tmp_path / "run", tmp_path / "images"),
        evaluate(in_memory, tmp_path / "images"),
    ):
        assert "test is 16 of its 80 images" in evaluation.notes[-2]
        assert "may have been trained on some" in evaluation.notes[-1]


def test_the_command(checkpoint, images, tmp_path):
    result = call("evaluate", f"--checkpoint={checkpoint}", f"--data={images}", cwd=tmp_path)
    assert result.code == 0, result.err
    assert "only the 3 matched" in result.out and "95% interval" in result.out
    assert "has no splits of its own: all 60 images are evaluated" in result.out
    (folder,) = (tmp_path / "evaluations").iterdir()
    assert f"written  to evaluations/{folder.name}/images-all" in result.out
    assert (folder / "images-all" / "evaluation.json").exists()


def test_mistakes_of_the_command(checkpoint, images, tmp_path):
    mistakes = {
        ("--data=images",): "--checkpoint=... (or --workdir=... of a run) is missing",
        (f"--checkpoint={checkpoint}",): "the data to evaluate on are unknown",
        (f"--checkpoint={checkpoint}", "--data=./nowhere"): "./nowhere does not exist",
        (f"--checkpoint={checkpoint}", f"--data={images}", "--split=val", "--out=a/b"): (
            'no split "val". Did you mean "test"?'
        ),
        (f"--checkpoint={checkpoint}", "--workdir=x"): "exclude each other",
        (f"--checkpoint={checkpoint}", f"--data={images}", "--out=/dev/null/x"): "cannot be made",
    }
    for flags, message in mistakes.items():
        result = call("evaluate", *flags, cwd=tmp_path)
        assert result.code == 2 and message in result.err, (flags, result.err)
    assert not list(tmp_path.iterdir())  # A folder is made when there are results.


def test_parameters_are_on_all_devices(checkpoint, images):
    assert VIT.num_classes == 5 and jax.device_count() == 8
    assert evaluate(checkpoint, images, batch_size=3).settings["batch_size"] == 3
