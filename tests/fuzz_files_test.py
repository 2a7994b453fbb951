"""Whatever an image or a work directory holds: only our own errors come out of it, soon."""

import io
import math

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from tests.fuzzing import bounded, fuzz
from tests.images import photographs
from vit_jax.data.decode import FORMATS, MAX_PIXELS, decode_image
from vit_jax.errors import DataError

pytestmark = pytest.mark.slow

# -------------------------------------------------------------------------------------- images


def encoded():
    """Small images in every format that is read, several ways each."""
    photo = photographs()["flower"].resize((40, 31))
    exif = Image.Exif()
    exif[0x0112] = 6
    high = Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 257)
    ways = {
        "JPEG": [(photo, {"exif": exif}), (photo, {"progressive": True}),
                 (photo.convert("CMYK"), {}), (photo.convert("L"), {})],
        "PNG": [(photo, {}), (photo.convert("P"), {}), (photo.convert("RGBA"), {"exif": exif}),
                (high, {}), (photo.convert("1"), {}), (photo.convert("LA"), {})],
        "WEBP": [(photo, {}), (photo, {"lossless": True}), (photo.convert("RGBA"), {})],
        "GIF": [(photo, {}), (photo, {"save_all": True, "append_images": [photo.rotate(90)]})],
        "BMP": [(photo, {}), (photo.convert("P"), {})],
        "TIFF": [(photo, {}), (photo, {"compression": "tiff_lzw"}), (high, {}),
                 (photo, {"compression": "jpeg"}), (photo.convert("1"), {"compression": "group4"})],
        "PPM": [(photo, {}), (photo.convert("L"), {}), (high, {})],
        "JPEG2000": [(photo, {}), (photo, {"irreversible": True}), (photo.convert("L"), {})],
    }  # fmt: skip
    assert set(ways) == set(FORMATS)
    for kind, images in ways.items():
        for image, options in images:
            file = io.BytesIO()
            image.save(file, format=kind, **options)
            yield file.getvalue()


ENCODED = list(encoded())
EXTREMES = [b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\x7f\xff",
            b"\x80\0\0\0", b"\1\0\0\0", b"65535 65535 ", b"\0\1\0\0"]  # fmt: skip
PLACE = st.floats(0, 1)


def mutate(data, kind, where, length, other, piece):
    """A flip, a cut, an insertion, an extreme number or a piece of another file."""
    at = int(where * len(data))
    span = int(length * len(data) ** 0.5) + 1
    match kind:
        case "flip":
            at = min(at, len(data) - 1)
            return data[:at] + bytes([data[at] ^ (1 << len(piece) % 8)]) + data[at + 1 :]
        case "cut":
            return data[:at] + data[at + span :]
        case "end":
            return data[:at]
        case "insert":
            return data[:at] + piece + data[at:]
        case "number":
            number = EXTREMES[span % len(EXTREMES)]
            return data[:at] + number + data[at + len(number) :]
        case "splice":
            start = int(length * len(other))
            return data[:at] + other[start : start + span * 8] + data[at:]


def mutations(others):
    """A list of changes, as arguments of `mutate`."""
    kinds = st.sampled_from(["flip", "flip", "cut", "end", "insert", "number", "number", "splice"])
    return st.lists(
        st.tuples(kinds, st.one_of(PLACE, PLACE.map(lambda x: x**4)), PLACE, others,
                  st.binary(min_size=1, max_size=8)),
        min_size=1, max_size=4,
    )  # fmt: skip


@fuzz(4000, data=st.sampled_from(ENCODED), changes=mutations(st.sampled_from(ENCODED)),
      channels=st.sampled_from([1, 3]), exif=st.booleans())  # fmt: skip
def test_bytes_of_images(data, changes, channels, exif):
    for change in changes:
        data = mutate(data, *change) or b"\0"
    with bounded():
        try:
            pixels = decode_image(data, channels=channels, exif=exif)
        except DataError:
            return
        assert pixels.dtype == np.uint8 and pixels.shape[2:] == (channels,)
        assert 0 < math.prod(pixels.shape[:2]) <= MAX_PIXELS


# ----------------------------------------------------------------------------- work directories
