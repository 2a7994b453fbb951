"""A data set of image files in one folder per class."""

import functools
import hashlib
import os
import unicodedata
from collections.abc import Sequence

from absl import logging

from vit_jax.data.base import Example, Source, check_split, digest, split_name, split_range
from vit_jax.data.reading import link_target_outside, read_file
from vit_jax.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TEST_FRACTION = 0.1  # Of a folder without split folders.
_USUAL_SPLITS = ("train", "val", "valid", "validation", "test")
_LAYOUT = (
    "Expected ROOT/SPLIT/CLASS/image.jpg; or ROOT/CLASS/image.jpg, which is split into "
    f"{1 - TEST_FRACTION:.0%} train, {TEST_FRACTION:.0%} test. Image extensions: "
    f"{', '.join(EXTENSIONS)}."
)


class ImageFolder(Source):
    """Images in `root/split/class/` or `root/class/`. Files are listed once and read on access.

    The classes are the sorted names of the class folders. The files of a split are in a
    pseudo-random order that depends only on their names, so a slice such as train[:90%] has about
    the same fraction of every class. Without split folders, a hash of a file's name decides whether
    it is in "test", with a probability of `TEST_FRACTION`. So files that are added later move no
    other file, and a run is never tested on images on which an earlier run, such as its
    `init_from`, was trained.

    The exception is a class whose files would all be in "test": one of them, chosen by name, is
    then in "train", with a warning.

    Hidden files and folders (a leading dot) are ignored. A warning lists other files that are
    ignored, and classes without an image in the split or slice.
    """

    def __init__(self, root: str | os.PathLike, *, split: str):
        """Lists the files of one split; decodes nothing.

        Args:
          root: the folder.
          split: a split, or a slice of one.

        Raises:
          DataError: the folder is missing or empty, a class has no image, the splits differ in
            their classes, the names of two classes differ only in Unicode normalisation, a link
            leads out of the root, or there is no such split.
        """
        self.name = self._root = os.path.realpath(os.path.expanduser(root))
        self.split = split
        top = self._subfolders(self._root)
        if not top:
            raise DataError(f"{self._root} has no folders. {_LAYOUT}")
        # A class may be named "train"; only a split's folder contains folders.
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
            _check_unicode(top, where=self._root)
            self.class_names = tuple(top)
            all_files = self._list_classes("")
            test = _test_files(all_files, where=self._root)
            files = [file for file in all_files if (file in test) == (name == "test")]
            if not files:
                raise DataError(
                    f'{self._root}: by chance, none of {len(all_files)} images is in "{name}". Add '
                    f"images, or make split folders. {_LAYOUT}"
                )
        files.sort(key=lambda file: (_uniform_hash(file), file))
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
        """Returns the entries of a folder without hidden ones, sorted by name."""
        try:
            with os.scandir(folder) as iterator:
                entries = sorted(
                    (e for e in iterator if not e.name.startswith(".")), key=lambda e: e.name
                )
        except OSError as error:
            raise DataError(f"{folder} cannot be listed: {error.strerror}. {_LAYOUT}") from error
        for entry in entries:
            if entry.is_symlink():
                if target := link_target_outside(entry.path, folder=self._root):
                    raise DataError(
                        f"{entry.path} is a link that leads out of {self._root}, to {target}. Copy "
                        "the files, or set data.data_dir to a folder that contains all of them."
                    )
                if not os.path.exists(entry.path):
                    raise DataError(
                        f"{entry.path} is a broken link to {os.path.realpath(entry.path)}."
                    )
        return entries

    def _subfolders(self, folder: str) -> list[str]:
        return [e.name for e in self._scan(folder) if e.is_dir()]

    def _common_classes(self, splits: list[str]) -> tuple[str, ...]:
        classes = {split: set(self._subfolders(self._join(split))) for split in splits}
        all_classes = set.union(*classes.values())
        _check_unicode(sorted(all_classes), where=self._root)
        missing = [
            f"{split} lacks {', '.join(sorted(all_classes - classes[split]))}"
            for split in splits
            if classes[split] != all_classes
        ]
        if missing:
            raise DataError(
                f"{self._root}: the splits differ in their class folders: {'; '.join(missing)}."
            )
        return tuple(sorted(all_classes))

    def _list_classes(self, prefix: str) -> list[str]:
        """Returns the images of all classes below `root/prefix` as "class/file"."""
        files, ignored = [], []
        for name in self.class_names:
            count = len(files)
            for entry in self._scan(self._join(prefix + name)):
                if entry.is_dir():
                    raise DataError(f"{entry.path}: a folder inside a class folder. {_LAYOUT}")
                is_image = entry.is_file() and entry.name.lower().endswith(EXTENSIONS)
                (files if is_image else ignored).append(f"{name}/{entry.name}")
            if len(files) == count:
                raise DataError(f"{self._join(prefix + name)}: no images in this class. {_LAYOUT}")
        if ignored:
            logging.warning(
                "%s: ignored %d files that do not look like images, such as %s.",
                self._join(prefix),
                len(ignored),
                ignored[0],
            )
        return files


def _class_of(file: str) -> str:
    return os.path.basename(os.path.dirname(file))


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


def _test_files(files: Sequence[str], *, where: str) -> set[str]:
    """Returns the files that are in "test" in a folder without split folders."""
    hashes = {file: _uniform_hash(f"0/{file}") for file in files}
    # The file with the largest hash of each class is always in "train".
    always_train = {_class_of(file): file for file in sorted(files, key=hashes.__getitem__)}
    for name, file in sorted(always_train.items()):
        if hashes[file] < TEST_FRACTION:
            logging.warning(
                '%s: by chance, all images of the class %r are in "test". %s is moved to "train", '
                "which would have no image of this class. Add images, or make split folders.",
                where, name, file,
            )  # fmt: skip
    return {file for file in files if hashes[file] < TEST_FRACTION} - set(always_train.values())


def _uniform_hash(text: str) -> float:
    """Returns a hash of the text that is uniform in [0, 1)."""
    digest = hashlib.blake2b(os.fsencode(text), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
