"""Lists the image files below a folder, within its bounds, and counts what is left out."""

import collections
import os
from collections.abc import Iterable, Iterator

from vit_jax.data.decode import EXTENSIONS
from vit_jax.data.reading import link_target_outside
from vit_jax.errors import DataError


def is_image(name: str) -> bool:
    """Whether a file's name has the extension of an image format that is decoded."""
    return name.lower().endswith(EXTENSIONS)


def skipped_files(names: Iterable[str]) -> str:
    """Returns a sentence with the number of files by extension; "" for none.

    For example `Skipped 3 files without an image's extension: 2 .txt, 1 .db.` Images among them lie
    in no class folder, which the sentence says.
    """
    names = list(names)
    if beside := sum(map(is_image, names)):
        rest = skipped_files(name for name in names if not is_image(name))
        are = "1 image lies" if beside == 1 else f"{beside:,} images lie"
        return f"Skipped images in no class folder: {are} beside the folders. {rest}".rstrip()
    counts = collections.Counter(
        os.path.splitext(name)[1].lower() or "without an extension" for name in names
    )
    if not counts:
        return ""
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:8]
    shown = ", ".join(f"{count:,} {extension}" for extension, count in most)
    more = ", ..." if len(counts) > 8 else ""
    files = "file" if counts.total() == 1 else "files"
    return f"Skipped {counts.total():,} {files} without an image's extension: {shown}{more}."


class Lister:
    """Lists entries below a root folder; refuses links that lead out of it or back into themselves.

    Attributes:
      root: the root folder, absolute and without links in its own path.
      follow_links: whether links may lead out of the root.
    """

    def __init__(self, root: str, *, follow_links: bool, hint: str):
        """Lists nothing yet; `hint` ends the message if a folder cannot be listed."""
        self.root, self.follow_links, self._hint = root, follow_links, hint

    def entries(self, folder: str) -> list[os.DirEntry]:
        """Returns the entries of a folder without hidden ones, sorted by name.

        Raises:
          DataError: it cannot be listed, or an entry is a broken link, or one that leads out of the
            root although links are not followed.
        """
        path = os.path.join(self.root, folder) if folder else self.root
        try:
            with os.scandir(path) as iterator:
                entries = sorted(
                    (e for e in iterator if not e.name.startswith(".")), key=lambda e: e.name
                )
        except OSError as error:
            raise DataError(f"{path} cannot be listed: {error.strerror}. {self._hint}") from error
        for entry in entries:
            if entry.is_symlink():
                self._check_link(entry)
        return entries

    def folders(self, folder: str) -> list[str]:
        """Returns the names of a folder's subfolders, sorted."""
        return [entry.name for entry in self.entries(folder) if entry.is_dir()]

    def files(self, folder: str) -> Iterator[tuple[str, os.DirEntry]]:
        """Yields all files below a folder, with paths from the root; hidden ones are left out.

        Raises:
          DataError: as `entries`.
        """
        for entry in self.entries(folder):
            path = os.path.join(folder, entry.name)
            if entry.is_dir():
                yield from self.files(path)
            else:
                yield path, entry

    def images(self, folder: str) -> tuple[list[str], list[str]]:
        """Returns the images below a folder, and the other files; paths are from the root."""
        images, others = [], []
        for path, entry in self.files(folder):
            # `is_file` of an entry needs no access to the disk, as a path's would.
            (images if is_image(path) and entry.is_file() else others).append(path)
        return images, others

    def has_image(self, folder: str) -> bool:
        """Whether there is an image below a folder; stops at the first."""
        return any(is_image(path) for path, _ in self.files(folder))

    def _check_link(self, entry: os.DirEntry) -> None:
        target = os.path.realpath(entry.path)
        outside = link_target_outside(entry.path, folder=self.root)
        if outside and not self.follow_links:
            raise DataError(
                f"{entry.path} is a link that leads out of {self.root}, to {outside}. To read what "
                "it leads to, pass --config.data.follow_links=True; else remove the link."
            )
        if not os.path.exists(entry.path):
            raise DataError(f"{entry.path} is a broken link to {target}. Remove or repair it.")
        parent = os.path.realpath(os.path.dirname(entry.path))
        if os.path.isdir(target) and os.path.commonpath([parent, target]) == target:
            raise DataError(
                f"{entry.path} is a link to {target}, a folder that contains it: listing it would "
                "never end. Remove the link."
            )
