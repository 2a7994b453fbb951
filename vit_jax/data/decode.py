"""Image files to arrays: every kind of file becomes uint8 [height, width, 3 or 1]."""

import io
import warnings
import zlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from vit_jax.errors import DataError

# Larger images are refused before a pixel is decoded: a few kilobytes can declare gigabytes.
# This is where Pillow itself begins to warn, in vain: 268 MB as RGB.
MAX_PIXELS = 89_478_485
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# OpenJPEG takes about 36 bytes a pixel to decode one, the others at most 16.
MAX_PIXELS_JPEG2000 = MAX_PIXELS // 4
# Of a JPEG. A megabyte can hold 100,000 empty scans, each of them over all pixels; encoders make
# about ten.
MAX_SCANS = 500

# What is tried. Pillow knows more, but some of those (EPS) start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")

# Ancillary chunks of a PNG that decide about pixels: transparency, orientation, an animation's
# frames; and the beginnings of texts in which Pillow finds an orientation.
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")
_PNG_TEXTS = (b"Raw profile type exif", b"XML:com.adobe.xmp")

# Those of which Pillow widens 16 bits to the 32 of its mode I (PNG: before Pillow 11).
_WIDENED = ("PNG", "PPM")

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
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
    """An image as stored in a data set, as an array.

    Alpha is dropped, not composited (as TensorFlow, timm and Hugging Face do). Of 16-bit gray the
    high byte is kept, as TensorFlow does; Pillow's own conversion would clip nearly all to white.
    JPEGs are decoded by libjpeg's accurate integer DCT: TensorFlow's default is the fast one, which
    differs by up to 14 levels. Of animations the first frame is taken. Comments and colour profiles
    of a PNG are never a reason to refuse it: libpng, too, passes over those that are broken.

    Args:
      data: an encoded file (any of `FORMATS`), or uint8 pixels [h, w] or [h, w, 1 to 4].
      channels: 3 for RGB, 1 for gray; the image is converted if it is stored otherwise.
      exif: turn the image upright as its EXIF orientation says. Hugging Face does,
        TensorFlow, timm and torchvision do not. Unreadable EXIF counts as none.

    Returns:
      uint8 pixels.

    Raises:
      DataError: not an image, a truncated one, one of more than `MAX_PIXELS` or `MAX_SCANS`, or
        pixels whose range is unknown (floats, 32-bit and signed integers).
    """
    if isinstance(data, np.ndarray):
        return _convert_array(data, channels)
    try:
        return _decode_file(data, channels, exif)
    except DataError:
        plain = _without_comments(data)
        if plain == data:
            raise
    return _decode_file(plain, channels, exif)


def _decode_file(data: bytes, channels: int, exif: bool) -> UInt8[np.ndarray, "h w c"]:
    image = _open(data)
    try:
        return _decode(image, channels, exif)
    except (DataError, MemoryError):
        raise
    except Exception as e:  # Pillow's readers raise nearly every type on a broken file.
        raise _broken(image.format or "", data, e) from e


def _without_comments(data: bytes) -> bytes:
    """A PNG without the ancillary chunks that Pillow might stumble over; other data as they are.

    Pillow ends at a chunk with a wrong checksum, at a compressed text or profile of more than 1 MB
    and at an odd length, whatever the chunk is for. Critical chunks are left as they are.
    """
    if not data.startswith(_PNG_SIGNATURE):
        return data
    kept, at = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while at + 12 <= len(data):  # Length, name, content, checksum; what is cut off stays cut off.
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name, checked = data[at + 4 : at + 8], data[at + 4 : end - 4]
        critical = name[:1].isupper()
        useful = name in _PNG_CHUNKS or checked[4:].startswith(_PNG_TEXTS)
        whole = zlib.crc32(checked) == int.from_bytes(data[end - 4 : end], "big")
        if critical or (useful and whole):
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def decode_pillow(
    image: Image.Image, *, channels: int = 3, exif: bool = True
) -> UInt8[np.ndarray, "h w c"]:
    """As `decode_image`, of an image that is open in Pillow already.

    Raises:
      DataError: the image is broken, or its pixels' range is unknown.
    """
    try:
        return _decode(image, channels, exif)
    except (DataError, MemoryError):
        raise
    except Exception as e:  # As above.
        raise DataError(f"Broken image: {e}. Replace it, or leave it out.") from e


def _decode(image: Image.Image, channels: int, exif: bool) -> UInt8[np.ndarray, "h w c"]:
    image.load()
    widened = image.format in _WIDENED  # A turned image does not say so any more.
    if exif:
        image = _upright(image)
    return _pixels(image, channels, widened=widened)


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise DataError(f"The image is too large: {e} Scale it down beforehand.") from e
    except UnidentifiedImageError as e:
        raise DataError(
            f"Not an image: {len(data)} bytes that begin with {bytes(data[:8])!r} are none of "
            f"{', '.join(FORMATS)}."
        ) from e
    except MemoryError:
        raise
    except Exception as e:  # As above.
        raise _broken("", data, e) from e
    limit, limit_name = MAX_PIXELS, "MAX_PIXELS"
    if image.format == "JPEG2000":
        limit, limit_name = MAX_PIXELS_JPEG2000, "MAX_PIXELS_JPEG2000"
    if image.width * image.height > limit:
        raise DataError(
            f"The image is too large: {image.width}x{image.height} is more than {limit} pixels "
            f"(vit_jax.data.decode.{limit_name}). Scale it down beforehand."
        )
    if image.format in ("JPEG", "MPO") and (scans := _scans(data)) > MAX_SCANS:
        raise DataError(
            f"The JPEG has {scans} scans: more than {MAX_SCANS} (vit_jax.data.decode.MAX_SCANS) "
            "would take too long. Encode it again."
        )
    return image


def _scans(data: bytes) -> int:
    """How many scans a JPEG has; exact where there are more than `MAX_SCANS`."""
    marks = data.count(b"\xff\xda")  # Within a scan, the byte FF is never followed by DA.
    if marks <= MAX_SCANS:
        return marks
    # Some may be within a comment, or behind the end: go from segment to segment.
    scans, at, marker = 0, 0, b""
    while marker != b"\xd9" and (at := data.find(b"\xff", at)) >= 0:
        marker = data[at + 1 : at + 2]
        if b"\xc0" <= marker < b"\xff" and not b"\xd0" <= marker <= b"\xd9":
            scans += marker == b"\xda"
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        else:
            at += 1 if marker == b"\xff" else 2
    return scans


def _broken(kind: str, data: bytes, error: Exception) -> DataError:
    return DataError(
        f"Broken {kind}{' ' * bool(kind)}image of {len(data)} bytes: {error}. Replace the file, or "
        "leave it out of the data set."
    )


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # Broken EXIF is no reason to lose good pixels.
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _pixels(image: Image.Image, channels: int, *, widened: bool) -> UInt8[np.ndarray, "h w c"]:
    if image.mode.startswith("I"):  # I;16, I;16B, I;16L; or I.
        gray = np.asarray(image)
        if image.mode == "I" and not widened:
            raise DataError(
                f"The image has 32-bit or signed pixels, from {gray.min()} to {gray.max()}, and "
                "which of them is white is unknown. Convert it to 8 bits, or 16 without a sign."
            )
        return _convert_array((gray >> 8).astype(np.uint8), channels)
    if image.mode == "F":
        raise DataError(
            "The image has floating-point pixels, and which of them is white is unknown. Convert "
            "it to 8 or 16 bits."
        )
    if image.mode in ("P", "PA"):  # By way of RGBA: a transparent palette entry has a colour too.
        image = image.convert("RGBA")
    mode = "RGB" if channels == 3 else "L"
    image = image if image.mode == mode else image.convert(mode)
    return _convert_array(np.array(image), channels)


def _convert_array(pixels: np.ndarray, channels: int) -> UInt8[np.ndarray, "h w c"]:
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
                f"Cannot turn an image of {stored} channels into one of {channels}: 1 and 3 are "
                "accepted (2 and 4, with alpha, as stored)."
            )


def gray_to_rgb(pixels: UInt8[np.ndarray, "h w 1"]) -> UInt8[np.ndarray, "h w 3"]:
    """The gray value as red, green and blue."""
    return np.repeat(pixels, 3, axis=-1)


def rgb_to_gray(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 1"]:
    """Luma: .299 red + .587 green + .114 blue (ITU-R BT.601), rounded."""
    return from_pillow(to_pillow(pixels).convert("L"))


def to_pillow(pixels: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """Pixels (1 or 3 channels) as a Pillow image of mode L or RGB."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def from_pillow(image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    """The inverse of `to_pillow`."""
    pixels = np.array(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
