"""Exports state the loss of a head, softmax or sigmoid, so probabilities are the same."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from tests.references import reference
from tests.tiny_checkpoints import LABELS, tiny
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.inference.predict import predict
from vit_jax.pretrained.exports import export
from vit_jax.pretrained.inspection import inspect
from vit_jax.pretrained.load import load_pretrained

pytestmark = pytest.mark.medium

SIGMOID, SOFTMAX = "sigmoid_xent", "softmax_xent"


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "x.png"
    pixels = np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def model(loss, **changes):
    pretrained = tiny(labels=LABELS if changes.get("num_classes", 5) == 5 else None, **changes)
    return dataclasses.replace(pretrained, loss=loss)


def shown(checkpoint, image, **options):
    (loaded,) = predict(checkpoint, [str(image)], **options)
    return dict(zip(loaded.classes, loaded.probabilities, strict=True))


def probabilities(pretrained, image):
    logits = np.asarray(
        pretrained.model.apply({"params": pretrained.params}, pretrained.preprocess([image]))[0][0]
    )
    if pretrained.loss == SIGMOID:
        return 1 / (1 + np.exp(-logits))
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


@pytest.mark.parametrize("loss", [SIGMOID, SOFTMAX])
@pytest.mark.parametrize("to", ["hf", "timm", "orbax"])
def test_exports_state_the_loss(to, loss, image, tmp_path):
    pretrained = model(loss)
    export(pretrained, tmp_path / "vit", to=to, change_numerics=True)
    loaded = load_pretrained(tmp_path / "vit")
    assert loaded.loss == loss
    again = shown(tmp_path / "vit", image)
    expected = dict(zip(LABELS, probabilities(loaded, image), strict=True))
    assert again == pytest.approx(expected, abs=1e-5)
    assert (sum(again.values()) == pytest.approx(1, abs=1e-4)) == (loss == SOFTMAX)
    assert ("a sigmoid each" in inspect(str(tmp_path / "vit"))) == (loss == SIGMOID)


@pytest.mark.parametrize("to", ["hf", "timm"])
def test_transformers_pipeline_shows_the_same(to, image, tmp_path):
    transformers = reference("transformers")
    export(model(SIGMOID), tmp_path / "vit", to=to, change_numerics=True)
    pipeline = transformers.pipeline("image-classification", str(tmp_path / "vit"))
    theirs = {entry["label"]: entry["score"] for entry in pipeline(str(image), top_k=5)}
    assert shown(tmp_path / "vit", image) == pytest.approx(theirs, abs=0.03)  # A level or two.


@pytest.mark.parametrize(
    ("problem", "classes", "loss"),
    [
        (None, 5, SOFTMAX),
        ("single_label_classification", 5, SOFTMAX),
        ("multi_label_classification", 5, SIGMOID),
        (None, 1, SIGMOID),
        ("single_label_classification", 1, SIGMOID),
    ],
)
def test_problem_types(problem, classes, loss, tmp_path):
    export(model(SOFTMAX, num_classes=classes), tmp_path / "vit", to="hf", change_numerics=True)
    config = json.loads((tmp_path / "vit/config.json").read_text()) | {"problem_type": problem}
    (tmp_path / "vit/config.json").write_text(json.dumps(config))
    assert load_pretrained(tmp_path / "vit").loss == loss


def test_a_regression_has_no_probabilities(image, tmp_path):
    export(model(""), tmp_path / "vit", to="hf")
    config = json.loads((tmp_path / "vit/config.json").read_text())
    assert config["problem_type"] == "regression"
    assert load_pretrained(tmp_path / "vit").loss == ""
    with pytest.raises(CheckpointError, match="head is for regression"):
        shown(tmp_path / "vit", image)
    with pytest.raises(CheckpointError, match="head is for regression"):
        export(load_pretrained(tmp_path / "vit"), tmp_path / "run", to="orbax")
    (tmp_path / "vit/config.json").write_text(json.dumps(config | {"problem_type": "multilabel"}))
    with pytest.raises(CheckpointError, match=r"problem_type='multilabel'.*multi_label"):
        load_pretrained(tmp_path / "vit")


def test_a_regression_in_a_bare_file_needs_a_hint(tmp_path):
    (note,) = export(
        model("", gelu="tanh", posemb_resize="bilinear_corners"), tmp_path / "vit.npz", to="google"
    )
    assert note.endswith("the hint loss=regression")
    hints = {"num_heads": 4, "image_size": 32, "loss": "regression"}
    assert load_pretrained(tmp_path / "vit.npz", hints=hints).loss == ""


def test_config_json_has_precedence_over_a_hint(tmp_path):
    export(model(SIGMOID), tmp_path / "vit", to="hf")
    assert load_pretrained(tmp_path / "vit", hints={"loss": SIGMOID}).loss == SIGMOID
    for loss in (SOFTMAX, "regression"):
        with pytest.raises(CheckpointError, match=r"contradicts config\.json.*multi_label"):
            load_pretrained(tmp_path / "vit", hints={"loss": loss})


def test_a_single_class_of_a_softmax_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="a sigmoid to a single class"):
        export(model(SOFTMAX, num_classes=1), tmp_path / "vit", to="hf")
    export(model(SIGMOID, num_classes=1), tmp_path / "vit", to="hf")


def test_a_hint_gives_the_loss_of_a_bare_file(image, tmp_path):
    path = tmp_path / "vit.npz"
    pretrained = model(SIGMOID, gelu="tanh", posemb_resize="bilinear_corners")
    (note,) = export(pretrained, path, to="google")
    assert note.endswith("the hint loss=sigmoid_xent")
    hints = {"num_heads": 4, "image_size": 32}
    assert load_pretrained(path, hints=hints).loss == SOFTMAX
    loaded = load_pretrained(path, hints=hints | {"loss": SIGMOID})
    again = sorted(shown(path, image, hints=hints | {"loss": SIGMOID}).values())
    np.testing.assert_allclose(again, np.sort(probabilities(loaded, image)), atol=1e-5)
    with pytest.raises(ConfigError, match="loss='sigmoid': Did you mean \"sigmoid_xent\""):
        load_pretrained(path, hints=hints | {"loss": "sigmoid"})
