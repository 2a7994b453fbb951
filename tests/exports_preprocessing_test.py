"""Exported preprocessing: the library computes the same pixels, or the export is refused."""

import dataclasses
import json

import numpy as np
import pytest

from tests import odd_images
from tests.tiny_checkpoints import tiny
from vit_jax.data.transforms import compose
from vit_jax.errors import CheckpointError, DataError
from vit_jax.pretrained.exports import export
from vit_jax.pretrained.exports.preprocessing import to_hf, to_timm
from vit_jax.pretrained.load import RUN_FORMAT, load_pretrained
from vit_jax.pretrained.preprocess import Preprocess, from_hf, from_timm, published_processor

pytestmark = pytest.mark.medium

LEVEL = 1.01 / 255  # One of 256 levels, with some rounding.


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    return odd_images.write(tmp_path_factory.mktemp("odd"))


def decode(**options):
    return {"op": "decode", **options}


def squash(size=None, **options):
    return {"op": "resize", **options} | ({"size": size} if size else {})


def small(size=None, **options):
    options = {"long_side": "down", **options}
    return {"op": "resize_small", **options} | ({"size": size} if size else {})


def crop(size=None, **options):
    return {"op": "center_crop", **options} | ({"size": size} if size else {})


RANGE = {"op": "value_range"}
HALF_EVEN = {"offset": "half_even"}
SIZE = (16, 16)
# Both libraries can express these; timm ignores EXIF and rounds the crop's offset half to even.
BOTH = {
    "sizes left out": (SIZE, squash(), RANGE),
    "bicubic": (SIZE, squash(16, method="bicubic"), RANGE),
    "not square": ((16, 24), squash(), RANGE),
    "black and white -3 and 10": (SIZE, squash(), RANGE | {"vmin": -3.0, "vmax": 10.0}),
    "ImageNet's statistics": (SIZE, squash(), {"op": "normalize"}),
    "one mean for all": (SIZE, squash(), {"op": "normalize", "mean": (0.4,), "std": (0.3,)}),
    "squashed, then cut": (SIZE, squash(18), crop(), RANGE),
    "operations that change nothing": (
        SIZE, squash(), {"op": "grayscale_to_rgb"}, {"op": "pad"}, crop(), RANGE,
    ),
}  # fmt: skip
HF = BOTH | {
    "shorter side": (SIZE, small(18), crop(), RANGE),
    "shorter side, bicubic": (SIZE, small(method="bicubic"), crop(), RANGE),
    "squashed to odd margins": (SIZE, squash((19, 21)), crop(), RANGE),
    "not rounded": (SIZE, squash(rounding="none"), RANGE),
    "not rounded, cut": (SIZE, small(18, rounding="none", method="bicubic"), crop(), RANGE),
    "padded": (SIZE, squash(12), {"op": "pad"}, RANGE),
    "padded and cut, no resize": (SIZE, {"op": "pad"}, crop(), RANGE),
    "not square, cut": ((16, 24), squash((20, 30)), crop(), RANGE),
}
TIMM = BOTH | {
    "shorter side": (SIZE, small(18, method="bicubic"), crop(**HALF_EVEN), RANGE),
    "not square, covered": (
        (16, 24), small((18, 27), long_side="nearest"), crop(**HALF_EVEN), RANGE,
    ),
}  # fmt: skip
CASES = [("hf", name) for name in HF] + [("timm", name) for name in TIMM]


def exported(to, preprocess):
    return to_hf(preprocess, processor="ViT") if to == "hf" else to_timm(preprocess)


def library(to, content, folder, notes=()):
    """Returns the library's preprocessing; with Pillow if a note of the export requires it."""
    if to == "hf":
        options = {"backend": "pil"} if any('backend="pil"' in note for note in notes) else {}
        return odd_images.by_transformers(content, folder, **options)
    return odd_images.by_timm(content)


def largest_difference(preprocess, prepare, content, files):
    """Returns the largest difference in an image, in units of white minus black."""
    std = np.array(content.get("image_std", content.get("std")))
    largest = 0.0
    for name, path in files.items():
        if name == "gray16.png":  # Pillow converts it to white before either library gets it.
            continue
        ours, theirs = preprocess([path])[0], prepare(path)
        assert ours.shape == theirs.shape, name
        largest = max(largest, float((np.abs(ours - theirs) * std).max()))
    return largest


@pytest.mark.parametrize(("to", "name"), CASES)
def test_the_library_computes_the_same_pixels(to, name, odd, tmp_path):
    size, *ops = (HF if to == "hf" else TIMM)[name]
    preprocess = Preprocess((decode(exif=to == "hf"), *ops), size)
    content, reasons = exported(to, preprocess)
    assert not reasons.impossible and not reasons.preprocessing
    assert largest_difference(preprocess, library(to, content, tmp_path), content, odd) <= LEVEL
    content = json.loads(json.dumps(content))
    again = from_hf(content, image_size=size) if to == "hf" else from_timm(content)
    again = Preprocess(again, size)
    for path in odd.values():
        np.testing.assert_allclose(again([path]), preprocess([path]), atol=2e-6)


@pytest.mark.parametrize("side", [96, 224])
def test_resized_images_are_pillows_and_the_note_says_so(side, odd, tmp_path):
    for method in ("bilinear", "bicubic"):
        preprocess = Preprocess((decode(), squash(method=method), RANGE), (side, side))
        content, reasons = to_hf(preprocess, processor="ViT")
        (note,) = reasons.notes
        assert 'backend="pil"' in note
        prepare = library("hf", content, tmp_path, reasons.notes)
        assert largest_difference(preprocess, prepare, content, odd) < 1e-6
    preprocess = Preprocess((decode(), squash(), RANGE), (side, side))
    content, _ = to_hf(preprocess, processor="ViT")
    assert largest_difference(preprocess, library("hf", content, tmp_path), content, odd) <= LEVEL


def test_a_crop_alone_is_cut_by_transformers_too(odd, tmp_path):
    preprocess = Preprocess((decode(), crop(), RANGE), SIZE)
    content, reasons = to_hf(preprocess, processor="ViT")
    large = {name: odd[name] for name in ("ordinary.png", "gray.png", "palette.gif", "turned.jpg")}
    assert content["do_resize"] is False and not reasons.preprocessing
    assert (
        largest_difference(
            preprocess, odd_images.by_transformers(content, tmp_path), content, large
        )
        < 1e-6
    )
    assert "smaller than the crop" in reasons.notes[0]
    with pytest.raises(DataError, match="center_crop needs 16x16"):
        preprocess([odd["tiny.png"]])
    assert to_timm(preprocess)[1].impossible


REFUSED = {
    "gray and back": (
        ("hf", "timm"), (decode(), {"op": "rgb_to_grayscale"}, {"op": "grayscale_to_rgb"},
                         squash(), RANGE), "rgb_to_grayscale",
    ),
    "decoded to gray": (
        ("hf", "timm"), (decode(channels=1), {"op": "grayscale_to_rgb"}, squash(), RANGE),
        "decode to 1 channels for a model of 3",
    ),
    "padded in white": (
        ("hf", "timm"), (decode(), squash(12), {"op": "pad", "fill": 255}, RANGE), "fill=255",
    ),
    "padded": (("timm",), (decode(), squash(12), {"op": "pad"}, RANGE), "timm does not"),
    "cut, then resized": (("hf", "timm"), (decode(), crop(30), squash(), RANGE), "another resize"),
    "random": (("hf", "timm"), (decode(), squash(), {"op": "flip_lr"}, RANGE), "flip_lr"),
    "covering what is no square": (
        ("hf",), (decode(), small((18, 27)), crop(), RANGE), "covers squares only",
    ),
    "other shares of height and width": (
        ("timm",), (decode(), squash((18, 40)), crop(), RANGE), "crop_pct",
    ),
}  # fmt: skip
APPROXIMATE = {
    "not antialiased": (("hf", "timm"), (decode(), squash(antialias=False), RANGE), "antialias"),
    "nearest": (("hf", "timm"), (decode(), squash(method="nearest"), RANGE), "for ties"),
    "not rounded": (("timm",), (decode(), squash(rounding="none"), RANGE), "256 levels"),
    "longer side": (
        ("hf", "timm"), (decode(), small(long_side="nearest"), crop(), RANGE), "long_side",
    ),
    "corner of the crop, transformers": (
        ("hf",), (decode(), small(18), crop(**HALF_EVEN), RANGE), "offset",
    ),
    "corner of the crop, timm": (("timm",), (decode(), small(18), crop(), RANGE), "offset"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*REFUSED, *APPROXIMATE])
def test_exports_with_other_pixels_are_refused(name, tmp_path):
    libraries, transforms, reason = (REFUSED | APPROXIMATE)[name]
    for to in libraries:
        _, reasons = exported(to, Preprocess(transforms, SIZE))
        assert any(
            reason in r for r in (reasons.preprocessing, reasons.impossible)[name in REFUSED]
        )
    pretrained = tiny(
        image_size=SIZE, posemb_resize="bicubic" if to == "hf" else "bicubic_antialias"
    )
    preprocess = dataclasses.replace(pretrained.preprocess, transforms=transforms)
    pretrained = dataclasses.replace(pretrained, preprocess=preprocess)
    with pytest.raises(CheckpointError, match=f"cannot be written in the format {to}") as refused:
        export(pretrained, tmp_path / "vit", to=to, change_numerics=name in REFUSED)
    assert reason in str(refused.value)
    assert ("--change_numerics" in str(refused.value)) == (name in APPROXIMATE)


@pytest.mark.parametrize(("to", "exif"), [("timm", True), ("hf", False)])
def test_another_exif_orientation_is_a_note(to, exif, odd, tmp_path):
    preprocess = Preprocess((decode(exif=exif), squash(), RANGE), SIZE)
    content, reasons = exported(to, preprocess)
    assert not reasons.preprocessing and "EXIF" in reasons.notes[-1]
    prepare = library(to, content, tmp_path)
    files = {"ordinary.png": odd["ordinary.png"]}
    assert largest_difference(preprocess, prepare, content, files) <= LEVEL
    turned = {"turned.jpg": odd["turned.jpg"]}
    assert largest_difference(preprocess, prepare, content, turned) > 10 * LEVEL


def test_a_refusal_says_what_to_pass_and_whether_outputs_differ(tmp_path):
    """The owner of a published checkpoint cannot change its settings; that of a run can."""
    published = tiny(image_size=SIZE, posemb_resize="bicubic_antialias")
    transforms = (decode(exif=True), squash(rounding="down"), RANGE)
    preprocess = dataclasses.replace(published.preprocess, transforms=transforms)
    published = dataclasses.replace(published, preprocess=preprocess)
    message = (
        "This model cannot be written in the format timm without differences.\n"
        "In its preprocessing:\n"
        "  timm rounds to the nearest level; the resize has rounding='down', not 'nearest': pixels "
        "differ by at most a level\n"
        "Its outputs for the same pixels are equal.\n"
        "Notes, which alone prevent nothing:\n"
        "  timm does not rotate images by their EXIF orientation; decode has exif=True\n"
        "  images of 16 bits: timm gets them clipped to 255, nearly white; convert them to 8 bits "
        "first\n"
        "Pass change_numerics=True (--change_numerics) to write it all the same, with these "
        "differences."
    )
    for model, end in (
        (published, ""),
        (dataclasses.replace(published, format=RUN_FORMAT), " A finished run can be written in no "
         "other way; to avoid the differences, train a new run with the values named above in "
         "data.eval_transforms and model."),
    ):  # fmt: skip
        with pytest.raises(CheckpointError) as refused:
            export(model, tmp_path / "vit", to="timm")
        assert str(refused.value) == message + end
    # The same texts when it is written.
    notes = export(published, tmp_path / "vit", to="timm", change_numerics=True)
    assert len(notes) == 3 and all(f"  {note}\n" in message for note in notes)


def random_transforms(rng):
    """Returns a random pipeline of valid operations, sizes and options."""
    pick = lambda *values: values[rng.integers(len(values))]  # noqa: E731
    size = (int(rng.integers(4, 25)), int(rng.integers(4, 25))) if rng.random() < 0.4 else (16, 16)
    larger = tuple(side + int(rng.integers(0, 6)) for side in size)
    options = {"method": pick("nearest", "bilinear", "bilinear", "bicubic", "area")}
    options |= {"rounding": "none"} if rng.random() < 0.2 else {}
    options |= {"antialias": False} if rng.random() < 0.1 else {}
    cut = [crop(size, offset=pick("down", "half_even"))]
    padded = [{"op": "pad", "size": size}, *cut]
    ops = pick(
        [squash(size, **options)],
        [squash(larger, **options), *cut],
        [small(max(larger), **options), *cut],
        [small(larger, long_side=pick("down", "nearest"), **options), *cut],
        padded,
        [squash(tuple(side // 2 + 1 for side in size), **options), *padded],
    )
    low = float(rng.normal())
    mean, std = rng.uniform(0, 1, 3).tolist(), rng.uniform(0.1, 1, 3).tolist()
    last = pick(
        RANGE,
        RANGE | {"vmin": low, "vmax": low + float(rng.uniform(0.1, 3))},
        {"op": "normalize", "mean": tuple(mean), "std": tuple(std)},
    )
    return size, (decode(exif=pick(True, False)), *ops, last)


@pytest.mark.parametrize(
    ("seeds", "least"),
    [(range(60), 4), pytest.param(range(60, 4000), 200, marks=[pytest.mark.campaign])],
)
def test_random_pipelines(odd, tmp_path, seeds, least):
    """Pipelines that a library can express give the same pixels there."""
    files = {name: odd[name] for name in ("ordinary.png", "wide.png", "turned.jpg")}
    counts = {"hf": 0, "timm": 0}
    for seed in seeds:
        size, transforms = random_transforms(np.random.default_rng(seed))
        preprocess = Preprocess(transforms, size)
        for to in counts:
            content, reasons = exported(to, preprocess)
            if reasons.impossible or reasons.preprocessing:
                continue
            notes = [note for note in reasons.notes if "EXIF" not in note]
            if to == "hf" and len(notes) == 2:
                continue  # It needs Pillow, with which transformers pads on the other side.
            counts[to] += 1
            prepare = library(to, content, tmp_path, reasons.notes)
            same_exif = notes == list(reasons.notes)
            compared = {k: v for k, v in files.items() if same_exif or k != "turned.jpg"}
            difference = largest_difference(preprocess, prepare, content, compared)
            assert difference <= LEVEL, (seed, to, transforms)
    assert min(counts.values()) >= least, counts


# ------------------------------------------------------------------------------ reading processors


FAMILIES = {
    "vit": ([squash(SIZE)], RANGE),
    "ijepa": ([squash(SIZE)], RANGE),
    "siglip_vision_model": ([squash(SIZE, method="bicubic")], RANGE),
    "vit_msn": ([squash(SIZE)], {"op": "normalize"}),
    "dinov3_vit": ([squash(SIZE, rounding="none")], {"op": "normalize"}),
    "deit": ([squash((18, 18), method="bicubic"), crop(SIZE)], {"op": "normalize"}),
    "vit_mae": ([small(18, method="bicubic"), crop(SIZE)], {"op": "normalize"}),
    "dinov2": ([small(18, method="bicubic"), crop(SIZE)], {"op": "normalize"}),
    "dinov2_with_registers": ([small(18, method="bicubic"), crop(SIZE)], {"op": "normalize"}),
}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_folder_without_a_processor_gets_that_of_its_family(model_type):
    content = published_processor(model_type, image_size=SIZE)
    ops, last = FAMILIES[model_type]
    expected = compose((decode(), *ops, last), image_size=SIZE).ops
    assert compose(from_hf(content, image_size=SIZE), image_size=SIZE).ops == expected


def test_dinov2_without_a_processor_is_evaluated_at_224():
    content = published_processor("dinov2", image_size=(518, 518))
    assert content["size"] == {"shortest_edge": 256} and content["crop_size"] == [224, 224]


@pytest.mark.parametrize(
    "model_type", ["vit", "deit", "dinov2", "dinov3_vit", "siglip_vision_model"]
)
def test_a_processor_without_a_name_is_of_the_class_of_its_family(model_type, odd, tmp_path):
    named = {"siglip_vision_model": "siglip"}.get(model_type, model_type)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": named}))
    content = {"size": {"height": 20, "width": 20}, "crop_size": {"height": 16, "width": 16}}
    preprocess = from_hf(content, image_size=SIZE, model_type=model_type)
    size = (16, 16) if any(op["op"] == "center_crop" for op in preprocess) else (20, 20)
    prepare = odd_images.by_transformers(content, tmp_path)
    std = {"image_std": [1.0] * 3}
    few = {name: odd[name] for name in ("ordinary.png", "tiny.png")}
    assert largest_difference(Preprocess(preprocess, size), prepare, std, few) <= LEVEL / 0.224


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def folder(tmp_path):
    export(tiny(posemb_resize="bicubic"), tmp_path / "vit", to="hf")
    return tmp_path / "vit"


def test_the_image_size_follows_the_processor(folder, odd):
    own = load_pretrained(folder)
    change_json(folder / "preprocessor_config.json", size={"height": 16, "width": 24})
    loaded = load_pretrained(folder)
    assert loaded.config.image_size == loaded.preprocess.image_size == (16, 24)
    assert loaded.params["pos_embedding"].shape[1] == 7 and loaded.published == own.config
    assert any("16x24, which its preprocessing makes" in note for note in loaded.notes)
    same = load_pretrained(folder, image_size=(16, 24))
    np.testing.assert_array_equal(same.params["pos_embedding"], loaded.params["pos_embedding"])
    stored = load_pretrained(folder, image_size=32)
    assert stored.config == own.config and not any("follow" in note for note in stored.notes)
    images = loaded.preprocess([odd["ordinary.png"]])
    assert loaded.model.apply({"params": loaded.params}, images)[0].shape == (1, 5)


def test_a_crop_of_part_of_a_patch_is_scaled_with_a_note(folder):
    change_json(folder / "preprocessor_config.json", size={"height": 30, "width": 30})
    loaded = load_pretrained(folder)
    assert loaded.config.image_size == loaded.preprocess.image_size == (32, 32)
    assert any("30x30 pixels, which its patches do not divide" in note for note in loaded.notes)


def test_a_processor_that_was_saved_with_a_tokenizer_is_read(folder):
    saved = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    assert "no preprocessor_config.json" in " ".join(load_pretrained(folder).notes)
    nested = {"image_processor": saved | {"image_mean": [0.1] * 3}}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    assert load_pretrained(folder).preprocess.transforms[-1]["mean"] == (0.1, 0.1, 0.1)
