"""Untrusted files: decoding is bounded in time and memory; nothing outside the folder is read.

Files that are only broken (truncated, corrupt, no image at all) are in data_decode_test.
"""

import gzip
import os
import pathlib
import re
import resource
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.data_decode_test import chunk, encode
from vit_jax.data import decode, fashion_mnist, reading
from vit_jax.data.decode import decode_image
from vit_jax.data.files import find_images
from vit_jax.data.geometry import Resize, ResizeSmall
from vit_jax.data.image_folder import ImageFolder
from vit_jax.errors import DataError

# Bombs: small files that declare or expand to huge images. Each is decoded in a process
# with limited memory and time.

PNG = b"\x89PNG\r\n\x1a\n"
ZEROS = zlib.compress(bytes(300 << 20), 9)  # 300 kB that unpack to 300 MB.
HUGE = 60_000  # Pixels of a side.


def png(*chunks, side=16):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes((side if side < HUGE else 1) * (1 + 3 * 16)))
    parts = (*chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return PNG + chunk(b"IHDR", header) + b"".join(parts)


def tiff(tags):
    """Returns a TIFF of one page. Each tag is (number, type, count, value or offset)."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def overlapping_tags(number=60_000, size=1 << 20):
    """Returns a TIFF whose tags all share the same megabyte: 60 GB in a file of 2 MB."""
    start = 10 + 12 * number + 4
    return tiff([(1000 + i, 7, size, start) for i in range(number)]) + bytes(size)


def jpeg(*, scans=0, side=16):
    data = encode(Image.new("L", (side, side)), "JPEG", progressive=scans > 0)
    if scans:  # Repeats the header of the last scan, without data.
        last = data.rindex(b"\xff\xda")
        header = data[last : last + 2 + int.from_bytes(data[last + 2 : last + 4], "big")]
        data = data[:-2] + header * scans + data[-2:]
    return data


def declared_jpeg():
    data = jpeg()
    size = data.index(b"\xff\xc0") + 5
    return data[:size] + struct.pack(">HH", 65_500, 65_500) + data[size + 4 :]


def jpeg2000(side):
    """Returns a code stream that declares `side`, with a tile of 64x64."""
    data = encode(Image.new("RGB", (64, 64)), "JPEG2000")
    stream = data[data.index(b"\xff\x4f\xff\x51") :]
    sides = struct.pack(">II", side, side)
    return stream[:8] + sides + stream[16:24] + sides + stream[32:]


def webp(*chunks):
    body = b"WEBP" + b"".join(name + struct.pack("<I", len(c)) + c for name, c in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def animation(kind, frames):
    """Returns an animation with frames of different colours: reading all of them would be slow."""
    first, *others = (Image.new("RGB", (64, 64), (i % 256, i // 256, 99)) for i in range(frames))
    return encode(first, kind, save_all=True, append_images=others)


LOSSLESS = b"\x2f" + (16_382 | 16_382 << 14).to_bytes(4, "little") + b"\0"
GIF_FRAME = b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x08\0;"

TOO_LARGE = "The image is too large"
BOMBS = {
    "png, declared": (lambda: png(side=HUGE), TOO_LARGE),
    "png, zTXt": (lambda: png(chunk(b"zTXt", b"k\0\0" + ZEROS)), ""),
    "png, iCCP": (lambda: png(chunk(b"iCCP", b"k\0\0" + ZEROS)), ""),
    "png, many zTXt": (
        lambda: png(*[chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20)))] * 1000),
        "",
    ),
    "png, more pixels than declared": (lambda: png(chunk(b"IDAT", ZEROS)), ""),
    "png, EXIF": (lambda: png(chunk(b"eXIf", overlapping_tags())), ""),
    "jpeg, declared": (declared_jpeg, TOO_LARGE),
    "jpeg, scans": (lambda: jpeg(scans=99_000, side=4000), "The JPEG has 9900. scans: more than"),
    "tiff, declared": (
        lambda: tiff([(256, 4, 1, HUGE), (257, 4, 1, HUGE), (258, 3, 1, 8), (262, 3, 1, 1),
                      (273, 4, 1, 8), (279, 4, 1, 9)]),
        TOO_LARGE,
    ),
    "tiff, tags": (overlapping_tags, "Not an image"),
    "gif, declared": (
        lambda: b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + GIF_FRAME, TOO_LARGE,
    ),
    "gif, a frame beyond what is declared": (
        lambda: b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + GIF_FRAME, TOO_LARGE,
    ),
    "gif, frames": (lambda: animation("GIF", 300), ""),
    "webp, declared": (lambda: webp((b"VP8L", LOSSLESS)), TOO_LARGE),
    "bmp, declared": (
        lambda: b"BM" + struct.pack("<IHHI", 100, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, HUGE, HUGE, 1, 24, *[0] * 6), TOO_LARGE,
    ),
    "ppm, declared": (lambda: b"P6 60000 60000 255\n", TOO_LARGE),
    "jpeg 2000, below the others' limit": (lambda: jpeg2000(9400), "MAX_PIXELS_JPEG2000"),
}  # fmt: skip

DECODE = """
import pathlib, resource, sys, time, warnings
sys.path.insert(0, sys.argv[1])
from vit_jax.data.decode import decode_image
from vit_jax.errors import DataError
warnings.simplefilter("ignore")  # Of Pillow's.
def peak():  # In kilobytes. (getrusage would count the parent's, too.)
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
for path in sorted(pathlib.Path(sys.argv[2]).iterdir()):
    begun = time.process_time()
    try:
        result = str(decode_image(path.read_bytes()).shape)
    except DataError as error:
        result = str(error)
    grown = peak() - before
    print(path.name, round(time.process_time() - begun, 2), grown // 1024, result, sep="|")
"""


@pytest.mark.medium
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_bombs_take_little_memory_and_time(tmp_path):
    for name, (make, _) in BOMBS.items():
        (tmp_path / name).write_bytes(make())
        assert (tmp_path / name).stat().st_size < 4 << 20
    command = [sys.executable, "-c", DECODE, ROOT, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [line.split("|", 3) for line in done.stdout.splitlines()]
    assert {name for name, *_ in lines} == set(BOMBS)
    for name, seconds, megabytes, result in lines:
        assert re.search(BOMBS[name][1] or r"^\(\d+, \d+, 3\)$", result), (name, result)
        assert float(seconds) < 8 and int(megabytes) < 400, (name, seconds, megabytes)


def test_ordinary_images_pass_the_limits():
    """A progressive JPEG with a usual number of scans, and one with a video appended."""
    film = np.random.default_rng(0).integers(256, size=8 << 20, dtype=np.uint8).tobytes()
    assert decode_image(jpeg(scans=20)).shape == (16, 16, 3)
    assert 20 < film.count(b"\xff\xda") < decode.MAX_SCANS
    assert decode_image(jpeg() + film).shape == (16, 16, 3)
    marks = b"\xff\xda" * (decode.MAX_SCANS + 1)
    comment = b"\xff\xfe" + (2 + len(marks)).to_bytes(2, "big") + marks
    for odd in (jpeg()[:2] + comment + jpeg()[2:], jpeg(scans=20) + marks):
        assert decode_image(odd).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("shape", "op"),
    [((100_000, 1), ResizeSmall(size=(64, 64))), ((1, 2**17 + 1), Resize(size=(8, 8)))],
)
def test_images_of_extreme_aspect_ratio_are_refused(shape, op):
    with pytest.raises(DataError, match=r"aspect ratio|no side may have more"):
        op(np.zeros((*shape, 3), np.uint8), np.random.default_rng(0))


@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1)])
def test_resizing_an_image_of_extreme_aspect_ratio_needs_little_memory(shape):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    image = np.full((*shape, 3), 7, np.uint8)
    for rounding in ("nearest", "none"):
        resize = Resize(size=(3000, 30), rounding=rounding, method="area")
        np.testing.assert_allclose(resize(image, np.random.default_rng(0)), 7, atol=1e-3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # Kilobytes.


def test_out_of_memory_is_not_reported_as_a_broken_image(monkeypatch):
    def no_memory(self):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", no_memory)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_memory)
    with pytest.raises(MemoryError):
        decode_image(png())


# Files that changed after they were listed.


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "root"
    for name in ("cat", "dog"):
        (root / "train" / name).mkdir(parents=True)
        for i in range(3):
            (root / "train" / name / f"{i}.png").write_bytes(png())
    return root


def truncate(path):
    with open(path, "wb") as file:
        file.truncate(reading.MAX_BYTES + 1)


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (lambda path: path.symlink_to("/etc/passwd"), "a link that leads out of .*, to /etc/pass"),
        (truncate, "too large: it has 268,435,457 bytes, and at most 268,435,456 .*MAX_BYTES"),
        (os.mkfifo, "It is not a regular file"),  # Reading one would wait for ever.
    ],
)
def test_a_file_that_was_replaced_after_the_start_is_refused(folder, replace, message):
    source = ImageFolder(folder, split="train")
    path = pathlib.Path(source.describe(2))
    path.unlink()
    replace(path)
    with pytest.raises(DataError, match=message):
        source[2]


def test_images_to_predict_lie_in_the_given_folder(folder, tmp_path):
    images = folder / "train" / "cat"
    (images / "twin.png").symlink_to("0.png")
    assert len(find_images([str(images)])) == 4
    (tmp_path / "elsewhere.png").write_bytes(png())
    (images / "z.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(DataError, match=r"z\.png is a link that leads out of .*elsewhere\.png"):
        find_images([str(images)])
    assert find_images([str(images / "z.png")])  # A link that is passed as an argument is followed.


# Fashion-MNIST's files.

HEADER = bytes([0, 0, 8, 1]) + (1000).to_bytes(4, "big")
GOOD = HEADER + bytes(1000)
FAULTS = {
    "unpacks to 300 MB": (gzip.compress(bytes(300 << 20)), "got more than 1008 bytes"),
    "a shorter file": (gzip.compress(GOOD[:-1]), "got 1007 bytes"),
    "another shape": (gzip.compress(bytes([0, 0, 8, 3]) + GOOD[4:]), "got 1008 bytes.*00000803"),
    "garbage at the end": (gzip.compress(GOOD) + b"garbage", "cannot be read.*Not a gzipped"),
    "a wrong check sum": (gzip.compress(GOOD)[:-8] + bytes(8), "cannot be read.*CRC"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_reading_an_idx_file_is_bounded_and_checked(tmp_path, fault):
    content, message = FAULTS[fault]
    (tmp_path / "labels.gz").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=rf"labels\.gz.*{message}"):
        fashion_mnist.read_idx(tmp_path / "labels.gz", shape=(1000,))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # Kilobytes.
