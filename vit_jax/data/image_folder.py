"""A data set of image files in one folder per class."""

import functools
import hashlib
import os
import unicodedata
from collections.abc import Sequence

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
from vit_jax.data.listing import Lister, skipped_files
from vit_jax.data.reading import read_file
from vit_jax.errors import ConfigError, DataError
from vit_jax.telemetry.notes import note

TEST_FRACTION = 0.1  # Of a folder without split folders.
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
    as train[:90%] has about the same fraction of every class. Without split folders, a hash of a
    file's name decides whether it is in "test", with a probability of `test_fraction`, or in
    "train"; "all" is both. So files that are added later move no other file, and a run is never
    tested on images on which an earlier run, such as its `init_from`, was trained.

    The exceptions: each class with several files has one in "test", chosen by name; and one in
    "train", with a note if all would be in "test".

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
          test_fraction: expected fraction of the images that are in "test" without split folders.

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
                    f"folders are not read ({_listed(others)})."
                )
            self.class_names = self._common_classes(lister, splits)
            files = self._list(lister, name)
        else:
            name = check_split(split, splits=UNDIVIDED_SPLITS, where=self._root)
            self.class_names = self._classes_with_images(lister, {"": set(folders)})
            all_files = self._list(lister, "")
            test = self._test_files(all_files, fraction=test_fraction)
            if name == "train":
                files = [file for file in all_files if file not in test]
            else:
                files = all_files if name == "all" else list(test)
            if not files:
                raise DataError(
                    f'{self._root}: by chance, none of {len(all_files)} images is in "{name}". Add '
                    f"images, or make split folders. {_LAYOUT}"
                )
        files.sort(key=self._order)
        positions = split_range(split, num_examples=len(files))
        self._files = files[positions.start : positions.stop]
        self._labels = {label: i for i, label in enumerate(self.class_names)}
        if absent := sorted(set(self.class_names) - set(map(self._class_of, self._files))):
            note(f'{self._root}: "{split}" has no image of {_listed(absent)}.')

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        image = read_file(self.describe(index), within=self._within)
        return {"image": image, "label": self.label(index)}

    def label(self, index: int) -> int:
        return self._labels[self._class_of(self._files[index])]

    def describe(self, index: int) -> str:
        return os.path.join(self._root, self._files[index])

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
            note(f"{self._root}: omitted class folders without an image: {_listed(empty)}.")
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

    def _test_files(self, files: Sequence[str], *, fraction: float) -> set[str]:
        """Returns the files that are in "test" in a folder without split folders.

        Those with a hash below the fraction; of each class also the file with the smallest hash,
        and never the one with the largest.
        """
        hashes = {file: uniform_hash(f"0/{file}") for file in files}
        ascending = sorted(files, key=hashes.__getitem__)
        always_train = {self._class_of(file): file for file in ascending}
        always_test = {self._class_of(file): file for file in reversed(ascending)}
        for name, file in sorted(always_train.items()):
            if hashes[file] < fraction:
                note(
                    f'{self._root}: by chance, all images of the class {name!r} are in "test". '
                    f'{file} is moved to "train", which would have no image of this class. Add '
                    "images, or make split folders."
                )
        in_test = {file for file in files if hashes[file] < fraction}
        return (in_test | set(always_test.values())) - set(always_train.values())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more


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


def uniform_hash(text: str) -> float:
    """Returns a hash of the text that is uniform in [0, 1)."""
    digest = hashlib.blake2b(os.fsencode(text), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
