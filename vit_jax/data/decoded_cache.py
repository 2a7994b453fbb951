"""Keeps decoded images for later epochs: `config.data.cache`.

An image is found by the digest of its encoded bytes, not by its position. So a changed file or
another data set is never served, and splits, subsets and runs share what is equal. Encoded files
are still read each time; what is saved is decoding.
"""

import functools
import hashlib
import os
import pathlib
import shutil
import threading

import numpy as np
import PIL
from jaxtyping import UInt8
from ml_collections import ConfigDict, FrozenConfigDict
from PIL import features

import vit_jax
from vit_jax import storage
from vit_jax.config.data import RAM
from vit_jax.data.decode import DECODING_VERSION, decode_image
from vit_jax.data.pixel_files import KEY_BYTES, PixelFiles, note_full
from vit_jax.errors import ConfigError, DataError

# Pillow's libraries of formats with loss, whose versions may decode to other pixels. "jpg" is only
# the version of an interface, which libjpeg-turbo and MozJPEG share; TIFF files may contain JPEG.
_CODECS = ("jpg", "libjpeg_turbo", "mozjpeg", "webp", "jpg_2000", "libtiff")


class ImageMemory:
    """A store of images by key, in the memory of this process. Thread-safe.

    Attributes:
      in_this_process: other processes have no access to it.
      limit_bytes: bound of all pixels.
    """

    in_this_process = True

    def __init__(self, *, limit_bytes: int):
        """Holds nothing yet."""
        self.limit_bytes = limit_bytes
        self._images: dict[bytes, UInt8[np.ndarray, "h w c"]] = {}
        self._used_bytes = 0
        self._is_full = False
        self._lock = threading.Lock()

    def get(self, key: bytes) -> UInt8[np.ndarray, "h w c"] | None:
        """Returns an image, which cannot be written to; None: it is not stored."""
        return self._images.get(key)

    def put(self, key: bytes, pixels: UInt8[np.ndarray, "h w c"]) -> None:
        """Stores an image, unless the limit is reached; a note then says so."""
        with self._lock:
            if self._is_full or key in self._images:
                return
            if self._used_bytes + pixels.nbytes > self.limit_bytes:
                self._is_full = True
                note_full(
                    f"data.cache={RAM}", used_bytes=self._used_bytes, limit_bytes=self.limit_bytes
                )
                return
            pixels.flags.writeable = False  # Later epochs use the same array.
            self._images[key] = pixels
            self._used_bytes += pixels.nbytes


class DecodedCache:
    """Decodes images, and keeps their pixels in a store."""

    def __init__(self, store: ImageMemory | PixelFiles):
        """Uses a store, which may hold images already."""
        self.store = store

    def describe(self) -> str:
        """Returns where decoded images are kept, and the limit."""
        folder = self.store.folder if isinstance(self.store, PixelFiles) else "memory"
        return f"decoded images in {folder}, up to {self.store.limit_bytes / 1e9:,.1f} GB"

    def decoded(
        self, data: bytes | np.ndarray, *, channels: int, exif: bool
    ) -> bytes | UInt8[np.ndarray, "h w c"]:
        """Returns the pixels of an image as `vit_jax.data.decode.decode_image` does.

        Args:
          data: an encoded file, or an array, which is returned unchanged.
          channels: as for `decode_image`.
          exif: as for `decode_image`.

        Returns:
          The pixels; or `data`, if they cannot be decoded: the transforms report it, unless they
          need only an intact part.
        """
        if isinstance(data, np.ndarray):
            return data
        key = _key(data, channels, exif)
        if (pixels := self.store.get(key)) is not None:
            return pixels
        try:
            pixels = np.ascontiguousarray(decode_image(data, channels=channels, exif=exif))
        except DataError:
            return data
        self.store.put(key, pixels)
        return pixels


def open_cache(data: ConfigDict | FrozenConfigDict, *, processes: int) -> DecodedCache | None:
    """Opens or creates the cache of `config.data`; None: it has none.

    Args:
      data: the section of the config.
      processes: number of JAX processes of the run, of which several may be on this machine.

    Raises:
      ConfigError: the folder cannot be used; or a limit must be given, since the free memory is not
        known, or several processes may share it.
    """
    if not data.cache:
        return None
    limit = int(data.cache_gb * 1e9)
    if data.cache == RAM:
        if not limit and processes > 1:
            raise ConfigError(
                f"data.cache is {RAM} and data.cache_gb is 0, half of the free memory, which the "
                f"{processes} processes of this run may share. Set data.cache_gb, the limit of "
                "each process in GB."
            )
        return DecodedCache(ImageMemory(limit_bytes=limit or _available_memory() // 2))
    folder = os.path.abspath(os.path.expanduser(data.cache))
    with storage.reported(ConfigError, f"data.cache={data.cache} cannot be used"):
        storage.make_folder(folder)
        storage.check_folder(folder)
        store = PixelFiles(folder, limit_bytes=limit)
        if not limit:  # Of what would be free without it: the same when a run continues.
            store.limit_bytes = (shutil.disk_usage(folder).free + store.used_bytes) // 2
    return DecodedCache(store)


def _key(data: bytes, channels: int, exif: bool) -> bytes:
    """Returns a digest of an encoded image and of all on which its pixels depend."""
    # Faster than BLAKE2 on processors with instructions for it.
    hasher = hashlib.sha256(f"{_decoder()} {channels} {exif}\0".encode())
    hasher.update(data)
    return hasher.digest()[:KEY_BYTES]


@functools.cache
def _decoder() -> str:
    codecs = (str(features.version(codec)) for codec in _CODECS)
    return " ".join((vit_jax.__version__, str(DECODING_VERSION), PIL.__version__, *codecs))


def _available_memory() -> int:
    """Returns the bytes of memory that are free on this machine (Linux).

    A container's limit is not considered: it may be in any of the parents of its control group, and
    what counts as used includes files in the page cache.

    Raises:
      ConfigError: the system does not say.
    """
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        kibibytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return int(kibibytes) * 1024
    except (OSError, StopIteration, ValueError) as error:
        raise ConfigError(
            f"data.cache={RAM}: this system does not say how much memory is free. Set "
            "data.cache_gb, the limit in GB."
        ) from error
