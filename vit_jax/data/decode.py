"""Decodes image files of every format to uint8 [height, width, 3 or 1]."""

import contextlib
import io
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from vit_jax.errors import DataError
from vit_jax.telemetry.progress import format_count

# Raise it when decoded pixels change: images that `config.data.cache` holds are then decoded again.
DECODING_VERSION = 1
# Larger images are refused before a pixel is decoded: a few kilobytes can declare gigabytes.
# The limit is Pillow's, which only warns: 268 MB as RGB.
MAX_PIXELS = 89_478_485
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# OpenJPEG needs about 36 bytes per pixel to decode an image, other decoders at most 16.
MAX_PIXELS_JPEG2000 = MAX_PIXELS // 4
# Of a JPEG. One megabyte can contain 100,000 empty scans, each decoded over all pixels; encoders
# write about ten.
MAX_SCANS = 500

# Accepted formats, each with the extensions by which its files are found in folders and archives.
# Pillow can read more, but for some (EPS) it starts other programs.
_EXTENSIONS_OF = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm"),
    "JPEG2000": (".jp2", ".j2k"),
}
FORMATS = tuple(_EXTENSIONS_OF)
EXTENSIONS = tuple(extension for names in _EXTENSIONS_OF.values() for extension in names)

# Ancillary chunks of a PNG that affect pixels (transparency, orientation, an animation's frames),
# and the beginnings of text chunks in which Pillow looks for an orientation.
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")
_PNG_TEXTS = (b"Raw profile type exif", b"XML:com.adobe.xmp")

# Formats whose 16-bit pixels Pillow opens in its 32-bit mode I (PNG: before Pillow 11).
_16_BIT_AS_MODE_I = ("PNG", "PPM")

# How a complete file ends: with the marker EOI; with the chunk IEND.
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"\0\0\0\0IEND\xaeB`\x82"}

_EXIF_ORIENTATION = 0x0112
_TRANSPOSE = {  # EXIF orientation -> the operation that undoes it.
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(
    data: bytes | np.ndarray, *, channels: int = 3, exif: bool = True
) -> UInt8[np.ndarray, "h w c"]:
    """Decodes an image of a data set to uint8 pixels.

    Alpha is dropped, not composited (as in TensorFlow, timm and Hugging Face). 16-bit gray is
    reduced to its high byte, as in TensorFlow; Pillow's own conversion would clip nearly all pixels
    to white. JPEGs are decoded by libjpeg's accurate integer DCT; TensorFlow's default is the fast
    one, which differs by up to 14 levels. An animation is reduced to its first frame. Broken
    comments and colour profiles of a PNG are ignored, as in libpng.

    Args:
      data: an encoded file (any of `FORMATS`), or uint8 pixels [h, w] or [h, w, 1 to 4].
      channels: 3 for RGB, 1 for gray; the image is converted if it is stored otherwise.
      exif: rotate or mirror the image by its EXIF orientation, as Hugging Face does; TensorFlow,
        timm and torchvision do not. Unreadable EXIF is ignored.

    Raises:
      DataError: the data are not an image, or a truncated one; it has more than `MAX_PIXELS` or
        `MAX_SCANS`; or the range of its pixels is unknown (floats, 32-bit or signed integers).
    """
    if isinstance(data, np.ndarray):
        return convert_pixels(data, channels)
    try:
        return _decode_file(data, channels, exif)
    except DataError:
        stripped = _strip_png(data)
        if stripped == data:
            raise
    return _decode_file(stripped, channels, exif)


def _decode_file(data: bytes, channels: int, exif: bool) -> UInt8[np.ndarray, "h w c"]:
    image = open_image(data)
    with names_broken_file(image, data):
        return _decode(image, channels, exif)


@contextlib.contextmanager
def names_broken_file(image: Image.Image, data: bytes) -> Iterator[None]:
    """Makes a DataError of what Pillow raises when it decodes a broken file."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as e:  # On a broken file, Pillow's readers raise nearly every type.
        raise _broken(image.format or "", data, e) from e


def _strip_png(data: bytes) -> bytes:
    """Removes ancillary chunks that do not affect the pixels of a PNG, and broken ones.

    Pillow raises an error at any chunk with a wrong checksum or an invalid length, and at a
    compressed text or profile of more than 1 MB. Critical chunks and other formats do not change.
    """
    if not data.startswith(_PNG_SIGNATURE):
        return data
    chunks, start = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while start + 12 <= len(data):  # Length, name, content, checksum: 12 bytes without content.
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        name, checked = data[start + 4 : start + 8], data[start + 4 : end - 4]
        is_critical = name[:1].isupper()
        affects_pixels = name in _PNG_CHUNKS or checked[4:].startswith(_PNG_TEXTS)
        is_intact = zlib.crc32(checked) == int.from_bytes(data[end - 4 : end], "big")
        if is_critical or (affects_pixels and is_intact):
            chunks.append(data[start:end])
        start = end
    return b"".join([*chunks, data[start:]])


def is_plausible_file(path: str) -> bool:
    """Whether a file has an image's header, and an end of its format; decodes no pixel.

    False is no proof that it is broken: `decode_image` accepts some bytes after a JPEG's end, and
    broken comments of a PNG.
    """
    try:
        with open(path, "rb") as file:
            image = Image.open(file, formats=FORMATS)
            kind, is_small = image.format or "", image.width * image.height <= _max_pixels(image)
            file.seek(-min(len(_ENDS.get(kind, b"")), file.seek(0, io.SEEK_END)), io.SEEK_END)
            return is_small and file.read() == _ENDS.get(kind, b"")
    except Exception:  # On a broken file, Pillow's readers raise nearly every type.
        return False


def decode_pillow(
    image: Image.Image, *, channels: int = 3, exif: bool = True
) -> UInt8[np.ndarray, "h w c"]:
    """Decodes an image that Pillow has opened, as `decode_image`.

    Raises:
      DataError: the image is broken, or the range of its pixels is unknown.
    """
    try:
        return _decode(image, channels, exif)
    except (DataError, MemoryError):
        raise
    except Exception as e:  # As above.
        raise DataError(f"Broken image: {e}. Replace it, or leave it out.") from e


def _decode(image: Image.Image, channels: int, exif: bool) -> UInt8[np.ndarray, "h w c"]:
    image.load()
    mode_i_has_16_bits = image.format in _16_BIT_AS_MODE_I  # A transposed image has no format.
    if exif and (transpose := _TRANSPOSE.get(orientation(image))) is not None:
        image = image.transpose(transpose)
    return pixels_of(image, channels, mode_i_has_16_bits=mode_i_has_16_bits)


def open_image(data: bytes) -> Image.Image:
    """Opens an image file without decoding its pixels.

    Raises:
      DataError: the data are not an image, or a broken one; or it is too large.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise DataError(f"The image is too large: {e} Scale it down beforehand.") from e
    except UnidentifiedImageError as e:
        content = f"{len(data):,} bytes that begin with {bytes(data[:8])!r} are"
        if len(data) <= 8:
            content = f"the bytes {bytes(data)!r} are" if data else "an empty file is"
        raise DataError(f"Not an image: {content} none of {', '.join(FORMATS)}.") from e
    except MemoryError:
        raise
    except Exception as e:  # As above.
        raise _broken("", data, e) from e
    if image.width * image.height > _max_pixels(image):
        limit_name = "MAX_PIXELS_JPEG2000" if image.format == "JPEG2000" else "MAX_PIXELS"
        raise DataError(
            f"The image is too large: {image.width}x{image.height} is more than "
            f"{_max_pixels(image)} pixels (vit_jax.data.decode.{limit_name}). Scale it down "
            "beforehand."
        )
    if image.format in ("JPEG", "MPO") and (scans := _count_scans(data)) > MAX_SCANS:
        raise DataError(
            f"The JPEG has {scans} scans: more than {MAX_SCANS} (vit_jax.data.decode.MAX_SCANS) "
            "would take too long. Encode it again."
        )
    return image


def _max_pixels(image: Image.Image) -> int:
    return MAX_PIXELS_JPEG2000 if image.format == "JPEG2000" else MAX_PIXELS


def _count_scans(data: bytes) -> int:
    """Returns the number of scans in a JPEG: exact or, up to `MAX_SCANS`, an upper bound."""
    upper = data.count(b"\xff\xda")  # Within a scan, the byte FF is never followed by DA.
    if upper <= MAX_SCANS:
        return upper
    # Some may be in a comment or after the end of the image: go from segment to segment.
    scans, start, marker = 0, 0, b""
    while marker != b"\xd9" and (start := data.find(b"\xff", start)) >= 0:
        marker = data[start + 1 : start + 2]
        if b"\xc0" <= marker < b"\xff" and not b"\xd0" <= marker <= b"\xd9":
            scans += marker == b"\xda"
            start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        else:
            start += 1 if marker == b"\xff" else 2
    return scans


def _broken(kind: str, data: bytes, error: Exception) -> DataError:
    return DataError(
        f"Broken {kind}{' ' * bool(kind)}image of {format_count(len(data), 'byte')}: {error}. "
        "Replace the file, or leave it out of the data set."
    )


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation of an opened image, from 1 to 8; 1, upright: it has none."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # The pixels of an image with broken EXIF may be intact.
        return 1
    return value if value in _TRANSPOSE else 1


def pixels_of(
    image: Image.Image, channels: int, *, mode_i_has_16_bits: bool = False
) -> UInt8[np.ndarray, "h w c"]:
    """Returns the pixels of an image in any of Pillow's modes.

    Args:
      image: decoded.
      channels: 3 or 1.
      mode_i_has_16_bits: mode I is 16-bit gray in 32 bits.

    Raises:
      DataError: the range of its pixels is unknown.
    """
    if image.mode.startswith("I"):  # I;16, I;16B, I;16L; or I.
        gray = np.asarray(image)
        if image.mode == "I" and not mode_i_has_16_bits:
            raise DataError(
                f"The image has 32-bit or signed pixels, from {gray.min()} to {gray.max()}, and "
                "the level of white is unknown. Convert it to 8 bits, or 16 without a sign."
            )
        return convert_pixels((gray >> 8).astype(np.uint8), channels)
    if image.mode == "F":
        raise DataError(
            "The image has floating-point pixels, and the level of white is unknown. Convert it to "
            "8 or 16 bits."
        )
    if image.mode in ("P", "PA"):  # Via RGBA, because transparent palette entries have a colour.
        image = image.convert("RGBA")
    mode = "RGB" if channels == 3 else "L"
    image = image if image.mode == mode else image.convert(mode)
    return convert_pixels(np.array(image), channels)


def convert_pixels(pixels: np.ndarray, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """Converts an array of 1 to 4 channels, which may include alpha, to 3 or 1.

    Raises:
      DataError: it is no image.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.size == 0:
        raise DataError(
            "An image that is stored as an array must be uint8 [height, width] or [height, width, "
            f"channels] and not empty; this one is {pixels.dtype} {list(pixels.shape)}."
        )
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[-1] in (2, 4):
        pixels = pixels[..., :-1]
    match pixels.shape[-1], channels:
        case (1, 1) | (3, 3):
            return pixels
        case 1, 3:
            return gray_to_rgb(pixels)
        case 3, 1:
            return rgb_to_gray(pixels)
        case stored, _:
            raise DataError(
                f"Cannot convert an image of {stored} channels to {channels}: accepted are 1 and 3 "
                "(a stored image may have 2 or 4, with alpha)."
            )


def gray_to_rgb(pixels: UInt8[np.ndarray, "h w 1"]) -> UInt8[np.ndarray, "h w 3"]:
    """Repeats the gray value as red, green and blue."""
    return np.repeat(pixels, 3, axis=-1)


def rgb_to_gray(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 1"]:
    """Returns the luma, .299 red + .587 green + .114 blue (ITU-R BT.601), rounded."""
    return from_pillow(to_pillow(pixels).convert("L"))


def to_pillow(pixels: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """Converts pixels (1 or 3 channels) to a Pillow image of mode L or RGB."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def from_pillow(image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    """Inverts `to_pillow`; the result is read-only."""
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
