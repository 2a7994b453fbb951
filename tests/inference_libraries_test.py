"""Evaluations and predictions equal those of transformers' and timm's own pipelines, on 300 images.

The models have random weights and the real preprocessing of their libraries.
"""

import numpy as np
import pytest
from PIL import Image

from tests.images import make
from tests.references import randomise, reference
from vit_jax.inference.evaluate import evaluate
from vit_jax.inference.predict import Predictor

pytestmark = pytest.mark.slow  # Takes a minute.

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64,
         "patch_size": 16, "intermediate_size": 80}  # fmt: skip
ALLOWED = 1e-5  # Of a probability.
CLASSES = {"goldfish": "flower", "n01440764": "portrait", "tiger_shark": "temple"}
NAMES = ["goldfish", "tench, Tinca tinca", "tiger shark", *(f"thing {k}" for k in range(7))]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Photographs in every format, 100 of each class; the paths in the order of the labels.

    Without those of 16 bits, which both libraries take for white.
    """
    folder = tmp_path_factory.mktemp("data") / "images"
    make(folder, each=116)
    for name, made in CLASSES.items():
        (folder / made).rename(folder / name)
        files = sorted((folder / name).iterdir())
        kept = [path for i, path in enumerate(files) if i % 8 != 6][:100]
        for path in set(files) - set(kept):
            path.unlink()
    return folder, [path for name in CLASSES for path in sorted((folder / name).iterdir())]


def transformers_model(folder, labels, processor, **size):
    transformers = reference("transformers")
    config = transformers.ViTConfig(**SIZES, id2label=dict(enumerate(labels)))
    randomise(transformers.ViTForImageClassification(config)).save_pretrained(folder)
    getattr(transformers, processor)(**size).save_pretrained(folder)
    return transformers


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def ours(checkpoint, paths, num_classes):
    """Probabilities by the streaming prediction, in the order of the classes.

    NaN for ImageNet's two cranes, which have one name.
    """
    predictor = Predictor(str(checkpoint), list(map(str, paths)), top_k=num_classes)
    names, rows = predictor.class_names, []
    for prediction in predictor.predictions():
        assert not prediction.error
        shares = dict(zip(prediction.classes, prediction.probabilities, strict=True))
        rows.append([shares[n] if names.count(n) == 1 else np.nan for n in names])
    return np.array(rows)


def compare(evaluation, got, theirs, *, outputs):
    """Checks probabilities, and the accuracy, whose classes are these outputs."""
    difference = np.nanmax(np.abs(got - theirs))
    print(f"largest difference of a probability: {difference:.2e}")
    assert difference < ALLOWED
    np.testing.assert_array_equal(np.nan_to_num(got).argmax(axis=1), theirs.argmax(axis=1))
    labels = np.repeat(outputs, 100)
    assert evaluation.count == 300
    assert evaluation.top1 == (theirs.argmax(axis=1) == labels).mean()
    alone = theirs[:, sorted(outputs)].argmax(axis=1) == np.searchsorted(sorted(outputs), labels)
    assert evaluation.results["matched_only"].report.top1 == alone.mean()


SETTINGS = {
    # The processors of torchvision differ by a level in some pixels; those of Pillow do not.
    "ViT": ("ViTImageProcessorPil", {"size": {"height": 64, "width": 64}}),
    "DINOv2's": (
        "BitImageProcessorPil",
        {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}},
    ),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_transformers_pipeline(kind, images, tmp_path):
    import torch

    folder, paths = images
    processor, size = SETTINGS[kind]
    transformers = transformers_model(tmp_path, NAMES, processor, **size)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    pipeline = transformers.pipeline(
        "image-classification", str(tmp_path), image_processor=processor
    )
    with torch.no_grad():
        answers = pipeline(list(map(str, paths)), top_k=10)
    theirs = np.array(
        [[{a["label"]: a["score"] for a in row}[n] for n in NAMES] for row in answers]
    )
    got = ours(tmp_path, paths, 10)
    compare(evaluate(str(tmp_path), folder), got, theirs, outputs=(0, 1, 2))


def test_timms_transform(images, tmp_path):
    timm = reference("timm")
    import torch

    folder, paths = images
    settings = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 1000}
    model = randomise(timm.create_model("vit_base_patch16_224", pretrained=False, **settings))
    config = {"input_size": (3, 64, 64), "num_classes": 1000}
    model.pretrained_cfg |= config
    timm.models._hub.save_for_hf(model, tmp_path, model_args=settings)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    with torch.no_grad():
        theirs = softmax(model(batch).double().numpy())
    evaluation = evaluate(str(tmp_path), folder, method="classifier")
    got = ours(tmp_path, paths, 1000)
    compare(evaluation, got, theirs, outputs=(1, 0, 3))
