"""RandAugment's sixteen operations, each against a float64 or integer reimplementation."""

import math

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vit_jax.data.decode import to_pillow
from vit_jax.data.randaugment import OPERATIONS, RandAugment, apply, as_array

MAGNITUDES = (0, 3, 10, 15, 20)
FILL = 128


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def smooth(height=40, width=30):
    """Returns an image without flat areas."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / 5 + x / 9), np.cos(x / 4), np.sin(x / 7 - y / 3)]
    return np.stack([127 + 90 * w for w in waves], axis=-1).astype(np.uint8)


def run(operation, image, *, magnitude, seed=0, **arguments):
    rng = np.random.default_rng(seed)
    return as_array(apply(operation, image, rng, magnitude=float(magnitude), **arguments))


def both_ways(operation, image, *, magnitude, **arguments):
    """Returns the two outcomes of an operation with a random sign, and their counts in 40 draws."""
    seen = {}
    for seed in range(40):
        out = run(operation, image, magnitude=magnitude, seed=seed, **arguments)
        _, count = seen.get(out.tobytes(), (None, 0))
        seen[out.tobytes()] = out, count + 1
    return list(seen.values())


def luma(image):
    return image @ np.array([0.299, 0.587, 0.114])


def truncated_blend(degenerate, image, factor):
    return np.clip(degenerate + factor * (image.astype(float) - degenerate), 0, 255)


# --- Operations on levels.


def test_invert():
    image = noise(9, 8, 3)
    np.testing.assert_array_equal(run("Invert", image, magnitude=3), 255 - image)


def test_autocontrast_stretches_each_channel():
    image = (smooth() // 2 + 30).astype(np.uint8)
    low, high = image.min(axis=(0, 1)).astype(float), image.max(axis=(0, 1)).astype(float)
    got = run("AutoContrast", image, magnitude=0)
    assert abs(got - (image - low) * 255 / (high - low)).max() <= 1
    assert (got.min(axis=(0, 1)) == 0).all() and (got.max(axis=(0, 1)) >= 254).all()
    flat = np.full((4, 4, 3), 9, np.uint8)
    np.testing.assert_array_equal(run("AutoContrast", flat, magnitude=0), flat)


def test_equalize_makes_levels_equally_frequent():
    image = smooth(100, 90)
    got = run("Equalize", image, magnitude=0)
    for c in range(3):
        # Each level becomes the fraction of pixels below it, in PIL's integer arithmetic.
        counts = np.bincount(image[..., c].ravel(), minlength=256)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        below = np.cumsum(counts) - counts
        want = np.clip((below + step // 2) // step, 0, 255)[image[..., c]]
        np.testing.assert_array_equal(got[..., c], want)


@pytest.mark.parametrize(("magnitude", "bits"), [(0, 1), (3, 1), (5, 2), (10, 4), (15, 6), (20, 8)])
def test_posterize_keeps_more_bits_as_magnitude_rises(magnitude, bits):
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    want = image // 2 ** (8 - bits) * 2 ** (8 - bits)
    np.testing.assert_array_equal(run("Posterize", image, magnitude=magnitude), want)


@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_solarize_and_solarize_add(magnitude):
    image = np.arange(256).reshape(16, 16, 1)
    threshold, addition = int(magnitude / 10 * 256), int(magnitude / 10 * 110)
    got = run("Solarize", image.astype(np.uint8), magnitude=magnitude)
    np.testing.assert_array_equal(got, np.where(image < threshold, image, 255 - image))
    got = run("SolarizeAdd", image.astype(np.uint8), magnitude=magnitude)
    want = np.where(image < 128, np.minimum(image + addition, 255), image)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("shape", [(3, 3, 3), (40, 31, 1), (300, 300, 3)])
def test_sharpness_is_that_of_pillow_to_the_bit(shape):
    image = noise(*shape)
    pil_image = to_pillow(image)
    want = Image.blend(pil_image.filter(ImageFilter.SMOOTH), pil_image, 1.9)
    np.testing.assert_array_equal(
        run("Sharpness", image, magnitude=10), np.asarray(want).reshape(shape)
    )


@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_blends_against_float64(magnitude):
    image = noise(20, 24, 3)
    factor = magnitude / 10 * 1.8 + 0.1
    degenerate = {
        "Brightness": np.zeros(image.shape),
        "Color": np.repeat(luma(image)[..., None], 3, axis=-1),
        "Contrast": np.full(image.shape, luma(image).mean()),
        "Sharpness": blurred(image),
    }
    for operation, other in degenerate.items():
        got = run(operation, image, magnitude=magnitude)
        # The degenerate image is rounded to levels (1/2), then extrapolated, then truncated (1).
        tolerance = 0.51 * abs(1 - factor) + 1.01
        assert abs(got - truncated_blend(other, image, factor)).max() <= tolerance, operation


def blurred(image):
    """A 3x3 mean in which the centre has weight five; the border does not change."""
    out = image.astype(float)
    h, w = image.shape[:2]
    total = 4.0 * out[1:-1, 1:-1]
    for dy in range(3):
        for dx in range(3):
            total = total + image[dy : h - 2 + dy, dx : w - 2 + dx]
    out[1:-1, 1:-1] = total / 13
    return out


# --- Geometric operations.


def nearest(image, matrix):
    """Output pixel p is input pixel `matrix @ p`, rounded; gray where there is none.

    Returns that, and where it is certain: not half-way between two pixels.
    """
    h, w = image.shape[:2]
    y, x = np.mgrid[:h, :w]
    where = np.array(matrix) @ np.stack([x.ravel(), y.ravel(), np.ones(h * w)])
    u, v = np.floor(where + 0.5).astype(int)
    out = np.full((h * w, image.shape[-1]), FILL, np.uint8)
    inside = (u >= 0) & (u < w) & (v >= 0) & (v < h)
    out[inside] = image[v[inside], u[inside]]
    certain = (abs(where % 1 - 0.5) > 2e-3).all(axis=0)
    return out.reshape(image.shape), certain.reshape(h, w)


def rotation(degrees, height, width):
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[cos, sin], [-sin, cos]])
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    return np.concatenate([turn, (middle - turn @ middle)[:, None]], axis=1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [3, 10, 20])
@pytest.mark.parametrize("operation", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"])
def test_affine_operations_against_float64(operation, magnitude, channels):
    image = noise(41, 30, channels)
    m = magnitude / 10
    matrices = {
        "Rotate": lambda s: rotation(s * 30 * m, 41, 30),
        "ShearX": lambda s: [[1, s * 0.3 * m, 0], [0, 1, 0]],
        "ShearY": lambda s: [[1, 0, 0], [s * 0.3 * m, 1, 0]],
        "TranslateX": lambda s: [[1, 0, s * 8 * m], [0, 1, 0]],
        "TranslateY": lambda s: [[1, 0, 0], [0, 1, s * 8 * m]],
    }
    outcomes = both_ways(operation, image, magnitude=magnitude, translate=8.0)
    assert len(outcomes) == 2
    assert min(count for _, count in outcomes) >= 9  # Of 40; 20 expected, deviation 3.2.
    want = [nearest(image, matrices[operation](sign)) for sign in (1, -1)]
    for got, _ in outcomes:
        assert sum((got == w)[certain].all() for w, certain in want) == 1


@pytest.mark.parametrize(("magnitude", "half"), [(0, 0), (5, 3), (10, 6), (20, 12)])
def test_cutout_is_a_square_around_a_uniform_centre(magnitude, half):
    image = np.zeros((40, 30, 3), np.uint8)
    touched = np.zeros((40, 30))
    for seed in range(300):
        got = run("Cutout", image, magnitude=magnitude, seed=seed, cutout=6.0)
        hidden = (got == FILL).all(axis=-1)
        assert ((got == 0).all(axis=-1) | hidden).all()
        if half == 0:
            assert not hidden.any()
            continue
        rows, columns = np.nonzero(hidden.any(axis=1))[0], np.nonzero(hidden.any(axis=0))[0]
        assert hidden.sum() == len(rows) * len(columns)
        for cells, length in ((rows, 40), (columns, 30)):
            cut_off = cells[0] == 0 or cells[-1] == length - 1
            assert len(cells) == 2 * half or (cut_off and half <= len(cells) <= 2 * half)
        touched += hidden
    if half:
        assert (touched > 0).mean() > 0.99


# --- The whole transform.


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (1, 9, 3), (9, 2, 1), (2, 2, 3)])
def test_every_operation_takes_tiny_images(operation, shape):
    image = noise(*shape)
    for magnitude in MAGNITUDES:
        got = run(operation, image, magnitude=magnitude)
        assert got.shape == shape and got.dtype == np.uint8


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_treats_gray_like_three_equal_channels(operation):
    gray = smooth()[..., :1]
    want = run(operation, gray.repeat(3, axis=-1), magnitude=5, cutout=8.0, translate=10.0)
    got = run(operation, gray, magnitude=5, cutout=8.0, translate=10.0)
    np.testing.assert_array_equal(got.repeat(3, axis=-1), want)


@pytest.mark.medium
def test_operations_are_drawn_uniformly(monkeypatch):
    drawn = dict.fromkeys(OPERATIONS, 0)

    def count(operation, image, rng, **_):
        drawn[operation] += 1
        return image

    monkeypatch.setattr("vit_jax.data.randaugment.apply", count)
    op = RandAugment(num_layers=4)
    rng = np.random.default_rng(0)
    for _ in range(1600):
        op(noise(2, 2, 3), rng)
    assert sum(drawn.values()) == 6400
    assert min(drawn.values()) > 320 and max(drawn.values()) < 480  # 400 expected, deviation 19.
