"""A data set of image files in one folder per class."""

import functools
import os
import unicodedata
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from vit_jax.data.base import (
    SPLITS,
    UNDIVIDED_SPLITS,
    Example,
    Source,
    check_split,
    digest,
    split_name,
    split_range,
)
from vit_jax.data.decode import EXTENSIONS
from vit_jax.data.held_out import TEST_FRACTION, listed, undivided_rows, uniform_hash
from vit_jax.data.listing import Lister, skipped_files
from vit_jax.data.reading import read_file
from vit_jax.errors import ConfigError, DataError
from vit_jax.telemetry.notes import note

_LAYOUT = (
    "Expected ROOT/SPLIT/CLASS/image.jpg; or ROOT/CLASS/image.jpg, of which data.test_fraction "
    f"({TEST_FRACTION:.0%} by default) becomes the test split. Image extensions: "
    f"{', '.join(EXTENSIONS)}."
)


def from_config(data_config: ConfigDict, *, split: str) -> "ImageFolder":
    """Opens a split of the folder `data.data_dir`.

    Raises:
      ConfigError: `data.data_dir` is not set.
      DataError: as `ImageFolder`.
    """
    if not data_config.data_dir:
        raise ConfigError(
            'data.source="image_folder" needs data.data_dir, the root folder. Pass '
            "--config.data.data_dir=FOLDER or --config=image_folder:root=FOLDER."
        )
    return ImageFolder(
        data_config.data_dir,
        split=split,
        follow_links=data_config.follow_links,
        test_fraction=data_config.test_fraction,
    )


class ImageFolder(Source):
    """Images below `root/split/class/` or `root/class/`. Files are listed once, read on access.

    The classes are the sorted names of the class folders; images may be in folders below these. The
    files of a split are in a pseudo-random order that depends only on their names, so a slice such
    as train[:90%] has about the same fraction of every class. Without split folders,
    `vit_jax.data.held_out` divides each class by hashes of the files' names: `test_fraction` of it
    is in "test", and the rest in "train"; "all" is both. Each class of several files has one in
    both. A file that is added moves at most one other of its class.

    A class folder without an image in any split is left out, with a note. Hidden files and folders
    (a leading dot) are ignored. Notes count the other files that are not images, and list classes
    without an image in the split or slice.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        split: str,
        follow_links: bool = False,
        test_fraction: float = TEST_FRACTION,
    ):
        """Lists the files of one split; decodes nothing.

        Args:
          root: the folder.
          split: a split, or a slice of one.
          follow_links: whether links may lead out of the root.
          test_fraction: fraction of each class that is in "test" without split folders.

        Raises:
          DataError: the folder is missing or has no image, a class is missing from a split, the
            names of two classes differ only in Unicode normalisation, a link is broken or leads out
            of the root, or there is no such split.
        """
        self.name = self._root = os.path.realpath(os.path.expanduser(root))
        self.split = split
        self._within = "" if follow_links else self._root
        lister = Lister(self._root, follow_links=follow_links, hint=_LAYOUT)
        folders = lister.folders("")
        if not folders:
            raise DataError(f"{self._root} has no folders. {_LAYOUT}")
        # A class may be named "train"; only a split's folder contains folders.
        names = {*SPLITS, split_name(split)}
        splits = [folder for folder in folders if folder in names and lister.folders(folder)]
        self._depth = 1 if splits else 0  # Of a class's folder, below the root.
        if splits:
            name = check_split(split, splits=splits, where=self._root)
            if others := [folder for folder in folders if folder not in splits]:
                note(
                    f"{self._root} has a folder for each split ({', '.join(splits)}): its other "
                    f"folders are not read ({listed(others)})."
                )
            self.class_names = self._common_classes(lister, splits)
            files = self._list(lister, name)
        else:
            check_split(split, splits=UNDIVIDED_SPLITS, where=self._root)  # Before it is listed.
            self.class_names = self._classes_with_images(lister, {"": set(folders)})
            files = self._list(lister, "")
            self.divided_from = len(files)
            files = self._files_of_split(files, fraction=test_fraction)
        files.sort(key=self._order)
        positions = split_range(split, num_examples=len(files))
        self._files = files[positions.start : positions.stop]
        self._labels = {label: i for i, label in enumerate(self.class_names)}
        absent = sorted(set(self.class_names) - set(map(self._class_of, self._files)))
        if absent and not (self.divided_from and split == "test"):  # That one has its own note.
            note(f'{self._root}: "{split}" has no image of {listed(absent)}.')

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        image = read_file(self.describe(index), within=self._within)
        return {"image": image, "label": self.label(index)}

    def label(self, index: int) -> int:
        return self._labels[self._class_of(self._files[index])]

    def describe(self, index: int) -> str:
        return os.path.join(self._root, self._files[index])

    def file(self, index: int) -> str | None:
        return self.describe(index)

    @functools.cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]  # Also read-only.
        return digest(*self.class_names, "", *self._files)

    def _class_of(self, file: str) -> str:
        return file.split(os.sep)[self._depth]

    def _order(self, file: str) -> tuple[float, str]:
        return uniform_hash(file), file

    def _common_classes(self, lister: Lister, splits: Sequence[str]) -> tuple[str, ...]:
        """Returns the classes with an image in any split; each must be a folder of every split."""
        classes = {split: set(lister.folders(split)) for split in splits}
        common = self._classes_with_images(lister, classes)
        missing = {split: sorted(set(common) - classes[split]) for split in splits}
        if any(missing.values()):
            differences = "; ".join(
                f"{split} lacks {', '.join(names)}" for split, names in missing.items() if names
            )
            raise DataError(
                f"{self._root}: the splits differ in their class folders: {differences}."
            )
        return common

    def _classes_with_images(self, lister: Lister, classes: dict[str, set[str]]) -> tuple[str, ...]:
        """Returns the sorted classes that have an image in any of the folders that hold them."""
        names = sorted(set.union(*classes.values()))
        _check_unicode(names, where=self._root)
        empty = [
            name
            for name in names
            if not any(
                name in inside and lister.has_image(os.path.join(folder, name))
                for folder, inside in classes.items()
            )
        ]
        if len(empty) == len(names):
            raise DataError(f"{self._root} has no image in any class folder. {_LAYOUT}")
        if empty:
            note(f"{self._root}: omitted class folders without an image: {listed(empty)}.")
        return tuple(name for name in names if name not in empty)

    def _list(self, lister: Lister, folder: str) -> list[str]:
        """Returns the images of all classes below a folder of the root, as paths from the root."""
        images: list[str] = []
        others = [entry.name for entry in lister.entries(folder) if not entry.is_dir()]
        for name in lister.folders(folder):
            inside, rest = lister.images(os.path.join(folder, name))
            images += inside
            others += rest
        if skipped := skipped_files(others):
            note(f"{os.path.join(self._root, folder) if folder else self._root}: {skipped}")
        return images

    def _files_of_split(self, files: Sequence[str], *, fraction: float) -> list[str]:
        """Returns the files of the split, of all files of a folder without split folders."""
        ids = {label: i for i, label in enumerate(self.class_names)}
        rows = undivided_rows(
            np.array([ids[self._class_of(file)] for file in files]),
            np.array([uniform_hash(f"0/{file}") for file in files]),
            split=self.split,
            fraction=fraction,
            class_names=self.class_names,
            where=self._root,
        )
        return [files[int(row)] for row in rows]


def lower_root(root: str, *, class_name: str, follow_links: bool) -> str:
    """Returns a sentence that asks whether the root is one folder too high; "" if it is not.

    It is if the only class of a folder itself holds several folders of images.
    """
    root = os.path.realpath(os.path.expanduser(root))
    lister = Lister(root, follow_links=follow_links, hint=_LAYOUT)
    if class_name not in lister.folders(""):  # The root has a folder for each split.
        return ""
    inside = [
        name
        for name in lister.folders(class_name)
        if lister.has_image(os.path.join(class_name, name))
    ]
    if len(inside) < 2:
        return ""
    return (
        f"{os.path.join(root, class_name)} has folders of images: {listed(inside)}; is it the root "
        "that you mean?"
    )


def _check_unicode(names: Sequence[str], *, where: str) -> None:
    """Raises DataError for two class names that look the same: é may be one character or two."""
    normalised: dict[str, str] = {}
    for name in names:
        other = normalised.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise DataError(
                f"{where}: the class folders {other!a} and {name!a} look alike and differ only in "
                "Unicode normalisation (a letter with its accent, or followed by it). Give them "
                "the same name."
            )
