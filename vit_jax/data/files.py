"""Image files that somebody names, to predict on: no labels, no classes."""

import os
import pathlib
from collections.abc import Sequence

from vit_jax.data.base import Example, Source
from vit_jax.data.image_folder import EXTENSIONS
from vit_jax.data.reading import leads_out, read_file
from vit_jax.errors import DataError


def find_images(paths: Sequence[str]) -> list[pathlib.Path]:
    """The files named, and all images below the folders named (sorted; hidden ones left out).

    A file that is named is taken whatever its ending, and even if it does not exist: reading it
    will say so, beside the results of the others.

    Raises:
      DataError: a folder without any image, or with a link that leads out of it; nothing named.
    """
    if not paths:
        raise DataError("Name at least one image or folder of images.")
    found = []
    for path in map(pathlib.Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in EXTENSIONS
            and file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        if not inside:
            raise DataError(f"{path} holds no image: looked for {', '.join(EXTENSIONS)} below it.")
        for file in inside:
            if target := leads_out(file, of=os.path.realpath(path)):
                raise DataError(
                    f"{file} is a link that leads out of {path}, to {target}. Name that itself, or "
                    "take the link away."
                )
        found += inside
    return found


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
