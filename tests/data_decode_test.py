"""Every format of image file is decoded to the right uint8 pixels, or raises a clear error."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from vit_jax.data import decode
from vit_jax.data.decode import decode_image
from vit_jax.errors import DataError

IMAGES = (
    "cmyk.jpg",
    "exif6.jpg",
    "gray.jpg",
    "gray16.png",
    "palette_small.png",
    "rgb_landscape_420.jpg",
    "rgb_portrait_444.jpg",
    "rgba.png",
)


@pytest.fixture(scope="module")
def pixels():
    """Smooth, asymmetric uint8 [12, 20, 3]: survives lossy formats, shows any rotation."""
    y, x = np.mgrid[:12, :20]
    return np.stack([y * 20, x * 12, 255 - x * 6 - y * 9], axis=-1).astype(np.uint8)


def encode(image, kind, **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("name", IMAGES)
def test_decoding_equals_the_references(goldens, name):
    folder = goldens / "preprocessing"
    data = (folder / "images" / name).read_bytes()
    torch = np.load(folder / f"{name.replace('.', '_')}.torch.npz")
    tf = np.load(folder / f"{name.replace('.', '_')}.tf.npz")
    as_stored = decode_image(data, exif=False)
    accurate = tf["decoded_tf_precise" if "decoded_tf_precise" in tf else "decoded_tf_jpeg_op"]
    np.testing.assert_array_equal(as_stored, accurate)
    if name != "gray16.png":  # Pillow's conversion would clip it to white.
        np.testing.assert_array_equal(as_stored, torch["decoded_pil_rgb"])
    upright = "decoded_pil_exif_rgb"
    want = torch.get(upright, as_stored)
    np.testing.assert_array_equal(decode_image(data), want)


def test_the_goldens_contain_every_tested_image(manifest):
    assert sorted(manifest["preprocessing"]["images"]) == sorted(IMAGES)


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("PPM", {}, 0),
        ("TIFF", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 100}, 20),  # Halves the resolution of color.
        ("JPEG", {"quality": 100, "subsampling": 0}, 4),
        ("GIF", {}, 40),
    ],
)
def test_formats(pixels, kind, options, tolerance):
    got = decode_image(encode(pixels, kind, **options))
    assert got.dtype == np.uint8
    assert got.shape == pixels.shape
    assert abs(got.astype(int) - pixels).max() <= tolerance


def test_alpha_is_dropped_not_composited(pixels):
    alpha = np.zeros_like(pixels[..., :1])
    rgba = np.concatenate([pixels, alpha], axis=-1)
    np.testing.assert_array_equal(decode_image(encode(rgba, "PNG")), pixels)
    np.testing.assert_array_equal(decode_image(rgba), pixels)
    gray = decode_image(encode(Image.merge("LA", [Image.fromarray(pixels[..., 0])] * 2), "PNG"))
    np.testing.assert_array_equal(gray, np.repeat(pixels[..., :1], 3, axis=-1))


@pytest.mark.parametrize("transparency", [3, bytes([0, 255, 0, 128])])
def test_a_palette_with_transparency_keeps_its_colors(transparency):
    image = Image.frombytes("P", (2, 2), bytes([0, 1, 2, 3]))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    got = decode_image(encode(image, "PNG", transparency=transparency))
    np.testing.assert_array_equal(got.reshape(4, 3), np.arange(10, 130, 10).reshape(4, 3))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_is_reduced_to_its_high_byte(kind):
    levels = np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16)
    for channels in (1, 3):
        got = decode_image(encode(levels, kind), channels=channels)
        assert got.shape == (2, 3, channels)
        # PPM's maximum is not exactly 16 bits in Pillow's writer: allow its rounding.
        np.testing.assert_allclose(got[..., 0], levels >> 8, atol=1 if kind == "PPM" else 0)


def test_one_bit_images_are_black_and_white():
    bits = np.array([[True, False, True]])
    got = decode_image(encode(Image.fromarray(bits), "PNG"), channels=1)
    np.testing.assert_array_equal(got[..., 0], bits * 255)


def test_gray_on_request(pixels):
    want = np.round(pixels @ np.array([0.299, 0.587, 0.114]))
    for data in (pixels, encode(pixels, "PNG")):
        got = decode_image(data, channels=1)
        assert got.shape == (12, 20, 1)
        assert abs(got[..., 0] - want).max() <= 1
    gray = pixels[..., 0]
    for data in (gray, gray[..., None], encode(gray, "PNG")):
        np.testing.assert_array_equal(decode_image(data, channels=1)[..., 0], gray)
        np.testing.assert_array_equal(decode_image(data), np.stack([gray] * 3, axis=-1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(pixels, kind, orientation):
    # The EXIF standard: the sides of the visible image at which stored row 0 and column 0 are.
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: pixels[::-1].swapaxes(0, 1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: pixels[:, ::-1].swapaxes(0, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {}
    got = decode_image(encode(pixels, kind, exif=exif, **lossless))
    assert got.shape == upright.shape
    assert abs(got.astype(int) - upright).mean() < (20 if kind == "JPEG" else 1e-9)


def test_broken_exif_is_ignored(pixels):
    data = encode(pixels, "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7fbroken")
    np.testing.assert_array_equal(decode_image(data), pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_files_are_refused(kind):
    noise = np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)
    data = encode(noise, kind)
    for length in (len(data) // 2, 40):
        with pytest.raises(DataError, match=r"Broken|Not an image"):
            decode_image(data[:length])


@pytest.mark.parametrize("data", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(99)])
def test_files_that_are_not_images_are_refused(data):
    with pytest.raises(DataError, match="Not an image"):
        decode_image(data)


def test_corrupt_bytes_never_raise_anything_but_data_error(pixels):
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM"):
        data = np.frombuffer(encode(pixels, kind), np.uint8)
        for _ in range(30):
            broken = data.copy()
            where = rng.integers(len(data), size=4)
            broken[where] = rng.integers(256, size=4)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Of Pillow's, about odd but legal files.
                try:
                    got = decode_image(broken.tobytes())
                except DataError:
                    continue
            assert got.dtype == np.uint8
            assert got.shape[-1] == 3


def test_too_many_pixels_are_refused_where_pillow_only_warns(pixels, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 100)
    with pytest.raises(DataError, match=r"20x12 is more than 100"):
        decode_image(encode(pixels, "PNG"))


def chunk(name, data):
    checked = name + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
    ],
)
def test_arrays_that_are_not_images_are_refused(array):
    with pytest.raises(DataError, match=r"uint8|channels"):
        decode_image(array)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused(dtype):
    with pytest.raises(DataError, match="the level of white is unknown"):
        decode_image(encode(np.full((3, 3), 255, dtype), "TIFF"))


def test_16_bit_images_in_pillows_mode_i_may_be_rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "TIFF"):
        data = encode(np.full((2, 3), 0x1234, np.uint16), kind, exif=exif)
        np.testing.assert_array_equal(decode_image(data, channels=1), np.full((3, 2, 1), 0x12))


# Ancillary chunks of a PNG.


def chunks(png):
    """Returns the name and content of each chunk."""
    at, parts = 8, []
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        parts.append((png[at + 4 : at + 8], png[at + 8 : end - 4]))
        at = end
    return parts


def of_chunks(parts, *, wrong=()):
    """Returns a PNG of chunks (name, content); those named in `wrong` have a wrong checksum."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(content).to_bytes(4, "big")
        + name
        + content
        + (zlib.crc32(name + content) ^ (name in wrong)).to_bytes(4, "big")
        for name, content in parts
    )


def squeezed(bytes_):
    return zlib.compress(b"x" * bytes_)


ANCILLARY = {
    "2 MB of compressed text": (b"zTXt", b"workflow\0\0" + squeezed(2**21)),
    "2 MB of colour profile": (b"iCCP", b"ICC\0\0" + squeezed(2**21)),
    "more text than Pillow reads": (b"tEXt", b"a\0" + b"x" * 2000),
    "a gamma of one byte": (b"gAMA", b"\1"),
}


@pytest.mark.parametrize("name", ANCILLARY)
@pytest.mark.parametrize("position", [1, -1])
def test_odd_ancillary_chunks_of_a_png_are_ignored(pixels, name, position, monkeypatch):
    monkeypatch.setattr(
        PngImagePlugin, "MAX_TEXT_MEMORY", 1000
    )  # The default, 64 MB, would be slow.
    parts = chunks(encode(pixels, "PNG"))
    parts.insert(position, ANCILLARY[name])
    np.testing.assert_array_equal(decode_image(of_chunks(parts)), pixels)


def test_a_broken_comment_in_a_png_does_not_change_orientation_and_colours(pixels):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(pixels).quantize(16)
    good = encode(image, "PNG", exif=exif.tobytes(), transparency=3)
    parts = chunks(good)
    parts.insert(1, (b"tEXt", b"a\0b"))
    want = decode_image(good)
    assert want.shape == (20, 12, 3)
    np.testing.assert_array_equal(decode_image(of_chunks(parts, wrong=[b"tEXt"])), want)


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE"])
def test_a_png_with_a_broken_chunk_of_pixels_is_refused(pixels, name):
    parts = chunks(encode(Image.fromarray(pixels).quantize(16), "PNG"))
    parts.insert(1, (b"tEXt", b"a\0b"))
    for wrong in ([name], [name, b"tEXt"]):
        with pytest.raises(DataError):
            decode_image(of_chunks(parts, wrong=wrong))
    for cut in (20, 60, -30):
        with pytest.raises(DataError):
            decode_image(of_chunks(parts, wrong=[b"tEXt"])[:cut])
