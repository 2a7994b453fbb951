"""A folder of images, one folder a class."""

import functools
import hashlib
import os
import unicodedata
from collections.abc import Sequence

from absl import logging

from vit_jax.data.base import Example, Source, check_split, digest, split_name, split_range
from vit_jax.data.reading import leads_out, read_file
from vit_jax.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TEST_SHARE = 0.1  # Of a folder without split folders.
_USUAL_SPLITS = ("train", "val", "valid", "validation", "test")
_LAYOUT = (
    "Expected ROOT/SPLIT/CLASS/image.jpg, or ROOT/CLASS/image.jpg to have it split "
    f"{1 - TEST_SHARE:.0%} train, {TEST_SHARE:.0%} test; images end in {', '.join(EXTENSIONS)}."
)


class ImageFolder(Source):
    """Images in `root/split/class/` or `root/class/`, listed once, read when asked for.

    The classes are the names of the class folders, sorted. Within a split the files are in a
    pseudo-random order that depends on their names alone, so that a slice such as train[:90%] takes
    its share of every class. Without split folders, a file belongs to "test" with a chance of
    `TEST_SHARE`, decided by its name alone: files added later move no other, and what one run is
    tested on no other run, such as one that it goes on from, has been trained on.

    The exception is a class whose files would all belong to "test": one of them, chosen by name, is
    in "train" as long as that is so, with a warning.

    Hidden files and folders (a leading dot) are passed over; files of other kinds are left out with
    a warning. So is said which classes have no image in a split or a slice of it.
    """

    def __init__(self, root: str | os.PathLike, *, split: str):
        """Lists the files of one split; decodes nothing.

        Args:
          root: the folder.
          split: a split, or a slice of one.

        Raises:
          DataError: the folder is missing or empty, a class has no image, the splits differ in
            their classes, two classes have names that only Unicode tells apart, a link leads out
            of the root, or there is no such split.
        """
        self.name = self._root = os.path.realpath(os.path.expanduser(root))
        self.split = split
        top = self._subfolders(self._root)
        if not top:
            raise DataError(f"{self._root} has no folders. {_LAYOUT}")
        # A class may be called "train": a split's folder is one that holds folders.
        names = {*_USUAL_SPLITS, split_name(split)}
        splits = [s for s in top if s in names and self._subfolders(self._join(s))]
        if splits:
            name = check_split(split, splits=splits, where=self._root)
            self.class_names = self._common_classes(splits)
            files = [
                os.path.join(name, file) for file in self._list_classes(os.path.join(name, ""))
            ]
        else:
            name = check_split(split, splits=("train", "test"), where=self._root)
            _check_forms(top, where=self._root)
            self.class_names = tuple(top)
            every = self._list_classes("")
            test = _of_test(every, where=self._root)
            files = [file for file in every if (file in test) == (name == "test")]
            if not files:
                raise DataError(
                    f'{self._root}: no image fell to "{name}", a matter of chance with so few. '
                    f"Add images, or divide them yourself. {_LAYOUT}"
                )
        files.sort(key=lambda file: (_uniform(file), file))
        positions = split_range(split, num_examples=len(files))
        self._files = files[positions.start : positions.stop]
        self._labels = {label: i for i, label in enumerate(self.class_names)}
        if absent := sorted(set(self.class_names) - set(map(_class_of, self._files))):
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            logging.warning(
                '%s: "%s" has no image of %s%s.',
                self._root, split, ", ".join(map(repr, absent[:5])), more,
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        image = read_file(self._join(self._files[index]), within=self._root)
        return {"image": image, "label": self.label(index)}

    def label(self, index: int) -> int:
        return self._labels[_class_of(self._files[index])]

    def describe(self, index: int) -> str:
        return os.path.join(self._root, self._files[index])

    @functools.cached_property
    def fingerprint(self) -> str:
        return digest(*self.class_names, "", *self._files)

    def _join(self, path: str) -> str:
        return os.path.join(self._root, path)

    def _scan(self, folder: str) -> list[os.DirEntry]:
        """What is in a folder, sorted by name, without hidden entries."""
        try:
            with os.scandir(folder) as entries:
                found = sorted(
                    (e for e in entries if not e.name.startswith(".")), key=lambda e: e.name
                )
        except OSError as error:
            raise DataError(f"{folder} cannot be listed: {error.strerror}. {_LAYOUT}") from error
        for entry in found:
            if entry.is_symlink():
                if target := leads_out(entry.path, of=self._root):
                    raise DataError(
                        f"{entry.path} is a link that leads out of {self._root}, to {target}. Copy "
                        "the files, or set data.data_dir to a folder that holds all of them."
                    )
                if not os.path.exists(entry.path):
                    raise DataError(
                        f"{entry.path} is a link to nothing: {os.path.realpath(entry.path)}."
                    )
        return found

    def _subfolders(self, folder: str) -> list[str]:
        return [e.name for e in self._scan(folder) if e.is_dir()]

    def _common_classes(self, splits: list[str]) -> tuple[str, ...]:
        classes = {split: set(self._subfolders(self._join(split))) for split in splits}
        every = set.union(*classes.values())
        _check_forms(sorted(every), where=self._root)
        lacking = [
            f"{split} lacks {', '.join(sorted(every - classes[split]))}"
            for split in splits
            if classes[split] != every
        ]
        if lacking:
            raise DataError(
                f"{self._root}: the splits differ in their class folders: {'; '.join(lacking)}."
            )
        return tuple(sorted(every))

    def _list_classes(self, prefix: str) -> list[str]:
        """Images as "class/file", of all classes under `root/prefix`."""
        files, others = [], []
        for name in self.class_names:
            before = len(files)
            for entry in self._scan(self._join(prefix + name)):
                if entry.is_dir():
                    raise DataError(f"{entry.path}: a folder inside of a class's. {_LAYOUT}")
                is_image = entry.is_file() and entry.name.lower().endswith(EXTENSIONS)
                (files if is_image else others).append(f"{name}/{entry.name}")
            if len(files) == before:
                raise DataError(f"{self._join(prefix + name)}: no images in this class. {_LAYOUT}")
        if others:
            logging.warning(
                "%s: %d files do not look like images and are left out, such as %s.",
                self._join(prefix),
                len(others),
                others[0],
            )
        return files


def _class_of(file: str) -> str:
    return os.path.basename(os.path.dirname(file))


def _check_forms(names: Sequence[str], *, where: str) -> None:
    """Raises DataError for two class names that look the same: é may be one character or two."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise DataError(
                f"{where}: the class folders {other!a} and {name!a} look alike and differ only in "
                "Unicode normalisation (a letter with its accent, or followed by it). Give them "
                "the same name."
            )


def _of_test(files: Sequence[str], *, where: str) -> set[str]:
    """The files that belong to "test" in a folder without split folders."""
    numbers = {file: _uniform(f"0/{file}") for file in files}
    # The file of each class with the largest number: the last one that a growing share would take.
    kept = {_class_of(file): file for file in sorted(files, key=numbers.__getitem__)}
    for name, file in sorted(kept.items()):
        if numbers[file] < TEST_SHARE:
            logging.warning(
                '%s: by their names, all images of the class %r belong to "test". %s is trained on '
                "nevertheless: training would be without an image of this class. Add images, or "
                "divide them yourself.",
                where, name, file,
            )  # fmt: skip
    return {file for file in files if numbers[file] < TEST_SHARE} - set(kept.values())


def _uniform(text: str) -> float:
    """A number in [0, 1) that is a fixed function of the text."""
    digest = hashlib.blake2b(os.fsencode(text), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
