"""Image files and folders that the user lists, for predictions: without labels."""

import os
import pathlib
from collections.abc import Sequence

from absl import logging

from vit_jax.data.base import Example, Source
from vit_jax.data.image_folder import EXTENSIONS
from vit_jax.data.reading import link_target_outside, read_file
from vit_jax.errors import DataError

_MAX_LISTED = 5  # Ignored files that a message lists.
_HINT = "To try such a file, list it by itself."


def find_images(paths: Sequence[str]) -> list[pathlib.Path]:
    """Returns the listed files, and all images below the listed folders, sorted.

    Listed files are returned even if they have another extension or do not exist, and so are broken
    links and special files in folders that have an image's extension: reading them raises an error
    for each, beside the results of the others. Hidden files are ignored, and all others with a
    warning.

    Raises:
      DataError: a folder has no image, or a link in it leads out of it; or `paths` is empty.
    """
    if not paths:
        raise DataError("Name at least one image or folder of images.")
    images = []
    for path in map(pathlib.Path, paths):
        if not os.path.isdir(path):  # Unlike `Path.is_dir`, it never raises.
            images.append(path)
            continue
        inside, ignored = _list(path)
        shown = ", ".join(str(other.relative_to(path)) for other in ignored[:_MAX_LISTED])
        shown += ", ..." if len(ignored) > _MAX_LISTED else ""
        if not inside:
            hint = f" Ignored: {shown}. {_HINT}" if ignored else ""
            raise DataError(
                f"{path} contains no image with the extension {', '.join(EXTENSIONS)}.{hint}"
            )
        if ignored:
            logging.warning(
                "%s: ignored %d files and folders that do not look like images: %s. %s",
                path, len(ignored), shown, _HINT,
            )  # fmt: skip
        root = os.path.realpath(path)
        for file in inside:
            if os.path.exists(file) and (target := link_target_outside(file, folder=root)):
                raise DataError(
                    f"{file} is a link that leads out of {path}, to {target}. List the target "
                    "itself, or remove the link."
                )
        images += inside
    return images


def _list(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Returns paths below a folder with an image's extension, and all others; no hidden ones.

    Folders that are links or cannot be listed are among the others: their contents are not listed.
    """
    images, others = [], []
    errors = []
    for parent, folders, files in os.walk(folder, onerror=errors.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        others += [path for name in folders if (path := pathlib.Path(parent, name)).is_symlink()]
        for name in files:
            if not name.startswith("."):
                path = pathlib.Path(parent, name)
                (images if path.suffix.lower() in EXTENSIONS else others).append(path)
    others += [pathlib.Path(error.filename) for error in errors]
    return sorted(images), sorted(others)


class Files(Source):
    """Image files, all with the label 0."""

    def __init__(self, paths: Sequence[pathlib.Path], *, class_names: Sequence[str]):
        """Stores the paths; opens no file.

        Args:
          paths: of the files.
          class_names: of the model.
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
