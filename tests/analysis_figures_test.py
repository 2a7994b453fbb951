"""Figures: they are drawn, replaced atomically, and hold the right text."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from vit_jax.analysis import confusion, curves, predictions
from vit_jax.analysis.confusion_matrix import _largest_of_blocks
from vit_jax.analysis.figures import _running_mean, shorten
from vit_jax.analysis.pixels import as_uint8
from vit_jax.errors import DataError
from vit_jax.evals import Classification

pytestmark = pytest.mark.medium


@pytest.fixture
def texts(monkeypatch):
    """All texts in the figures that are saved."""
    texts = []
    save = Figure.savefig

    def savefig(figure, *args, **kwargs):
        texts.extend(text.get_text() for text in figure.findobj(Text) if text.get_text())
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return texts


def pixels_of(path):
    """The pixels, after a check that no unfinished file is left beside it."""
    assert [p.name for p in path.parent.glob("*.tmp")] == []
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def write_run(path, steps):
    lines = [
        {"step": t, "train/loss": 0.01 + 3 * 0.99**t, "train/lr": 1e-3, "other/number": 7.0}
        for t in steps
    ]
    lines[-1] |= {"test/top1": 0.875, "test/loss": None}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("steps", [[0], range(5), range(0, 3000, 3)])
def test_curves_of_short_and_long_runs(tmp_path, texts, steps):
    write_run(tmp_path / "metrics.jsonl", steps)
    out = tmp_path / "new" / "curves.png"
    curves(tmp_path / "metrics.jsonl", out, train_loss="with Mixup")
    assert pixels_of(out).std() > 0
    assert any(text.startswith("train/loss with Mixup: ") for text in texts)
    assert {"Loss", "Accuracy", "Learning rate", "step (optimizer updates)"} <= set(texts)
    assert "test/top1: 87.50%" in texts
    assert "train/lr: largest logged 0.001" in texts
    # Neither what was never finite nor what is none of the three.
    assert not any("test/loss" in text or "other" in text for text in texts)


def test_curves_without_anything_to_draw(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "other": 1.0}\n')
    with pytest.raises(DataError, match="has no loss"):
        curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_running_mean_keeps_straight_lines():
    line = np.linspace(3, 5, 500)
    np.testing.assert_allclose(_running_mean(line), line, rtol=1e-12)
    noisy = line + np.random.default_rng(0).normal(size=500)
    assert np.std(_running_mean(noisy) - line) < 0.6


def test_predictions_show_the_most_confident_mistakes_first(tmp_path, texts):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    labels = np.zeros(12, np.int64)
    sure_of_first = np.full(12, 0.9)
    sure_of_first[[4, 7]] = 0.4, 0.1  # Both wrong; the model is surer of 7.
    probabilities = np.stack([sure_of_first, 1 - sure_of_first], axis=-1)
    out = tmp_path / "predictions.png"
    names = ["cat", "dog $x$"]
    figure = predictions(images, labels, probabilities, names, out, num_shown=4)
    assert pixels_of(out).std() > 0
    assert "10 of 12 images right; the 2 mistakes first, by confidence" in texts
    titles = [text for text in texts if text.startswith(("✓", "✗"))]
    assert titles == ["✗ dog $x$  90%", "✗ dog $x$  60%", "✓ cat  90%", "✓ cat  90%"]
    assert texts.count("true: cat") == 2
    predictions(images, labels, probabilities, names, out, num_shown=1)
    assert "10 of 12 images right; the 1 most confident of 2 mistakes" in texts
    assert figure._repr_png_().startswith(b"\x89PNG")  # A notebook shows it.


def test_predictions_of_colour_images_with_long_names(tmp_path, texts):
    rng = np.random.default_rng(0)
    sizes = [(20, 30, 3), (30, 20, 3), (8, 8, 1)]  # Files of several sizes, as they are decoded.
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    names = ["a very long name of a class", "b"]
    predictions(images, np.zeros(3, int), np.tile([0.8, 0.2], (3, 1)), names, tmp_path / "p.png")
    assert pixels_of(tmp_path / "p.png").std() > 0
    assert "✓ a very long name of a c…\n80%" in texts
    assert "3 of 3 images right" in texts


def test_images_to_draw_have_8_bits_or_values_from_0_to_1():
    image = np.array([[[0, 128, 255]]], np.uint8)
    np.testing.assert_array_equal(as_uint8((image / 255)[None]), [image])
    for wrong, message in (
        (image / 127.5 - 1, r"images\[0\] has values from -1 to 1, as normalised images have"),
        (image * np.nan, "values from nan to nan"),
        (image.astype(int), "has the dtype int64"),
        (image[0], r"has the shape \[1, 3\]. Give the decoded images: uint8"),
    ):
        with pytest.raises(DataError, match=message):
            as_uint8([wrong])


@pytest.mark.parametrize(
    ("name", "shown"),
    [("", ""), (24 * "a", 24 * "a"), (25 * "a", 23 * "a" + "…"), (12 * "\u732b", 12 * "\u732b"),
     (80 * "\u732b", 11 * "\u732b" + "…"), ("a\n b", "a  b")],
)  # fmt: skip
def test_long_names_are_truncated(name, shown):
    assert shorten(name) == shown


def report_of(classes, *, examples_per_class, multi_hot=False):
    """A report in which some of class 1 are taken for class 0, and nothing else is wrong."""
    labels = np.repeat(np.arange(classes), examples_per_class)
    logits = 9 * np.eye(classes, dtype=np.float32)[labels]
    logits[labels == 1] = logits[0] if classes > 1 else logits[labels == 1]
    metric = Classification(
        lambda _, x: x[:, 0, :, 0], num_classes=classes, loss_name="softmax_xent"
    )
    label = np.eye(classes, dtype=np.float32)[labels] if multi_hot else labels.astype(np.int32)
    batch = {"image": logits[:, None, :, None], "label": label, "weight": np.ones(len(labels))}
    return metric.report(None, [{k: jnp.asarray(v) for k, v in batch.items()}])


@pytest.mark.parametrize("classes", [2, 20, 1000])
def test_confusion_of_few_and_many_classes(tmp_path, texts, classes):
    report = report_of(classes, examples_per_class=3)
    confusion(report, [f"thing {c}" for c in range(classes)], tmp_path / "confusion.png",
              subject="runs/a · digits, test")  # fmt: skip
    assert pixels_of(tmp_path / "confusion.png").std() > 0
    assert {"Confusion matrix", "Reliability", "Most common mistakes"} <= set(texts)
    assert "thing 1 → thing 0" in texts
    (title,) = (text for text in texts if "top-1" in text)
    assert title.startswith(f"runs/a · digits, test\n{3 * classes:,} examples · top-1")
    assert ("top-5" in title) == (classes > 5)


def test_confusion_without_mistakes_and_without_a_matrix(tmp_path, texts):
    names = ["only"]
    confusion(report_of(1, examples_per_class=4), names, tmp_path / "confusion.png")
    assert "None: every example is right." in texts
    with pytest.raises(DataError, match="no confusion matrix"):
        report = report_of(3, examples_per_class=2, multi_hot=True)
        confusion(report, names * 3, tmp_path / "none.png")


def test_blocks_lose_no_mistake():
    shares = np.zeros((7, 7))
    shares[6, 2] = 0.01
    np.testing.assert_array_equal(np.argwhere(_largest_of_blocks(shares, 3)), [[2, 0]])


def test_a_figure_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    write_run(tmp_path / "metrics.jsonl", range(5))
    curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    before = (tmp_path / "curves.png").read_bytes()

    def fail(figure, path, **kwargs):
        path.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="No space"):
        curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes() == before
