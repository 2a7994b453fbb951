"""Tar files of WebDataset: scanned once for samples, whose images are then read at an offset.

A sample is a run of members that have the same path up to the first dot of the file's name: its
key. Source: the format description of the webdataset library.
"""

import json
import os
import tarfile
from collections.abc import Iterator

import pyarrow as pa

from vit_jax.data.decode import EXTENSIONS
from vit_jax.errors import DataError

_LABEL_BYTES = 2**20  # Largest file of a label that is read.
_SCHEMA = pa.schema(
    {"key": pa.string(), "offset": pa.int64(), "length": pa.int64(), "label": pa.string()}
)


def scan(path: str, *, image_key: str, label_key: str) -> pa.Table:
    """Returns key, offset and length of the image, and label of each sample, with an image.

    The label is null if there is none. `image` stands for the one file with an image's extension;
    `label` for a file `.cls`, `.txt`, or the key `label` of a file `.json`.

    Args:
      path: of the tar file, not compressed.
      image_key: extension of the image, such as "jpg"; or "image".
      label_key: extension of the label's file, such as "cls", or a key of the JSON file; or
        "label".

    Raises:
      DataError: the file cannot be read, is compressed or damaged, or a sample has several images.
    """
    columns: dict[str, list] = {name: [] for name in _SCHEMA.names}
    try:
        with tarfile.open(path, "r:") as tar:
            for key, members in _samples(tar):
                image = _image(members, image_key, where=f"{path}: {key}")
                if image is None:
                    continue
                columns["key"].append(key)
                columns["offset"].append(image.offset_data)
                columns["length"].append(image.size)
                columns["label"].append(_label(tar, members, label_key))
            # `tarfile` ends in silence where a header is cut off.
            if os.path.getsize(path) < tar.offset:
                raise tarfile.ReadError("unexpected end of data")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as a tar file: {error}. Compressed files (.tar.gz) must be "
            "unpacked to .tar; a damaged one must be got again."
        ) from error
    return pa.table(columns, schema=_SCHEMA)


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Yields the key of each sample, and its members by extension in lower case."""
    key, members = "", {}
    while (member := tar.next()) is not None:
        # It would keep them all.
        tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # Not in typeshed.
        folder, name = os.path.split(member.name)
        stem, dot, extension = name.partition(".")
        if not member.isfile() or not stem or not dot:
            continue
        if (new_key := os.path.join(folder, stem)) != key:
            if members:
                yield key, members
            key, members = new_key, {}
        members[extension.lower()] = member
    if members:
        yield key, members


def _image(
    members: dict[str, tarfile.TarInfo], image_key: str, *, where: str
) -> tarfile.TarInfo | None:
    if image_key != "image":
        return members.get(image_key.lower().removeprefix("."))
    images = [name for name in members if f".{name}".endswith(EXTENSIONS)]
    if len(images) > 1:
        raise DataError(
            f"{where} has several images: set data.image_key to one of {', '.join(images)}."
        )
    return members[images[0]] if images else None


def _label(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], label_key: str) -> str | None:
    """Returns the label of a sample as text; None if it has none."""
    extensions = ("cls", "txt") if label_key == "label" else (label_key.lower(),)
    for extension in extensions:
        if extension in members:
            return _read(tar, members[extension]).strip() or None
    if "json" in members:
        try:
            label = json.loads(_read(tar, members["json"])).get(label_key)
        except (ValueError, AttributeError, RecursionError):
            return None
        if isinstance(label, str | int) and not isinstance(label, bool):
            return str(label)
    return None


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = tar.extractfile(member)
    return file.read(_LABEL_BYTES).decode(errors="replace") if file else ""
