"""Files from strangers: bombs are bounded, nothing hangs, nothing is read from elsewhere.

What is only broken (truncated, corrupt, no image at all) is in data_decode_test.
"""

import gzip
import os
import pathlib
import re
import resource
import socket
import stat
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.data_decode_test import chunk, encode
from vit_jax.data import decode, fashion_mnist, reading
from vit_jax.data.decode import decode_image
from vit_jax.data.files import Files, find_images
from vit_jax.data.geometry import Resize, ResizeSmall
from vit_jax.data.image_folder import ImageFolder
from vit_jax.errors import DataError

# Bombs: small files that declare, or unpack to, what no machine has. Each is decoded in a process
# that may take little memory and time.

PNG = b"\x89PNG\r\n\x1a\n"
ZEROS = zlib.compress(bytes(300 << 20), 9)  # 300 kB that unpack to 300 MB.
HUGE = 60_000  # Pixels of a side.


def png(*chunks, side=16):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes((side if side < HUGE else 1) * (1 + 3 * 16)))
    parts = (*chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return PNG + chunk(b"IHDR", header) + b"".join(parts)


def tiff(tags, tail=b""):
    """One page. Each tag is (number, type, count, value or offset)."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + tail


def overlapping_tags(number=60_000, size=1 << 20):
    """Tags that all have the same megabyte as their value: 60 GB in a file of 2 MB."""
    start = 10 + 12 * number + 4
    return tiff([(1000 + i, 7, size, start) for i in range(number)], bytes(size))


def jpeg(*segments, scans=0, side=16):
    data = encode(Image.new("L", (side, side)), "JPEG", progressive=scans > 0)
    if scans:  # The header of the last scan again and again, with nothing after it.
        last = data.rindex(b"\xff\xda")
        header = data[last : last + 2 + int.from_bytes(data[last + 2 : last + 4], "big")]
        data = data[:-2] + header * scans + data[-2:]
    return data[:2] + b"".join(segments) + data[2:]


def exif_segments(exif):
    for start in range(0, len(exif), 65_000):
        part = b"Exif\0\0" + exif[start : start + 65_000]
        yield b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part


def declared_jpeg():
    data = jpeg()
    size = data.index(b"\xff\xc0") + 5
    return data[:size] + struct.pack(">HH", 65_500, 65_500) + data[size + 4 :]


def jpeg2000(side, *, boxed):
    """Declares a side, and holds a tile of 64x64."""
    data = encode(Image.new("RGB", (64, 64)), "JPEG2000")
    code = data.index(b"\xff\x4f\xff\x51")
    sides = struct.pack(">II", side, side)
    stream = data[code:]
    stream = stream[:8] + sides + stream[16:24] + sides + stream[32:]
    if not boxed:
        return stream
    box = data.index(b"ihdr") + 4
    return data[:box] + sides + data[box + 8 : code] + stream


def webp(*chunks):
    body = b"WEBP" + b"".join(name + struct.pack("<I", len(c)) + c for name, c in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def animation(kind, frames):
    """As many frames, each of another colour: a reader of all of them takes long."""
    first, *others = (Image.new("RGB", (64, 64), (i % 256, i // 256, 99)) for i in range(frames))
    return encode(first, kind, save_all=True, append_images=others)


SIDE_WEBP = (16_382).to_bytes(3, "little")
LOSSLESS = b"\x2f" + (16_382 | 16_382 << 14).to_bytes(4, "little") + b"\0"
GIF_FRAME = b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x08\0;"

TOO_LARGE = "The image is too large"
BOMBS = {
    "png, declared": (lambda: png(side=HUGE), TOO_LARGE),
    "png, zTXt": (lambda: png(chunk(b"zTXt", b"k\0\0" + ZEROS)), ""),
    "png, iTXt": (lambda: png(chunk(b"iTXt", b"k\0\1\0en\0\0" + ZEROS)), ""),
    "png, iCCP": (lambda: png(chunk(b"iCCP", b"k\0\0" + ZEROS)), ""),
    "png, many zTXt": (
        lambda: png(*[chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20)))] * 1000),
        "",
    ),
    "png, more pixels than declared": (lambda: png(chunk(b"IDAT", ZEROS)), ""),
    "png, EXIF": (lambda: png(chunk(b"eXIf", overlapping_tags())), ""),
    "png, frames": (lambda: animation("PNG", 300), ""),
    "jpeg, declared": (declared_jpeg, TOO_LARGE),
    "jpeg, scans": (lambda: jpeg(scans=99_000, side=4000), "The JPEG has 9900. scans: more than"),
    "jpeg, EXIF": (lambda: jpeg(*exif_segments(overlapping_tags())), ""),
    "tiff, declared": (
        lambda: tiff([(256, 4, 1, HUGE), (257, 4, 1, HUGE), (258, 3, 1, 8), (262, 3, 1, 1),
                      (273, 4, 1, 8), (279, 4, 1, 9)]),
        TOO_LARGE,
    ),
    "tiff, tags": (overlapping_tags, "Not an image"),
    "tiff, pages": (lambda: animation("TIFF", 300), ""),
    "gif, declared": (
        lambda: b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + GIF_FRAME, TOO_LARGE,
    ),
    "gif, a frame beyond what is declared": (
        lambda: b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + GIF_FRAME, TOO_LARGE,
    ),
    "gif, frames": (lambda: animation("GIF", 300), ""),
    "webp, declared": (lambda: webp((b"VP8L", LOSSLESS)), TOO_LARGE),
    "webp, declared canvas": (
        lambda: webp((b"VP8X", bytes(4) + SIDE_WEBP * 2), (b"VP8L", LOSSLESS)), TOO_LARGE,
    ),
    "webp, frames": (lambda: animation("WEBP", 200), ""),
    "bmp, declared": (
        lambda: b"BM" + struct.pack("<IHHI", 100, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, HUGE, HUGE, 1, 24, *[0] * 6), TOO_LARGE,
    ),
    "ppm, declared": (lambda: b"P6 60000 60000 255\n", TOO_LARGE),
    "jpeg 2000, declared": (lambda: jpeg2000(HUGE, boxed=True), TOO_LARGE),
    "jpeg 2000, stream": (lambda: jpeg2000(HUGE, boxed=False), TOO_LARGE),
    "jpeg 2000, below the others' limit": (
        lambda: jpeg2000(9400, boxed=False), "MAX_PIXELS_JPEG2000",
    ),
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
        said = str(decode_image(path.read_bytes()).shape)
    except DataError as error:
        said = str(error)
    grown = peak() - before
    print(path.name, round(time.process_time() - begun, 2), grown // 1024, said, sep="|")
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
    for name, seconds, megabytes, said in lines:
        assert re.search(BOMBS[name][1] or r"^\(\d+, \d+, 3\)$", said), (name, said)
        assert float(seconds) < 8 and int(megabytes) < 400, (name, seconds, megabytes)


def test_the_limits_leave_honest_images_alone():
    """A progressive JPEG of as many scans as encoders make, and one with a film at its end."""
    film = np.random.default_rng(0).integers(256, size=8 << 20, dtype=np.uint8).tobytes()
    assert decode_image(jpeg(scans=20)).shape == (16, 16, 3)
    assert 20 < film.count(b"\xff\xda") < decode.MAX_SCANS
    assert decode_image(jpeg() + film).shape == (16, 16, 3)
    marks = b"\xff\xda" * (decode.MAX_SCANS + 1)
    comment = b"\xff\xfe" + (2 + len(marks)).to_bytes(2, "big") + marks
    for odd in (jpeg()[:2] + comment + jpeg()[2:], jpeg(scans=20) + marks):
        assert decode_image(odd).shape == (16, 16, 3)


LINES = {
    "a line to cover": ((200_000 // 2, 1), ResizeSmall(size=(64, 64))),
    "a line to cover, lying": ((1, 5000), ResizeSmall(size=(256, 256), rounding="down")),
    "longer than all": ((1, 2**17 + 1), Resize(size=(8, 8))),
}


@pytest.mark.parametrize(("shape", "op"), LINES.values(), ids=LINES)
def test_a_line_is_not_made_a_wall(shape, op):
    with pytest.raises(DataError, match=r"too long and thin|no side may have more"):
        op(np.zeros((*shape, 3), np.uint8), np.random.default_rng(0))


@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1), (3, 40_000)])
def test_a_line_is_squashed_in_little_memory(shape):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = np.full((*shape, 3), 7, np.uint8)
    for rounding in ("nearest", "down", "none"):
        squash = Resize(size=(3000, 30), rounding=rounding, method="area")
        np.testing.assert_allclose(squash(line, np.random.default_rng(0)), 7, atol=1e-3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # Kilobytes.


def test_memory_that_runs_out_is_not_the_images_fault(monkeypatch):
    def no_memory(self):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", no_memory)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_memory)
    with pytest.raises(MemoryError):
        decode_image(png())


# What is no file, or no longer the file that was listed.


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "root"
    for name in ("cat", "dog"):
        (root / "train" / name).mkdir(parents=True)
        for i in range(3):
            (root / "train" / name / f"{i}.png").write_bytes(png())
    return root


def opened(folder):
    return ImageFolder(folder, split="train")


def replace(path, how):
    """Puts something else in a file's place."""
    path.unlink()
    if how == "pipe":
        os.mkfifo(path)
    elif how == "socket":
        with socket.socket(socket.AF_UNIX) as here:
            here.bind(str(path))
    elif how == "device":
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero: it has no end.
    elif how == "folder":
        path.mkdir()
    elif how == "link out":
        path.symlink_to("/etc/passwd")
    elif how == "link to a device":
        path.symlink_to("/dev/zero")
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "large":
        with open(path, "wb") as file:
            file.truncate(reading.MAX_BYTES + 1)
    elif how == "endless":
        with open(path, "wb") as file:
            file.truncate(1 << 43)


REPLACEMENTS = {
    "gone": "cannot be read: No such file or directory",
    "pipe": "It is no regular file",
    "device": "It is no regular file",
    "folder": "It is no regular file",
    "link out": "It is a link that leads out of .*root, to /etc/passwd",
    "link to a device": "It is a link that leads out of .*root, to /dev/zero",
    "loop": "cannot be read: Too many levels of symbolic links",
    "large": r"too large: of its 268,435,457 bytes at most 268,435,456 .*reading\.MAX_BYTES",
    "endless": "too large: of its 8,796,093,022,208 bytes",
}


@pytest.mark.parametrize("how", REPLACEMENTS)
def test_what_takes_a_files_place_after_the_start_is_named_at_once(folder, how):
    source = opened(folder)
    path = pathlib.Path(source.describe(2))
    try:
        replace(path, how)
    except PermissionError:
        pytest.skip("making a device takes the right to")
    except OSError as error:
        pytest.skip(f"this file system has no such files: {error}")
    begun = time.monotonic()
    with pytest.raises(DataError, match=REPLACEMENTS[how]):
        source[2]
    assert time.monotonic() - begun < 1
    if not how.startswith("link"):  # A file that is named may be anywhere.
        with pytest.raises(DataError, match=REPLACEMENTS[how]):
            Files([path], class_names=["a"])[0]


def test_a_file_that_may_not_be_read_is_named(folder):
    source = opened(folder)
    path = pathlib.Path(source.describe(2))
    path.chmod(0)
    root = os.geteuid() == 0  # Whom nothing is forbidden.
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(DataError, match="The file cannot be read: Permission denied"):
            source[2]
    finally:
        if root:
            os.seteuid(0)


def test_pipes_and_devices_are_not_listed(folder, caplog):
    os.mkfifo(folder / "train" / "cat" / "pipe.jpg")
    assert len(opened(folder)) == 6
    assert "do not look like images and are left out, such as cat/pipe.jpg" in caplog.text


def test_pictures_to_predict_lie_in_the_folder_that_was_named(folder, tmp_path):
    pictures = folder / "train" / "cat"
    (pictures / "twin.png").symlink_to("0.png")
    assert len(find_images([str(pictures)])) == 4
    (tmp_path / "elsewhere.png").write_bytes(png())
    (pictures / "z.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(DataError, match=r"z\.png is a link that leads out of .*elsewhere\.png"):
        find_images([str(pictures)])
    assert find_images([str(pictures / "z.png")])  # Named itself, it is meant.


# Fashion-MNIST's files.

HEADER = bytes([0, 0, 8, 1]) + (1000).to_bytes(4, "big")
GOOD = HEADER + bytes(1000)
FAULTS = {
    "unpacks to 300 MB": (gzip.compress(bytes(300 << 20)), "got more than 1008 bytes"),
    "a longer file": (gzip.compress(GOOD + b"\0"), "got more than 1008 bytes"),
    "a shorter file": (gzip.compress(GOOD[:-1]), "got 1007 bytes"),
    "another shape": (gzip.compress(bytes([0, 0, 8, 3]) + GOOD[4:]), "got 1008 bytes.*00000803"),
    "garbage at the end": (gzip.compress(GOOD) + b"garbage", "cannot be read.*Not a gzipped"),
    "a second file at the end": (gzip.compress(GOOD) * 2, "got more than 1008 bytes"),
    "cut short": (gzip.compress(GOOD)[:-4], "cannot be read.*end-of-stream"),
    "a wrong check sum": (gzip.compress(GOOD)[:-8] + bytes(8), "cannot be read.*CRC"),
    "not zipped, endless": (GOOD + bytes(99), "got more than 1008 bytes"),
    "empty": (b"", "got 0 bytes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_idx_files_are_read_as_far_as_they_should_go(tmp_path, fault):
    content, message = FAULTS[fault]
    (tmp_path / "labels.gz").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=rf"labels\.gz.*{message}"):
        fashion_mnist.read_idx(tmp_path / "labels.gz", shape=(1000,))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # Kilobytes.


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_good_idx_file_is_read(tmp_path, pack):
    (tmp_path / "labels").write_bytes(pack(GOOD))
    assert fashion_mnist.read_idx(tmp_path / "labels", shape=(1000,)).shape == (1000,)
