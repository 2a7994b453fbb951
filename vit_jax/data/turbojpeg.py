"""Decodes a box of a JPEG by libjpeg-turbo's TurboJPEG 3, if that is installed.

Pillow decodes all pixels of an image. TurboJPEG 3 (libjpeg-turbo 3.0 or later) computes no inverse
transform outside a box and does not read below it. With a margin of one block on its sides, the
pixels are those of the whole image, to the bit: chroma is interpolated between neighbouring blocks.
So whether the library is there changes no number of a run, only its speed.

No package of Python exposes both the box and the scale, so this is a binding of eight functions of
its stable C API (https://libjpeg-turbo.org), by ctypes. Decoding releases Python's global lock.
"""

import contextlib
import ctypes
import ctypes.util
import functools
import importlib.util
import pathlib
import sys
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from vit_jax.data.decode import MAX_PIXELS, MAX_SCANS

Box = tuple[int, int, int, int]  # Top, left, height, width, in pixels.

# Values of the C API's enumerations.
_DECOMPRESS = 1
_SUBSAMPLING, _WIDTH, _HEIGHT, _PRECISION, _COLOURS, _SCAN_LIMIT, _LOSSLESS = 4, 5, 6, 7, 8, 13, 15
_YCBCR, _GRAY = 1, 2
_PIXELS_RGB, _PIXELS_GRAY = 0, 6
# Width of a block in pixels, by subsampling: 4:4:4, 4:2:2, 4:2:0, gray, 4:4:0, 4:1:1.
_BLOCK_WIDTHS = (8, 16, 16, 8, 8, 32)


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


class _Fraction(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("numerator", "denominator")]


_SIGNATURES = {  # name: (result, *arguments)
    "tj3Init": (ctypes.c_void_p, ctypes.c_int),
    "tj3Destroy": (None, ctypes.c_void_p),
    "tj3Get": (ctypes.c_int, ctypes.c_void_p, ctypes.c_int),
    "tj3Set": (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int),
    "tj3DecompressHeader": (ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t),
    "tj3SetScalingFactor": (ctypes.c_int, ctypes.c_void_p, _Fraction),
    "tj3SetCroppingRegion": (ctypes.c_int, ctypes.c_void_p, _Region),
    "tj3Decompress8": (
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t),
        *(ctypes.c_void_p, ctypes.c_int, ctypes.c_int),
    ),
}


class Jpeg:
    """An opened JPEG of the usual kind: 8 bits, YCbCr or gray.

    Attributes:
      height, width: of the stored image, before its EXIF orientation.
    """

    def __init__(self, library: ctypes.CDLL, handle: int, data: bytes):
        """Is made by `open_jpeg`."""
        self._library, self._handle, self._data = library, handle, data
        get = functools.partial(library.tj3Get, handle)
        self.height, self.width = get(_HEIGHT), get(_WIDTH)
        self._subsampling, self._colours = get(_SUBSAMPLING), get(_COLOURS)
        self.is_usual = (
            0 <= self._subsampling < len(_BLOCK_WIDTHS)
            and self._colours in (_YCBCR, _GRAY)
            and get(_PRECISION) == 8
            and get(_LOSSLESS) <= 0
        )

    def decode_box(self, box: Box, *, denominator: int = 1) -> UInt8[np.ndarray, "h w c"] | None:
        """Decodes a box to RGB, or to one channel if the JPEG is gray.

        Args:
          box: in the stored image, divided by `denominator`.
          denominator: 1, 2, 4 or 8: the image is decoded at this part of its size, rounded up.

        Returns:
          The pixels, equal to those of Pillow. None: the decoder had an error or a warning, or the
          JPEG has more than `MAX_SCANS`.
        """
        library, handle = self._library, self._handle
        top, left, height, width = box
        block = max(_BLOCK_WIDTHS[self._subsampling] // denominator, 1)
        # The library requires that a block begins at the left edge. The margin is explained above.
        start = max(left // block - 1, 0) * block
        stop = min(left + width + block, -(-self.width // denominator))
        is_gray = self._colours == _GRAY
        pixels = np.empty((height, stop - start, 1 if is_gray else 3), np.uint8)
        failed = (
            library.tj3Set(handle, _SCAN_LIMIT, MAX_SCANS)
            or library.tj3SetScalingFactor(handle, _Fraction(1, denominator))
            or library.tj3SetCroppingRegion(handle, _Region(start, top, stop - start, height))
            or library.tj3Decompress8(
                *(handle, self._data, len(self._data), pixels.ctypes.data, 0),
                _PIXELS_GRAY if is_gray else _PIXELS_RGB,
            )
        )
        return None if failed else pixels[:, left - start : left - start + width]


@contextlib.contextmanager
def open_jpeg(data: bytes) -> Iterator[Jpeg | None]:
    """Opens a JPEG, for the time of a `with` statement.

    It gives None, and Pillow decides on the file, if there is no library; the JPEG has other
    colours (CMYK) or another block structure, or more than `MAX_PIXELS`; it does not end with the
    last marker of a JPEG, so it may be truncated; or its header has an error.
    """
    library = _library()
    if library is None or not data.endswith(b"\xff\xd9"):
        yield None
        return
    handle = library.tj3Init(_DECOMPRESS)
    try:
        if not handle or library.tj3DecompressHeader(handle, data, len(data)):
            yield None
        else:
            jpeg = Jpeg(library, handle, data)
            yield jpeg if jpeg.is_usual and jpeg.height * jpeg.width <= MAX_PIXELS else None
    finally:
        library.tj3Destroy(handle)


def is_available() -> bool:
    """Whether TurboJPEG 3 is installed."""
    return _library() is not None


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Returns the first installed libturbojpeg with the functions of version 3; None: none."""
    for path in _candidates():
        try:
            # Only decoding releases Python's global lock. All else takes less time than to get the
            # lock back while other threads load.
            library, unlocked = ctypes.PyDLL(path), ctypes.CDLL(path)
            for name, (result, *arguments) in _SIGNATURES.items():
                function = getattr(unlocked if name == "tj3Decompress8" else library, name)
                function.restype, function.argtypes = result, arguments
                setattr(library, name, function)
        except (OSError, AttributeError):  # Not a library, or version 2.
            continue
        return library
    return None


def _candidates() -> Iterator[str]:
    """Yields where libturbojpeg may be: of the system, of conda, of the package `turbojpeg`."""
    if name := ctypes.util.find_library("turbojpeg"):
        yield name
    folders = [pathlib.Path(sys.prefix, "lib")]
    spec = importlib.util.find_spec("turbojpeg")
    if spec is not None and spec.origin is not None:
        package = pathlib.Path(spec.origin).parent
        folders += [package / "turbojpeg.libs", package / "turbojpeg.dylibs"]
    for folder in folders:
        yield from sorted(map(str, folder.glob("libturbojpeg*")))
