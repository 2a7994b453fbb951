"""Transforms: references' outputs, a second formulation of each, and common invariants."""

import dataclasses
import functools
import pickle

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import recipes
from vit_jax.data.op import FLOAT, FLOAT_255, UINT8
from vit_jax.data.resample import resize
from vit_jax.data.transforms import OPS, compose
from vit_jax.errors import ConfigError, DataError

DECODE = {"op": "decode"}

# Operations, with arguments that work for any image, channels and size.
SAMPLES = {
    "decode": {},
    "resize": {"size": (9, 7)},
    "resize_small": {"size": (9, 7)},
    "center_crop": {"size": 1},
    "pad": {"size": (9, 7)},
    "random_crop": {"size": (5, 3), "padding": 2},
    "random_resized_crop": {"size": (9, 7)},
    "flip_lr": {},
    "random_erasing": {"prob": 1.0},
    "randaugment": {},
    "three_augment": {},
    "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "grayscale_to_rgb": {},
    "rgb_to_grayscale": {},
    "value_range": {},
    "normalize": {"mean": (0.5,), "std": (0.25,)},
}


def run(op, image, *, rng=0, **arguments):
    """Applies one operation to a uint8 image."""
    transforms = ({"op": op, **arguments},)
    if op != "decode":
        transforms = ({"op": "decode", "channels": image.shape[-1]}, *transforms)
    transform = compose(transforms, image_size=arguments.get("size", 8))
    return transform({"image": image}, np.random.default_rng(rng))["image"]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


# --- The references.

# Name in the goldens -> our transforms.
PIPELINES = {
    "vt_eval": recipes.evaluation("vision_transformer"),
    "bv_resize_small_crop": recipes.evaluation("big_vision", resize=72),
    "bv_resize_small_crop_precise": recipes.evaluation("big_vision", resize=72),
    "bv_resize": recipes.evaluation("big_vision_squash"),
    "bv_resize_small_aa_bilinear": (
        DECODE,
        {"op": "resize_small", "size": 72, "rounding": "down"},
        {"op": "center_crop"},
        {"op": "value_range"},
    ),
    "hf_vit_pil": recipes.evaluation("hf_vit"),
    "hf_vit_torchvision": recipes.evaluation("hf_vit"),
    "hf_bit_pil": recipes.evaluation("hf_dinov2", resize=72),
    "hf_bit_torchvision": recipes.evaluation("hf_dinov2", resize=72),
    "hf_siglip_pil": recipes.evaluation("hf_siglip"),
    "hf_dinov3": recipes.evaluation("hf_dinov3"),
    "timm_eval": recipes.evaluation("timm", resize=71),
    "torchvision_preset": recipes.evaluation("torchvision", resize=72),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_evaluation_equals_the_references(goldens, manifest, name):
    manifest = manifest["preprocessing"]
    pipeline = manifest["pipelines"][name]
    transform = compose(PIPELINES[name], image_size=manifest["output_size"])
    unrounded = compose(
        [
            entry | {"rounding": "none"} if "rounding" in entry else entry
            for entry in PIPELINES[name]
        ],
        image_size=manifest["output_size"],
    )
    folder = goldens / manifest["dir"]
    for file, entry in manifest["images"].items():
        arrays = np.load(folder / entry[pipeline["file"]])
        image = (folder / entry["file"]).read_bytes()
        if pipeline["file"] == "tf_arrays" and not name.endswith("precise"):
            image = arrays[
                "decoded_tf_jpeg_op"
            ]  # TensorFlow's fast JPEG decoder gives other pixels.
        elif pipeline["file"] == "torch_arrays" and file == "gray16.png":
            continue  # Pillow clipped it to white.
        got = transform({"image": image}, np.random.default_rng(0))["image"]
        assert got.dtype == np.float32
        if name.endswith("torchvision"):
            # Its own uint8 kernels differ from Pillow's by one level in some pixels.
            assert abs(got - arrays[name]).max() < 1.01 / 255 / 0.224
        elif name.startswith("bv"):
            # It rounds float32 sums down: one level less where ours are integers, and only there.
            exact = unrounded({"image": image}, np.random.default_rng(0))["image"]
            levels = (exact.astype(np.float64) + 1) * 127.5
            apart = abs(got - arrays[name])
            assert apart.max() < 1.001 * 2 / 255, file
            assert abs(levels - np.round(levels))[apart > 1e-6].max(initial=0.0) < 2e-3, file
            off = entry["values_one_level_off_vs_float64"].get(name)
            assert off is None or (apart > 1e-6).mean() <= max(10 * off, 0.005), file
        else:
            np.testing.assert_allclose(got, arrays[name], rtol=0, atol=pipeline["tol"])


def test_all_the_references_are_tested(manifest):
    assert sorted(manifest["preprocessing"]["pipelines"]) == sorted(PIPELINES)


# --- Resizing.


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(5, 4), (40, 9), (31, 70), (1, 1)])
def test_our_resampling_agrees_with_pillows(method, size):
    image = noise(23, 31, 3) // 2 + 64  # The cubic kernel overshoots; this range avoids clipping.
    ours = resize(image, size, method=method, rounding="none")
    pillows = resize(image, size, method=method)  # Fixed point, and rounded between the axes.
    assert abs(ours - pillows).max() < 1.3


def test_bilinear_without_antialias_interpolates_at_pixel_centres():
    image = noise(6, 9, 2, seed=1)[..., :1]
    got = resize(image, (11, 4), antialias=False, rounding="none")
    y = np.clip((np.arange(11) + 0.5) * 6 / 11 - 0.5, 0, 5)
    x = np.clip((np.arange(4) + 0.5) * 9 / 4 - 0.5, 0, 8)
    rows = np.stack([np.interp(y, np.arange(6), image[:, j, 0]) for j in range(9)], axis=1)
    want = np.stack([np.interp(x, np.arange(9), row) for row in rows])
    np.testing.assert_allclose(got[..., 0], want, rtol=0, atol=1e-4)


def test_area_is_the_mean_over_the_area():
    image = noise(12, 30, 3)
    want = image.reshape(4, 3, 10, 3, 3).mean(axis=(1, 3))
    got = resize(image, (4, 10), method="area", rounding="none")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    finer = np.repeat(np.repeat(image, 7, axis=0), 3, axis=1)  # 84 x 90: a multiple of both.
    want = finer.reshape(7, 12, 9, 10, 3).mean(axis=(1, 3))
    got = resize(image, (7, 9), method="area", rounding="none")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_nearest_repeats_pixels():
    image = noise(3, 4, 1)
    want = np.repeat(np.repeat(image, 3, axis=0), 2, axis=1)
    np.testing.assert_array_equal(resize(image, (9, 8), method="nearest"), want)


@pytest.mark.parametrize("rounding", ["nearest", "down", "none"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "area"])
def test_flat_images_do_not_change(method, antialias, rounding):
    for level in (0, 1, 100, 255):
        flat = np.full((13, 29, 3), level, np.uint8)
        got = resize(flat, (7, 50), method=method, antialias=antialias, rounding=rounding)
        assert got.dtype == (np.float32 if rounding == "none" else np.uint8)
        np.testing.assert_allclose(got, level, rtol=0, atol=1e-4 if rounding == "none" else 0)


@pytest.mark.parametrize(
    ("shape", "size", "long_side", "want"),
    [
        ((100, 151), 72, "nearest", (72, 109)),  # 108.72
        ((100, 151), 72, "down", (72, 108)),
        ((151, 100), 72, "down", (108, 72)),
        ((100, 200), (30, 80), "nearest", (40, 80)),
        ((100, 200), (60, 80), "nearest", (60, 120)),
        ((1, 1000), 8, "nearest", (8, 8000)),
        ((5, 5), 8, "down", (8, 8)),
    ],
)
def test_resize_small_covers_the_size(shape, size, long_side, want):
    got = run("resize_small", noise(*shape, 3), size=size, long_side=long_side)
    assert got.shape[:2] == want


# --- Cropping, padding, flipping, erasing.


def test_center_crop_and_its_two_offsets():
    image = noise(11, 12, 3)
    np.testing.assert_array_equal(run("center_crop", image, size=4), image[3:7, 4:8])
    got = run("center_crop", image, size=4, offset="half_even")  # 3.5 -> 4, as torchvision.
    np.testing.assert_array_equal(got, image[4:8, 4:8])
    with pytest.raises(DataError, match=r"center_crop needs 20x20.*11x12.*resize_small"):
        run("center_crop", image, size=20)


def test_pad_centres_the_image():
    image = noise(4, 9, 1)
    got = run("pad", image, size=(7, 6), fill=9)
    assert got.shape == (7, 9, 1)
    np.testing.assert_array_equal(got[1:5], image)
    assert (np.delete(got, slice(1, 5), axis=0) == 9).all()


@pytest.mark.medium
def test_random_crop_is_uniform():
    image = np.arange(36, dtype=np.uint8).reshape(6, 6, 1) + 1
    padded = np.pad(image, [(2, 2), (2, 2), (0, 0)])
    crops = {padded[y : y + 6, x : x + 6].tobytes(): 0 for y in range(5) for x in range(5)}
    transform = compose(
        ({"op": "decode", "channels": 1}, {"op": "random_crop", "padding": 2}), image_size=6
    )
    rng = np.random.default_rng(0)
    for _ in range(2500):
        crops[transform({"image": image}, rng)["image"].tobytes()] += 1
    assert len(crops) == 25
    assert min(crops.values()) > 60 and max(crops.values()) < 145  # 100 expected, deviation 10.


def test_random_crop_reflects():
    image = noise(6, 6, 3)
    padded = np.pad(image, [(3, 3), (3, 3), (0, 0)], mode="reflect")
    got = run("random_crop", image, size=12, padding=3, mode="reflect")
    np.testing.assert_array_equal(got, padded)


def crops_of_coordinates(n, *, height, width, **arguments):
    """Returns boxes (y, x, h, w) of random resized crops of an image of coordinates."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    image = np.stack([y, x, x], axis=-1)
    op = OPS["random_resized_crop"](size=(256, 256), method="nearest", **arguments)
    rng = np.random.default_rng(0)
    boxes = []
    for _ in range(n):
        crop = op(image, rng)
        low, high = crop[0, 0, :2], crop[-1, -1, :2]  # With nearest, coordinates never decrease.
        boxes.append((*low, *(high.astype(int) - low + 1)))
    return np.array(boxes, float).T


@pytest.mark.medium
def test_random_resized_crop_has_the_distribution_it_states():
    y, x, h, w = crops_of_coordinates(
        1500, height=200, width=200, area=(0.05, 0.5), ratio=(3 / 4, 4 / 3)
    )
    area, log_ratio = h * w / 200**2, np.log(w / h)
    edge = np.log(4 / 3)
    assert area.min() > 0.047 and area.max() < 0.51  # Sides are whole pixels.
    assert abs(log_ratio).max() < edge + 0.03
    # All of these fit into the image, so none is rejected: both are uniform.
    assert kolmogorov_smirnov((area - 0.05) / 0.45) < 0.05
    assert kolmogorov_smirnov((log_ratio + edge) / (2 * edge)) < 0.05
    assert abs(np.corrcoef(area, log_ratio)[0, 1]) < 0.08
    assert kolmogorov_smirnov((y + 0.5) / (200 - h + 1)) < 0.05
    assert kolmogorov_smirnov((x + 0.5) / (200 - w + 1)) < 0.05


def kolmogorov_smirnov(samples):
    """Distance to the uniform distribution over [0, 1]; .04 is exceeded once in 70 for 1500."""
    samples = np.sort(samples)
    return abs(samples - (np.arange(len(samples)) + 0.5) / len(samples)).max()


def test_random_resized_crop_of_a_strip_falls_back_to_the_centre():
    y, x, h, w = crops_of_coordinates(3, height=4, width=200, area=(0.9, 1.0))
    assert (y == 0).all() and (h == 4).all() and (w == 5).all()  # 4 * 4 / 3, rounded.
    assert (x == 97).all()


@pytest.mark.medium
def test_flips_half_of_the_images():
    image = noise(3, 5, 3)
    flipped = [(run("flip_lr", image, rng=i) == image[:, ::-1]).all() for i in range(400)]
    assert all((run("flip_lr", image, rng=i) == image).all() != f for i, f in enumerate(flipped))
    assert 160 < sum(flipped) < 240
    np.testing.assert_array_equal(run("flip_lr", image, prob=1.0), image[:, ::-1])


@pytest.mark.parametrize("fill", ["noise", 7])
def test_random_erasing_covers_one_rectangle(fill):
    image = np.zeros((80, 100, 3), np.uint8)
    areas, untouched = [], 0
    for i in range(300):
        got = run("random_erasing", image, rng=i, fill=fill)
        rows, columns = np.nonzero(got.any(axis=(1, 2)))[0], np.nonzero(got.any(axis=(0, 2)))[0]
        if not len(rows):
            untouched += 1
            continue
        box = got[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        areas.append(box.size / image.size)
        assert 0.28 < box.shape[1] / box.shape[0] < 3.6
        if fill == 7:
            assert (box == 7).all()
        else:
            assert abs(box.mean() - 127.5) < 20
    assert 195 < untouched < 255  # 225 expected, deviation 7.5.
    assert min(areas) > 0.015 and max(areas) < 0.35
    assert not image.any()  # The caller's array does not change.


# --- Color.


def test_color_jitter_draws_from_the_stated_range():
    image = np.full((2, 2, 3), 100, np.uint8)
    levels = [run("color_jitter", image, rng=i, brightness=0.5)[0, 0, 0] for i in range(300)]
    assert 49 <= min(levels) < 55 and 145 < max(levels) <= 150
    assert abs(np.mean(levels) - 100) < 6


def test_each_part_of_color_jitter_against_float64():
    image = noise(16, 16, 3)
    gray = image @ np.array([0.299, 0.587, 0.114])
    parts = {
        "brightness": np.zeros_like(image, float),
        "contrast": np.full(image.shape, np.round(gray.mean())),
        "saturation": np.repeat(gray[..., None], 3, axis=-1),
    }
    for name, degenerate in parts.items():
        got = run("color_jitter", image, rng=3, **{name: 0.7}).astype(float)
        # The factor is not returned: fit it; then all pixels must agree with it.
        inside = (got > 0) & (got < 255)
        difference = (image - degenerate)[inside]
        factor = difference @ (got - degenerate)[inside] / (difference @ difference)
        assert 0.3 <= factor <= 1.7
        want = np.clip(degenerate + factor * (image - degenerate), 0, 255)
        assert abs(got - want).max() < 2.5, name


def test_hue_shifts_colors_and_leaves_grays():
    red = np.full((1, 1, 3), (200, 0, 0), np.uint8)
    got = np.stack([run("color_jitter", red, rng=i, hue=0.5)[0, 0] for i in range(60)])
    assert (got.max(axis=1) == 200).all() and (got.min(axis=1) == 0).all()
    assert {int(c) for c in got.argmax(axis=1)} == {0, 1, 2}
    gray = np.full((2, 2, 3), 77, np.uint8)
    np.testing.assert_array_equal(run("color_jitter", gray, hue=0.5), gray)


def test_three_augment_is_one_of_three():
    image = noise(12, 12, 3)
    gray = np.repeat(run("rgb_to_grayscale", image), 3, axis=-1)
    solarized = np.where(image < 128, image, 255 - image)
    counts = {"gray": 0, "solarized": 0, "blurred": 0}
    for i in range(300):
        got = run("three_augment", image, rng=i)
        if (got == gray).all():
            counts["gray"] += 1
        elif (got == solarized).all():
            counts["solarized"] += 1
        else:
            counts["blurred"] += 1
            assert got.std() <= image.std() + 0.1
            assert abs(got.mean() - image.mean()) < 3
    assert min(counts.values()) > 70 and max(counts.values()) < 130


def test_gray_to_rgb_and_back():
    gray = noise(4, 5, 1)
    rgb = run("grayscale_to_rgb", gray)
    assert rgb.shape == (4, 5, 3)
    np.testing.assert_array_equal(run("rgb_to_grayscale", rgb), gray)
    np.testing.assert_array_equal(run("grayscale_to_rgb", rgb), rgb)
    np.testing.assert_array_equal(run("rgb_to_grayscale", gray), gray)


def test_value_range_and_normalize_against_float64():
    image = np.arange(256, dtype=np.uint8).reshape(8, 32, 1)
    np.testing.assert_allclose(run("value_range", image), image / 127.5 - 1.0, rtol=0, atol=2e-7)
    got = run("value_range", image, vmin=0, vmax=255)
    np.testing.assert_array_equal(got, image)
    got = run("normalize", image.repeat(3, -1))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(got, (image / 255 - mean) / std, rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match="three means"):
        run("normalize", image)


# --- All of them.


def test_every_operation_is_sampled():
    assert sorted(SAMPLES) == sorted(OPS)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (37, 20)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPS)
def test_every_operation_takes_any_image(name, channels, shape):
    image = noise(*shape, channels)
    if name == "decode":
        image = image[..., 0] if channels == 1 else image
    before = image.copy()
    for i in range(10):
        try:
            got = run(name, image, rng=i, **SAMPLES[name])
            again = run(name, image, rng=i, **SAMPLES[name])
        except DataError as e:
            assert name == "random_crop" and "wants 5x3" in str(e)
            return
        np.testing.assert_array_equal(got, again)  # Equal generators give equal bits.
        assert got.ndim == 3 and got.flags.c_contiguous
        assert got.dtype == (np.float32 if name in ("value_range", "normalize") else np.uint8)
        expected = {"decode": 3, "grayscale_to_rgb": 3, "rgb_to_grayscale": 1}.get(name, channels)
        assert got.shape[-1] == expected
        size = SAMPLES[name].get("size")
        if name in ("resize", "random_resized_crop", "random_crop"):
            assert got.shape[:2] == size
        elif size is None:
            assert got.shape[:2] == shape
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", ["resize", "resize_small", "center_crop", "pad", "random_crop"])
def test_a_size_left_out_is_the_models(name):
    transform = compose((DECODE, {"op": name}), image_size=(24, 16))
    assert transform.ops[1].size == (24, 16)
    got = transform({"image": noise(24, 16, 3)}, np.random.default_rng(0))["image"]
    assert got.shape == (24, 16, 3)


def test_a_transform_survives_pickling_and_keeps_the_label():
    transform = compose(recipes.augreg("strong2")[0], image_size=32)
    copy = pickle.loads(pickle.dumps(transform))
    example = {"image": noise(50, 40, 3), "label": 7}
    got = [t(example, np.random.default_rng(5)) for t in (transform, copy)]
    np.testing.assert_array_equal(got[0]["image"], got[1]["image"])
    assert got[0]["label"] == 7
    assert got[0]["image"].shape == (32, 32, 3)
    assert got[0]["image"].dtype == np.float32
    np.testing.assert_array_equal(example["image"], noise(50, 40, 3))


def test_the_kind_of_output_of_a_transform_is_known():
    give = functools.partial(compose, image_size=8)
    assert give((DECODE,)).gives == UINT8
    assert give((DECODE, {"op": "resize", "rounding": "none"})).gives == FLOAT_255
    assert give((DECODE, {"op": "normalize"})).gives == FLOAT


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([{"op": "decod"}], r'transforms\[0\] \("decod"\).*Did you mean "decode"'),
        ([{"size": 3}], r"transforms\[0\].*more \(see vit-jax transforms\)"),
        ([DECODE, {"op": "resize", "siz": 3}], r'transforms\[1\].*"siz".*Did you mean "size"'),
        ([DECODE, {"op": "resize", "method": "bicubik"}], 'Did you mean "bicubic"'),
        ([DECODE, {"op": "resize", "size": (1, 2, 3)}], r"size=\(1, 2, 3\)"),
        ([DECODE, {"op": "flip_lr", "prob": 2}], "prob=2.0 should be within 0 to 1"),
        ([DECODE, {"op": "flip_lr", "prob": "x"}], r"transforms\[1\].*prob: 'x' should be float"),
        ([DECODE, {"op": "random_resized_crop", "area": (1.0, 0.5)}], "area="),
        ([DECODE, {"op": "random_erasing", "fill": "x"}], "noise"),
        ([DECODE, {"op": "normalize", "mean": (0.5,)}], "one number each"),
        ([DECODE, {"op": "normalize", "mean": (0.5,), "std": (0.0,)}], "above 0"),
        ([DECODE, {"op": "value_range", "vmin": 1}], "below vmax"),
        ([{"op": "resize"}], "comes first, but that must be decode"),
        ([DECODE, DECODE], "must come first, and only once"),
        (
            [DECODE, {"op": "value_range"}, {"op": "randaugment"}],
            r'transforms\[2\] \("randaugment"\) takes images that are uint8; after value_range they'
            r" are float32, normalised. Move it to before value_range",
        ),
        ([DECODE, {"op": "resize", "rounding": "none"}, {"op": "color_jitter"}], "after resize"),
    ],
)
def test_mistakes_are_named_before_an_image_is_read(transforms, message):
    with pytest.raises(ConfigError, match=message):
        compose(transforms, image_size=8)


def test_every_argument_is_documented():
    for name, cls in OPS.items():
        for field in dataclasses.fields(cls):
            documented = "".join(base.__doc__ or "" for base in cls.__mro__)
            assert field.name in documented, f"{name}: {field.name}"


# --- Recipes.


def test_augregs_levels():
    for level in recipes.AUGREG_LEVELS:
        transforms, _ = recipes.augreg(level)
        assert compose(transforms, image_size=224).gives == FLOAT
    transforms, mixup_alpha = recipes.augreg("medium2")
    assert {"op": "randaugment", "num_layers": 2, "magnitude": 15} in transforms
    assert mixup_alpha == 0.5
    assert "randaugment" not in {entry["op"] for entry in recipes.augreg("none")[0]}
    with pytest.raises(ConfigError, match='Did you mean "medium'):
        recipes.augreg("medium")


def test_evaluation_styles():
    for style in recipes.EVALUATION:
        assert compose(recipes.evaluation(style), image_size=16).gives == FLOAT
    first = recipes.evaluation("timm", resize=20)
    assert first != recipes.evaluation("timm")  # No state is shared between calls.
    with pytest.raises(ConfigError, match="does not crop"):
        recipes.evaluation("hf_vit", resize=256)
    with pytest.raises(ConfigError, match='Did you mean "torchvision"'):
        recipes.evaluation("torch_vision")


def test_a_resized_crop_equals_pillows():
    image = noise(60, 50, 3)
    got = run("random_resized_crop", image, size=20, area=(1.0, 1.0), ratio=(5 / 6, 5 / 6))
    want = np.asarray(Image.fromarray(image).resize((20, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(got, want)
