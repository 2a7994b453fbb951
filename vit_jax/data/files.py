"""Image files and folders that the user lists, for predictions: without labels."""

import os
import pathlib
from collections.abc import Sequence

from vit_jax.data.base import Example, Source
from vit_jax.data.decode import EXTENSIONS
from vit_jax.data.listing import is_image, skipped_files
from vit_jax.data.reading import link_target_outside, read_file
from vit_jax.errors import DataError
from vit_jax.telemetry.notes import note

_MAX_LISTED = 5  # Ignored files that a message lists.
_HINT = "To try such a file, list it by itself."


def find_images(paths: Sequence[str]) -> list[pathlib.Path]:
    """Returns the listed files, and all images below the listed folders, sorted.

    Listed files are returned even if they have another extension or do not exist, and so are broken
    links and special files in folders that have an image's extension: reading them raises an error
    for each, beside the results of the others. Hidden files are ignored; a note counts the others.

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
        inside, others, folders = _list(path)
        if not inside:
            shown = ", ".join(str(other.relative_to(path)) for other in others[:_MAX_LISTED])
            shown += ", ..." if len(others) > _MAX_LISTED else ""
            hint = f" Skipped: {shown}. {_HINT}" if others else ""
            raise DataError(
                f"{path} contains no image with the extension {', '.join(EXTENSIONS)}.{hint}"
            )
        if skipped := skipped_files(map(str, others)):
            note(f"{path}: {skipped} {_HINT}")
        for folder in folders:
            note(f"{folder} is not listed: it is a link, or cannot be read.")
        root = os.path.realpath(path)
        for file in inside:
            if os.path.exists(file) and (target := link_target_outside(file, folder=root)):
                raise DataError(
                    f"{file} is a link that leads out of {path}, to {target}. List the target "
                    "itself, or remove the link."
                )
        images += inside
    return images


def _list(
    folder: pathlib.Path,
) -> tuple[list[pathlib.Path], list[pathlib.Path], list[pathlib.Path]]:
    """Returns the images below a folder, the other files, and the folders that are not listed.

    The last are links, or cannot be listed. Hidden files and folders are in none of the three.
    """
    images: list[pathlib.Path] = []
    others: list[pathlib.Path] = []
    unlisted: list[pathlib.Path] = []
    errors: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=errors.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        unlisted += [path for name in folders if (path := pathlib.Path(parent, name)).is_symlink()]
        for name in files:
            if not name.startswith("."):
                (images if is_image(name) else others).append(pathlib.Path(parent, name))
    unlisted += [pathlib.Path(error.filename) for error in errors]
    return sorted(images), sorted(others), sorted(unlisted)


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
