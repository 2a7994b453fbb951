"""Publishers' preprocessing equals the outputs of their code; invalid settings are refused."""

import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.recipes import evaluation
from vit_jax.data.transforms import compose
from vit_jax.errors import CheckpointError, DataError
from vit_jax.pretrained.preprocess import (
    Preprocess,
    from_family,
    from_hf,
    from_timm,
    output_size,
)

HF = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SQUARE = {"height": 64, "width": 64}

# Pipeline of the goldens -> the publisher's JSON.
PIPELINES = {
    "hf_vit_pil": HF | HALF | {"image_processor_type": "ViTImageProcessor", "size": SQUARE},
    "hf_bit_pil": HF
    | IMAGENET
    | {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 72},
        "crop_size": SQUARE,
    },
    "hf_siglip_pil": HF | HALF | {"image_processor_type": "SiglipImageProcessor", "size": SQUARE},
    "hf_dinov3": HF | {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": SQUARE},
    "timm_eval": {
        "input_size": [3, 64, 64],
        "crop_pct": 0.9,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    },
}


def levels_apart(got, want, std):
    """Returns the largest difference, in levels of 255."""
    return (abs(got.astype(np.float64) - want) * std).max() * 255


@pytest.mark.parametrize("name", PIPELINES)
def test_the_goldens_pipelines(goldens, manifest, name):
    manifest = manifest["preprocessing"]
    content = PIPELINES[name]
    timm = "input_size" in content
    transforms = from_timm(content) if timm else from_hf(content, image_size=(64, 64))
    assert output_size(transforms) == (64, 64)
    preprocess = Preprocess(transforms, (64, 64))
    folder = goldens / manifest["dir"]
    for file, entry in manifest["images"].items():
        if file == "gray16.png":
            continue  # Pillow converts it to white.
        want = np.load(folder / entry["torch_arrays"])[name]
        got = preprocess(folder / entry["file"])[0]
        apart = levels_apart(got, want, content.get("image_std", [0.225] * 3))
        assert apart < 1e-3, (file, apart)


HF_FOLDERS = (
    "hf_vit/cls",
    "hf_vit/v5_inmemory_keys",
    "hf_deit/distilled",
    "hf_dinov2/cls_mlp",
    "hf_dinov2_with_registers/model",
    "hf_dinov3_vit/mlp",
    "hf_vit_mae/pretraining",
    "hf_siglip/vision",
)


@pytest.mark.parametrize("folder", HF_FOLDERS)
def test_the_goldens_folders(goldens, manifest, folder):
    (entry,) = [model for model in manifest["models"] if model["id"] == folder]
    content = json.loads((goldens / folder / "preprocessor_config.json").read_text())
    want = np.load(goldens / folder / "preproc_expected.npz")["pixel_values_pil"]
    transforms = from_hf(content, image_size=want.shape[:2])
    assert output_size(transforms) == want.shape[:2]
    got = Preprocess(transforms, want.shape[:2])(goldens / entry["preprocessor_expected"]["image"])
    assert got.shape == (1, *want.shape)
    assert levels_apart(got[0], want, content["image_std"]) < 1e-3


def test_all_the_goldens_folders_are_tested(goldens):
    folders = sorted(str(p.parent.relative_to(goldens)) for p in goldens.glob("*/*/preproc_*.npz"))
    assert folders == sorted(HF_FOLDERS)


# --- Settings in the files


@pytest.mark.parametrize(
    ("content", "resize", "crop"),
    [
        ({"size": 48}, {"op": "resize", "size": (48, 48), "method": "bilinear"}, None),
        ({"size": [48, 32]}, {"op": "resize", "size": (48, 32), "method": "bilinear"}, None),
        ({}, {"op": "resize", "size": (96, 64), "method": "bilinear"}, None),
        ({"do_resize": None}, {"op": "resize", "size": (96, 64), "method": "bilinear"}, None),
        (
            {"image_processor_type": "BitImageProcessor"},
            {"op": "resize_small", "size": 96, "method": "bicubic", "long_side": "down"},
            (96, 64),
        ),
        (
            {"feature_extractor_type": "DeiTFeatureExtractor"},
            {"op": "resize", "size": (110, 73), "method": "bicubic"},
            (96, 64),
        ),
        ({"do_resize": False}, None, None),
    ],
)
def test_keys_that_are_missing_or_old(content, resize, crop):
    ops = {op["op"]: op for op in from_hf(content, image_size=(96, 64))}
    assert (ops.get("resize") or ops.get("resize_small")) == resize
    assert ops.get("center_crop", {}).get("size") == crop


def arithmetic(content, level):
    """Computes in float64 what transformers computes from a level."""
    value = float(level)
    if content.get("do_rescale", True):
        value *= content.get("rescale_factor", 1 / 255)
    value -= 1 if content.get("rescale_offset") else 0
    if content.get("do_normalize", True):
        value = (value - content.get("image_mean", [0.5])[0]) / content.get("image_std", [0.5])[0]
    return value


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5, "rescale_offset": True},
        {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False},
        {"image_mean": [0.1] * 3, "image_std": [0.3] * 3},
    ],
)
def test_arithmetic_of_levels(content):
    preprocess = Preprocess(from_hf(content, image_size=(2, 2)), (2, 2))
    for level in (0, 1, 127, 255):
        got = preprocess(np.full((2, 2, 3), level, np.uint8))
        want = arithmetic(content, level)
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)


def test_timm_crop_modes():
    squash = from_timm({"input_size": [3, 32, 48], "crop_mode": "squash", "crop_pct": 0.8})
    assert squash[1] == {"op": "resize", "size": (40, 60), "method": "bicubic"}
    center = from_timm({"input_size": [3, 32, 48], "interpolation": "bilinear"})
    assert center[1]["size"] == (36, 54) and center[1]["long_side"] == "nearest"
    assert output_size(center) == (32, 48)
    with pytest.raises(CheckpointError, match="crop_mode=border"):
        from_timm({"crop_mode": "border"})


@pytest.mark.parametrize(
    ("family", "before", "style"),
    [
        ("google", None, "vision_transformer"),
        ("big_vision", (256, 256), "big_vision"),
        ("siglip", None, "big_vision_squash"),
        ("timm", (248, 248), "timm"),
        ("timm_imagenet", (248, 248), "timm_imagenet"),
        ("deit", (256, 256), "timm_imagenet"),
        ("deit3", (224, 224), "timm_imagenet"),
        ("mae", (256, 256), "timm_imagenet"),
        ("dinov2", (256, 256), "timm_imagenet"),
        ("dinov3", None, "dinov3"),
        ("torchvision", (256, 256), "torchvision"),
        ("torchvision_swag", (224, 224), "timm_imagenet"),
    ],
)
def test_families(family, before, style):
    transforms = from_family(family, image_size=(224, 224))
    assert output_size(transforms) == (224, 224)
    want = compose(evaluation(style, resize=before), image_size=224)
    assert compose(transforms, image_size=9).ops == want.ops


@pytest.mark.parametrize(
    ("family", "side", "before"),
    [("timm", 384, 384), ("mae", 448, 448), ("dinov2", 518, 592), ("deit", 384, 438)],
)
def test_families_at_other_sizes(family, side, before):
    transforms = from_family(family, image_size=(side, side))
    assert transforms[1]["size"] == (before, before)


def test_an_unknown_family_is_refused():
    with pytest.raises(CheckpointError, match='Did you mean "dinov2"'):
        from_family("dino2", image_size=(224, 224))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", 0),
        ("size", 10**9),
        ("size", [224]),
        ("size", {"longest_edge": 224}),
        ("do_pad", True),
        ("resample", 1),
        ("image_mean", [math.nan] * 3),
        ("image_mean", [0.5, 0.5]),
        ("image_std", [0.0, 0.5, 0.5]),
        ("rescale_factor", 0),
        ("do_resize", "yes"),
        ("image_processor_type", "LlavaImageProcessor"),
    ],
)
def test_hostile_preprocessor(key, value):
    content = {"image_processor_type": "DeiTImageProcessor"} | {key: value}
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json: {key}="):
        from_hf(content, image_size=(224, 224))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input_size", [3, 224]),
        ("crop_pct", 0),
        ("interpolation", "lanczos"),
        ("mean", [math.nan] * 3),
    ],
)
def test_hostile_pretrained_cfg(key, value):
    with pytest.raises(CheckpointError, match=f"pretrained_cfg: {key}="):
        from_timm({key: value})


# --- Preprocess


@pytest.fixture
def preprocess():
    return Preprocess(from_hf({"size": 8}, image_size=(8, 8)), (8, 8))


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8)


def test_images_of_every_form_give_the_same(preprocess, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    forms = [pixels, Image.fromarray(pixels), tmp_path / "a.png", str(tmp_path / "a.png")]
    forms.append(Image.open(tmp_path / "a.png"))
    got = preprocess(forms)
    assert got.shape == (5, 8, 8, 3) and got.dtype == np.float32
    for one, form in zip(got, forms, strict=True):
        np.testing.assert_array_equal(one, got[0])
        np.testing.assert_array_equal(preprocess(form), got[:1])
    np.testing.assert_array_equal(preprocess(np.stack([pixels, pixels])), got[:2])


def test_gray(pixels):
    transforms = from_hf({"size": 8}, image_size=(8, 8))
    gray = pixels[..., 0]
    assert Preprocess(transforms, (8, 8))(gray).shape == (1, 8, 8, 3)
    assert Preprocess(transforms, (8, 8), channels=1)(pixels).shape == (1, 8, 8, 1)


def test_exif_orientation_is_applied_where_the_publisher_does(pixels):
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(buffer, "PNG", exif=exif)
    turned = np.rot90(pixels, -1)
    for transforms, want in (
        (from_hf({"size": 8}, image_size=(8, 8)), turned),
        (from_timm({"input_size": [3, 8, 8]}), pixels),
    ):
        preprocess = Preprocess(transforms, (8, 8))
        np.testing.assert_array_equal(preprocess(Image.open(buffer)), preprocess(want.copy()))


def test_bad_images_are_named(preprocess, pixels, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png: Not an image"):
        preprocess([pixels, tmp_path / "bad.png"])
    with pytest.raises(DataError, match=r"none\.png"):
        preprocess(str(tmp_path / "none.png"))
    with pytest.raises(DataError, match=r"image 1: .*uint8"):
        preprocess([pixels, pixels.astype(np.float32)])
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-300])
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(DataError, match="image 0: Broken"):
        preprocess(image)
    with pytest.raises(DataError, match="No image"):
        preprocess([])


def test_for_another_size(pixels):
    content = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 256},
        "crop_size": 224,
    }
    larger = Preprocess(from_hf(content, image_size=(224, 224)), (224, 224)).for_size((448, 448))
    assert larger.transforms[1]["size"] == (512, 512) and larger.image_size == (448, 448)
    assert larger(pixels).shape == (1, 448, 448, 3)
    wide = larger.for_size((224, 448))
    assert wide.transforms[1]["size"] == (256, 512)
    assert wide(pixels).shape == (1, 224, 448, 3)
    family = Preprocess(from_family("google", image_size=(224, 224)), (224, 224))
    assert family.for_size((384, 384))(pixels).shape == (1, 384, 384, 3)


def test_transforms_that_do_not_fit_the_model_are_refused():
    with pytest.raises(CheckpointError, match="cannot be done"):
        Preprocess(({"op": "decode"},), (8, 8))
