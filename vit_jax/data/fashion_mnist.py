"""Fashion-MNIST (Xiao et al., 2017, arXiv 1708.07747) through TFDS, without TensorFlow.

TFDS's own builder of this data set needs TensorFlow to encode images. Ours reads the same four IDX
files and once (in seconds) writes them as PNG into TFDS's folder of prepared data. The data of
either builder are then read in the same way.
"""

import gzip
import io
import math
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from vit_jax.data.tfds_source import TfdsSource, find_builder, is_prepared, is_readable
from vit_jax.errors import DataError

# Where Debian's package dataset-fashion-mnist installs the files.
PACKAGE_DIR = pathlib.Path("/usr/share/datasets/fashion-mnist")
_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 60_000),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10_000),
}
_NAMES = [name for images, labels, _ in _FILES.values() for name in (images, labels)]
_UNSIGNED_BYTE = 8  # IDX's code for this element type.


def from_config(data_config: ConfigDict, *, split: str) -> TfdsSource:
    """Opens a split of Fashion-MNIST, of `data.data_dir` and `data.manual_dir`."""
    return open_fashion_mnist(
        split=split, data_dir=data_config.data_dir, manual_dir=data_config.manual_dir
    )


def open_fashion_mnist(*, split: str, data_dir: str, manual_dir: str) -> TfdsSource:
    """Opens Fashion-MNIST; prepares it before if needed.

    Uses prepared data in `data_dir`, whether by TFDS's own builder or ours.
    Otherwise prepares them from the four IDX files in `manual_dir`, or else in the folder of
    Debian's package, or else downloaded by TFDS.

    Args:
      split: "train" (60,000 images) or "test" (10,000), or a slice of one.
      data_dir: the folder of prepared data; "": TFDS's own (`~/tensorflow_datasets`).
      manual_dir: the folder with the four IDX files, plain or with gzip; "": none.

    Raises:
      DataError: the files are missing (the message says how to get them) or broken, there is no
        such split, or the data cannot be written.
    """
    tfds_builder = find_builder("fashion_mnist", data_dir=data_dir)
    if is_readable(tfds_builder):
        return TfdsSource(tfds_builder, split=split)

    builder = FashionMnistIdx(data_dir=data_dir or None, file_format="array_record")
    if not is_prepared(builder):
        builder.idx_folder = _find_folder(manual_dir)
        try:
            builder.download_and_prepare()
        except (OSError, RuntimeError) as error:  # ArrayRecord's RuntimeError: the disk is full.
            # TFDS writes into a temporary folder and renames it at the end, which fails if another
            # process was faster. Then the data of that process are used.
            if not is_prepared(builder):
                raise DataError(
                    f"Fashion-MNIST cannot be prepared in {builder.data_dir}: {error}. Set "
                    "data.data_dir to a writable folder with 100 MB of free space."
                ) from error
        builder = FashionMnistIdx(data_dir=data_dir or None, file_format="array_record")
    return TfdsSource(builder, split=split)


class FashionMnistIdx(tfds.core.GeneratorBasedBuilder):
    """Fashion-MNIST from its IDX files. Examples keep the order of the files."""

    VERSION = tfds.core.Version("1.0.0")
    # Otherwise TFDS looks for checksum files near this file.
    code_path: ClassVar[None] = None  # pyright: ignore[reportIncompatibleVariableOverride]  # Also of the class.
    idx_folder: pathlib.Path | None = None  # None: download the files.

    def _info(self) -> tfds.core.DatasetInfo:
        names = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
        return tfds.core.DatasetInfo(
            builder=self,
            description="Zalando's article images: 28x28 grayscale, 10 classes.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=names.split(",")),
                }
            ),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        if self.idx_folder:
            paths: Any = {name: _find_file(self.idx_folder, name) for name in _NAMES}
        else:
            try:
                paths = dl_manager.download({name: f"{_URL}{name}.gz" for name in _NAMES})
            except Exception as error:  # Network libraries raise many types.
                raise DataError(
                    f"Fashion-MNIST could not be downloaded ({type(error).__name__}), and "
                    f"{PACKAGE_DIR} does not exist. Either install Debian's package with `apt-get "
                    "install dataset-fashion-mnist`, or put these four files into a folder and set "
                    f"data.manual_dir to it: {', '.join(f'{name}.gz' for name in _NAMES)}, from "
                    f"{self.info.homepage}."
                ) from error
        return {
            split: self._generate_examples(
                read_idx(paths[images], shape=(count, 28, 28)),
                read_idx(paths[labels], shape=(count,)),
            )
            for split, (images, labels, count) in _FILES.items()
        }

    def _generate_examples(
        self, images: UInt8[np.ndarray, "n 28 28"], labels: UInt8[np.ndarray, "n"]
    ) -> Iterator[tuple[int, dict]]:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            # TFDS would need TensorFlow to encode an array.
            png = io.BytesIO()
            Image.fromarray(image).save(png, format="png")
            png.seek(0)
            yield i, {"image": png, "label": int(label)}


def read_idx(path: pathlib.Path, *, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    """Reads an IDX file of unsigned bytes, with gzip or without.

    The format: two zero bytes, the type of the elements, the number of dimensions, each dimension
    as a big-endian uint32, then the elements.

    Args:
      path: of the file.
      shape: expected shape of the array.

    Raises:
      DataError: the file cannot be read, or has another type or shape.
    """
    header = bytes([0, 0, _UNSIGNED_BYTE, len(shape)]) + np.array(shape, ">u4").tobytes()
    size = len(header) + math.prod(shape)
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        # At most one byte more than expected: a gzip file can expand to a thousand times its size.
        # Reading to the end also checks gzip's checksum.
        with (gzip.open if zipped else open)(path, "rb") as file:
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read, get it again: {error}") from error
    if data[: len(header)] != header or len(data) != size:
        length = f"more than {size}" if len(data) > size else len(data)
        raise DataError(
            f"{path} is not Fashion-MNIST's: expected an IDX file of {shape} unsigned bytes, "
            f"{size} bytes with its header; got {length} bytes, which begin with "
            f"{data[: len(header)].hex()}. Get it again."
        )
    return np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape)


def _find_folder(manual_dir: str) -> pathlib.Path | None:
    if manual_dir:
        folder = pathlib.Path(os.path.expanduser(manual_dir))
        if not os.path.isdir(folder):
            raise DataError(
                f"data.manual_dir={manual_dir}: there is no such folder, or it cannot be reached."
            )
        missing = [name for name in _NAMES if not _find_file(folder, name)]
        if missing:
            raise DataError(
                f"data.manual_dir={manual_dir} lacks {', '.join(f'{n}.gz' for n in missing)}."
            )
        return folder
    return PACKAGE_DIR if PACKAGE_DIR.is_dir() else None


def _find_file(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    return next((p for p in (folder / f"{name}.gz", folder / name) if os.path.isfile(p)), None)
