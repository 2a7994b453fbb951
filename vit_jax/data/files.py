"""Image files that somebody names, to predict on: no labels, no classes."""

import os
import pathlib
from collections.abc import Sequence

from absl import logging

from vit_jax.data.base import Example, Source
from vit_jax.data.image_folder import EXTENSIONS
from vit_jax.data.reading import leads_out, read_file
from vit_jax.errors import DataError

_NAMED = 5  # Of what is left out of a folder; the rest is counted.
_NAME_IT = "Name a file itself to have it tried."


def find_images(paths: Sequence[str]) -> list[pathlib.Path]:
    """The files named, and all images below the folders named (sorted; hidden ones left out).

    A file that is named is taken whatever its ending, and even if it does not exist: reading it
    will say so, beside the results of the others. So is what has an image's name in a folder and
    is a link to nothing, or no file. Of the rest of a folder a warning says that it is left out.

    Raises:
      DataError: a folder without any image, or with a link that leads out of it; nothing named.
    """
    if not paths:
        raise DataError("Name at least one image or folder of images.")
    found = []
    for path in map(pathlib.Path, paths):
        if not os.path.isdir(path):  # Unlike the path's own method, it never raises.
            found.append(path)
            continue
        inside, others = _list(path)
        left_out = ", ".join(str(other.relative_to(path)) for other in others[:_NAMED])
        left_out += ", ..." if len(others) > _NAMED else ""
        if not inside:
            there = f" Left out: {left_out}. {_NAME_IT}" if others else ""
            raise DataError(
                f"{path} holds no image: looked for {', '.join(EXTENSIONS)} below it.{there}"
            )
        if others:
            logging.warning(
                "%s: %d that do not look like images are left out: %s. %s",
                path, len(others), left_out, _NAME_IT,
            )  # fmt: skip
        for file in inside:
            if os.path.exists(file) and (target := leads_out(file, of=os.path.realpath(path))):
                raise DataError(
                    f"{file} is a link that leads out of {path}, to {target}. Name that itself, or "
                    "take the link away."
                )
        found += inside
    return found


def _list(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """What has an image's name below a folder, and what else there is; nothing that is hidden.

    Folders that are links, or cannot be listed, count among the rest: nobody looks into them.
    """
    images, others = [], []
    unlisted = []
    for at, folders, files in os.walk(folder, onerror=unlisted.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        others += [path for name in folders if (path := pathlib.Path(at, name)).is_symlink()]
        for name in files:
            if not name.startswith("."):
                path = pathlib.Path(at, name)
                (images if path.suffix.lower() in EXTENSIONS else others).append(path)
    others += [pathlib.Path(error.filename) for error in unlisted]
    return sorted(images), sorted(others)


class Files(Source):
    """Files as they are on the disk, all with the label 0."""

    def __init__(self, paths: Sequence[pathlib.Path], *, class_names: Sequence[str]):
        """Takes the paths as they are; nothing is opened.

        Args:
          paths: of the files.
          class_names: of the model that will look at them.
        """
        self.name, self.split = "files", ""
        self.class_names = tuple(class_names)
        self._paths = list(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Example:
        return {"image": read_file(self._paths[index]), "label": 0}

    def describe(self, index: int) -> str:
        return str(self._paths[index])
