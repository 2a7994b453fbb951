"""`data.decode`: crops of images, decoded in part, against the whole image, cropped."""

import dataclasses
import functools
import io
import pickle

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image
from sklearn.datasets import load_sample_image

from tests import odd_images
from vit_jax.config import base_config, validate
from vit_jax.data import recipes, regions, simd_resize, turbojpeg
from vit_jax.data.base import Source
from vit_jax.data.batches import LoaderOptions
from vit_jax.data.decode import decode_image
from vit_jax.data.decoded_crop import EXACT, FAST
from vit_jax.data.op import Scaling
from vit_jax.data.pipeline import eval_batches, train_batches
from vit_jax.data.regions import Region, decode_region
from vit_jax.data.transforms import OPS, compose
from vit_jax.errors import ConfigError, DataError

NEEDS_FAST = pytest.mark.skipif(not simd_resize.is_installed(), reason='needs the extra "fast"')
LIBRARIES = ["pillow", "turbojpeg"]
CROP = ({"op": "decode"}, {"op": "random_resized_crop"})


@pytest.fixture(params=LIBRARIES)
def library(request, monkeypatch):
    """Decodes by Pillow alone, or by TurboJPEG 3 where it can."""
    if request.param == "pillow":
        monkeypatch.setattr(turbojpeg, "_library", lambda: None)
    elif not turbojpeg.is_available():
        pytest.skip("needs TurboJPEG 3")
    return request.param


@functools.cache
def photograph():
    return Image.fromarray(load_sample_image("flower.jpg"))  # 640 x 427.


def jpeg(height, width, *, mode="RGB", orientation=None, **options):
    file, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[0x0112] = orientation
        options["exif"] = exif
    image = photograph().resize((width, height)).convert(mode)
    image.save(file, "JPEG", **options)
    return file.getvalue()


def drawn(rng):
    """A function that draws any box."""

    def choose(height, width):
        h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w

    return choose


# --- Boxes of the decoded image, to the bit.

VARIANTS = [
    {"subsampling": "4:2:0"},
    {"subsampling": "4:2:2", "restart_marker_rows": 1},
    {"subsampling": "4:4:4", "quality": 30},
    {"progressive": True, "optimize": True},
    {"mode": "L"},
    {"mode": "CMYK"},
    {"mode": "YCbCr", "keep_rgb": False},
    {"keep_rgb": True},  # Stored as RGB.
    *({"orientation": orientation} for orientation in range(2, 9)),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_box_equals_that_of_the_whole_image(library, variant):
    rng = np.random.default_rng(0)
    for _ in range(6):
        data = jpeg(*rng.integers(1, 130, 2).tolist(), **variant)
        for channels in (1, 3):
            whole, seed = decode_image(data, channels=channels), int(rng.integers(100))
            got = decode_region(data, drawn(np.random.default_rng(seed)), channels=channels)
            top, left, height, width = drawn(np.random.default_rng(seed))(*whole.shape[:2])
            np.testing.assert_array_equal(
                got.pixels, whole[top : top + height, left : left + width]
            )
            assert got.box == (0, 0, height, width)


def test_odd_files_and_arrays_are_cropped_alike(library, tmp_path):
    files = {name: path.read_bytes() for name, path in odd_images.write(tmp_path).items()}
    files |= {"array": np.arange(60, dtype=np.uint8).reshape(5, 12)}
    for data in files.values():
        whole = decode_image(data)
        y, x, h, w = drawn(np.random.default_rng(1))(*whole.shape[:2])
        got = decode_region(data, drawn(np.random.default_rng(1)))
        np.testing.assert_array_equal(got.pixels, whole[y : y + h, x : x + w])


def test_without_exif_the_image_is_as_stored(library):
    data = jpeg(40, 60, orientation=6)
    got = decode_region(data, lambda h, w: (0, 0, h, w), exif=False)
    np.testing.assert_array_equal(got.pixels, decode_image(data, exif=False))


@pytest.mark.parametrize("denominator", [2, 4, 8])
@pytest.mark.parametrize("variant", VARIANTS[:5], ids=str)
def test_both_libraries_decode_the_same_at_part_of_the_size(denominator, variant, monkeypatch):
    if not turbojpeg.is_available():
        pytest.skip("needs TurboJPEG 3")
    rng = np.random.default_rng(denominator)
    for _ in range(4):
        data = jpeg(*rng.integers(denominator, 200, 2).tolist(), **variant)
        monkeypatch.setattr(regions, "_denominator", lambda box, least: denominator)
        by_turbojpeg = decode_region(data, drawn(np.random.default_rng(3)), least=(1, 1))
        with monkeypatch.context() as patch:
            patch.setattr(turbojpeg, "_library", lambda: None)
            by_pillow = decode_region(data, drawn(np.random.default_rng(3)), least=(1, 1))
        np.testing.assert_array_equal(by_turbojpeg.pixels, by_pillow.pixels)
        assert by_turbojpeg.box == by_pillow.box


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_at_part_of_the_size_is_where_it_should_be(library, orientation):
    """A square of another colour, whose edges are not multiples of 8, is found by its box."""
    pixels = np.zeros((203, 301, 3), np.uint8)
    pixels[83:163, 53:173] = 255
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, "JPEG", quality=95, exif=exif)
    upright = decode_image(file.getvalue())
    rows, columns = (np.flatnonzero((upright[..., 0] > 128).any(axis=axis)) for axis in (1, 0))
    box = (int(rows[0]), int(columns[0]), len(rows), len(columns))
    got = decode_region(file.getvalue(), lambda h, w: box, least=(20, 20))
    assert got.pixels.shape[0] < len(rows) / 3  # Decoded at a quarter.
    area = np.prod(got.box[2:])
    assert area == len(rows) * len(columns) / 16
    assert abs(got.pixels[..., 0].sum() / 255 - area) < 0.05 * area  # The rest is black.
    y, x, h, w = got.box
    assert 0 <= y < 1 and 0 <= x < 1
    assert y + h <= got.pixels.shape[0] and x + w <= got.pixels.shape[1]


@pytest.mark.parametrize("where", [0.1, 0.5, 0.99])
def test_truncated_files_are_refused_as_before(library, where):
    data = jpeg(200, 300)
    data = data[: int(len(data) * where)]
    with pytest.raises(DataError) as before:
        decode_image(data)
    with pytest.raises(DataError) as now:
        decode_region(data, lambda h, w: (0, 0, 1, 1))
    assert str(now.value) == str(before.value)


def test_corrupt_bytes_are_decoded_or_refused_as_before(library):
    rng, data = np.random.default_rng(0), bytearray(jpeg(60, 90))
    for _ in range(60):
        corrupt = bytearray(data)
        for position in rng.integers(2, len(data) - 2, 4):
            corrupt[position] = rng.integers(256)
        corrupt = bytes(corrupt)
        try:
            want = decode_image(corrupt)
        except DataError as error:
            with pytest.raises(DataError) as refused:
                decode_region(corrupt, lambda h, w: (0, 0, h, w))
            assert str(refused.value) == str(error)
        else:
            got = decode_region(corrupt, lambda h, w: (0, 0, h, w))
            np.testing.assert_array_equal(got.pixels, want)


def test_too_many_scans_are_refused(library, monkeypatch):
    for module in ("decode", "turbojpeg"):
        monkeypatch.setattr(f"vit_jax.data.{module}.MAX_SCANS", 3)
    with pytest.raises(DataError, match="scans"):
        decode_region(jpeg(60, 90, progressive=True), lambda h, w: (0, 0, 9, 9))


# --- The two operations as one.


def test_exact_equals_the_two_operations(library, tmp_path):
    transform = compose(CROP, image_size=24)
    files = [path.read_bytes() for path in odd_images.write(tmp_path).values()]
    for i, data in enumerate([*files, jpeg(150, 211), jpeg(60, 33, orientation=8)]):
        want, rng = data, np.random.default_rng(i)
        for op in transform.ops:
            want = op(want, rng)
        again = np.random.default_rng(i)
        np.testing.assert_array_equal(transform({"image": data}, again)["image"], want)
        assert again.bit_generator.state == rng.bit_generator.state


@NEEDS_FAST
@pytest.mark.parametrize("size", [32, 100, 224])
def test_fast_differs_by_what_is_documented(library, size):
    """The numbers of docs/training.md: one level, or more where it is scaled."""
    exact, fast = (compose(CROP, image_size=size, decode=name) for name in (EXACT, FAST))
    data, worst, mean = jpeg(427, 640, quality=90), 0, []
    for seed in range(40):
        one, other = np.random.default_rng(seed), np.random.default_rng(seed)
        want = exact({"image": data}, one)["image"].astype(int)
        apart = abs(fast({"image": data}, other)["image"] - want)
        assert one.bit_generator.state == other.bit_generator.state
        worst, mean = max(worst, apart.max()), [*mean, apart.mean()]
    assert worst <= (1 if size == 224 else 42) and np.mean(mean) < 1.6


@NEEDS_FAST
@pytest.mark.parametrize("channels", [1, 3])
def test_simd_resize_is_within_a_level_of_pillow(channels):
    rng = np.random.default_rng(0)
    for _ in range(8):
        height, width, *size = rng.integers(1, 90, 4).tolist()
        pixels = rng.integers(256, size=(height, width, channels), dtype=np.uint8)
        op = OPS["random_resized_crop"](size=tuple(size))
        got = simd_resize.resize(Region(pixels, (0, 0, height, width)), op.size)
        assert abs(got.astype(int) - op.resize(pixels)).max() <= 1


@NEEDS_FAST
def test_fast_is_picklable_and_takes_every_file(tmp_path):
    transform = pickle.loads(pickle.dumps(compose(CROP, image_size=9, decode=FAST)))
    for path in odd_images.write(tmp_path).values():
        image = transform({"image": path.read_bytes()}, np.random.default_rng(0))["image"]
        assert image.shape == (9, 9, 3) and image.dtype == np.uint8


# --- Mistakes.


def test_a_library_that_is_absent_is_named(monkeypatch):
    monkeypatch.setattr(simd_resize, "is_installed", lambda: False)
    with pytest.raises(ConfigError, match=r'cykooz-resizer: pip install "vit-jax\[fast\]"'):
        compose(CROP, image_size=8, decode=FAST)


@NEEDS_FAST
@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([{"op": "decode"}, {"op": "resize"}], "begin with decode and random_resized_crop"),
        ([CROP[0], CROP[1] | {"antialias": False}], "antialias=True"),
        ([CROP[0], CROP[1] | {"method": "bicubic"}], "method bilinear"),
    ],
)
def test_fast_needs_a_random_crop(transforms, message):
    with pytest.raises(ConfigError, match=message):
        compose(transforms, image_size=8, decode=FAST)


def test_other_values_are_refused():
    config = base_config()
    config.data.decode = "scaled"
    with pytest.raises(ConfigError, match=r"data\.decode.*exact.*fast"):
        validate(config)


def test_a_library_of_version_2_is_not_used(monkeypatch):
    monkeypatch.setattr(turbojpeg, "_candidates", lambda: iter(["libc.so.6", "no_such_file"]))
    assert turbojpeg._library.__wrapped__() is None


# --- Batches.


class Photographs(Source):
    name, split, class_names = "photographs", "train", ("a", "b")

    def __len__(self):
        return 21

    def __getitem__(self, index):
        data = jpeg(61 + index, 93 - index)
        return {"image": b"broken" if index == 5 else data, "label": index % 2}


def batches(make, decode, *, workers, threads, bad):
    transform = compose(recipes.augreg("light2")[0], image_size=32, channels=3, decode=decode)
    mesh = Mesh(np.array(jax.devices()[:1]), "data")
    with make(
        Photographs(),
        transform,
        batch_size=8,
        sharding=NamedSharding(mesh, PartitionSpec("data")),
        options=LoaderOptions(workers, threads, 2),
        on_bad=lambda *args: bad.append(args[:-1]),
    ) as iterator:
        return [jax.device_get(next(iterator)) for _ in range(3)]


@NEEDS_FAST
def test_a_batch_is_the_same_for_any_number_of_threads():
    make, bad = functools.partial(train_batches, seed=3, start_step=1), []
    one = batches(make, FAST, workers=0, threads=1, bad=bad)
    seen = list(bad)
    jax.tree.map(
        np.testing.assert_array_equal, one, batches(make, FAST, workers=0, threads=3, bad=bad)
    )
    assert bad == seen * 2


@NEEDS_FAST
@pytest.mark.slow
def test_a_batch_is_the_same_in_worker_processes():
    make = functools.partial(train_batches, seed=3, start_step=1)
    one = batches(make, FAST, workers=0, threads=1, bad=[])
    jax.tree.map(
        np.testing.assert_array_equal, one, batches(make, FAST, workers=2, threads=1, bad=[])
    )


def test_images_that_are_scaled_in_the_batch_equal_the_whole_transform():
    """Also rows of bad examples, and those that pad the last batch: they are zero."""
    got = batches(eval_batches, EXACT, workers=0, threads=2, bad=[])
    images = np.concatenate([batch["image"] for batch in got])
    transform = compose(recipes.augreg("light2")[0], image_size=32, channels=3)
    for i, image in enumerate(images):
        want = np.zeros((32, 32, 3), np.float32)
        if i != 5 and i < 21:
            want = transform(Photographs()[i], np.random.default_rng((0, 0, i)))["image"]
        np.testing.assert_array_equal(image, want)


def test_only_scalings_that_are_finite_are_left_to_the_batch():
    def last(**entry):
        transforms = ({"op": "decode"}, {"op": "resize"}, entry)
        return compose(transforms, image_size=8, channels=3).stages()[1]

    assert isinstance(last(op="normalize"), Scaling)
    assert last(op="normalize", std=(1e-40,), mean=(0.5,)) is None
    unrounded = ({"op": "decode"}, {"op": "resize", "rounding": "none"}, {"op": "value_range"})
    assert compose(unrounded, image_size=8, channels=3).stages()[1] is None
    flipped = dataclasses.replace(compose(CROP, image_size=8), shape=(8, 8, 3))
    assert flipped.stages() == (flipped, None)
