"""Sources: their examples and their errors."""

import io
import json
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.mock_tfds import mock_tfds
from vit_jax.config import base_config
from vit_jax.data import fashion_mnist
from vit_jax.data.base import split_range
from vit_jax.data.decode import decode_image
from vit_jax.data.image_folder import ImageFolder
from vit_jax.data.sources import open_source
from vit_jax.errors import ConfigError, DataError

ROOT = pathlib.Path(__file__).resolve().parent.parent


def open_(split="train", **data) -> object:
    config = base_config().data
    config.update(data)
    return open_source(ConfigDict(config), split=split)


def pixels(example):
    return np.asarray(Image.open(io.BytesIO(example["image"])))


# Split slices.


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", range(0, 200)),
        ("train[:90%]", range(0, 180)),
        ("train[90%:]", range(180, 200)),
        ("train[10:150]", range(10, 150)),
        ("train[-50:]", range(150, 200)),
        ("train[:-50%]", range(0, 100)),
        ("train[10%:20]", None),
        ("train[:201]", None),
        ("train[20:10]", None),
        ("train[:10%", None),
        ("train+test", None),
        ("", None),
    ],
)
def test_split_slices(split, expected):
    if expected is not None:
        assert split_range(split, num_examples=200) == expected
    else:
        with pytest.raises(DataError):
            split_range(split, num_examples=200)


@pytest.mark.parametrize("num_examples", [7, 99, 1797])
def test_adjacent_percentages_partition_the_split(num_examples):
    parts = [
        split_range(f"train[{low}%:{low + 20}%]", num_examples=num_examples)
        for low in range(0, 100, 20)
    ]
    assert [i for part in parts for i in part] == list(range(num_examples))


def test_unknown_source_and_missing_keys():
    with pytest.raises(ConfigError, match='Did you mean "fashion_mnist"'):
        open_(source="fashion-mnist")
    with pytest.raises(ConfigError, match=r"needs data\.name"):
        open_(source="tfds")
    with pytest.raises(ConfigError, match=r"needs data\.data_dir"):
        open_(source="image_folder")


# Digits.


def test_digits():
    train, test = open_("train"), open_("test")
    assert (len(train), len(test)) == (1442, 355)
    assert train.class_names == tuple("0123456789")
    assert (train.num_classes, train.channels) == (10, 1)
    labels = np.array([test[i]["label"] for i in range(len(test))])
    assert set(np.bincount(labels)) <= {34, 35, 36}
    image = train[0]["image"]
    assert (image.shape, image.dtype) == ((8, 8, 1), np.uint8)
    assert max(train[i]["image"].max() for i in range(50)) == 255
    # The two splits together are the data set, each image once.
    from sklearn.datasets import load_digits

    whole = load_digits()
    both = [source[i] for source in (train, test) for i in range(len(source))]
    keys = sorted((example["label"], example["image"].tobytes()) for example in both)
    scaled = np.round(whole.images * 255 / 16).astype(np.uint8)
    assert keys == sorted((int(y), x.tobytes()) for x, y in zip(scaled, whole.target, strict=True))


def test_digits_slices_and_errors():
    assert len(open_("train[:90%]")) == 1298
    assert len(open_("train[90%:]")) == 144
    assert open_("test[5:10]").describe(3) == "digits test[5:10][3]"
    with pytest.raises(DataError, match=r'digits has no split "tests". Did you mean "test"'):
        open_("tests")


def test_sources_can_be_pickled(tmp_path):
    make_folder(tmp_path, per_class=3)
    for source in (open_(), open_(source="image_folder", data_dir=str(tmp_path))):
        again = pickle.loads(pickle.dumps(source))
        assert again.describe(1) == source.describe(1)
        assert again[1]["label"] == source[1]["label"]


# Image folders.


def write_image(path, value=0, size=(5, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (value % 256, 0, 0))
    # The source depends on names only; contents matter to the decoder.
    image.save(path, format={".jpeg": "jpeg", ".webp": "webp"}.get(path.suffix.lower(), "png"))


def make_folder(root, *, splits=("train", "test"), classes=("cat", "dog"), per_class=20):
    for split in splits:
        for c, name in enumerate(classes):
            for i in range(per_class):
                suffix = (".png", ".JPEG", ".webp")[i % 3]
                write_image(root / split / name / f"{i}{suffix}", 10 * c + i)


def files_of(source):
    return [
        str(pathlib.Path(source.describe(i)).relative_to(source.name)) for i in range(len(source))
    ]


def test_folder_with_splits(tmp_path):
    make_folder(tmp_path, splits=("train", "holdout"))
    for split in ("train", "holdout"):
        source = open_(split, source="image_folder", data_dir=str(tmp_path))
        assert len(source) == 40
        assert source.class_names == ("cat", "dog")
        assert all(file.startswith(f"{split}/") for file in files_of(source))
        for i in range(40):
            file = pathlib.Path(source.describe(i))
            assert source[i]["label"] == ("cat", "dog").index(file.parent.name)
            assert source[i]["image"] == file.read_bytes()


def test_a_slice_has_a_fraction_of_every_class(tmp_path):
    make_folder(tmp_path, per_class=60)
    whole = files_of(ImageFolder(tmp_path, split="train"))
    first = ImageFolder(tmp_path, split="train[:50%]")
    rest = ImageFolder(tmp_path, split="train[50%:]")
    assert files_of(first) + files_of(rest) == whole
    cats = sum(first[i]["label"] == 0 for i in range(len(first)))
    assert 18 < cats < 42


def split_files(root, **settings):
    """Returns the files of train and of test."""
    return [set(files_of(ImageFolder(root, split=s, **settings))) for s in ("train", "test")]


def of_class(files, name):
    return sum(file.startswith(f"{name}/") for file in files)


def test_a_folder_without_splits_is_divided_by_class_and_always_in_the_same_way(tmp_path):
    sizes = {"ant": 30, "bee": 61, "cow": 2, "dog": 12}
    for name, size in sizes.items():
        make_folder(tmp_path, splits=("",), classes=(name,), per_class=size)
    train, test = split_files(tmp_path)
    assert {name: of_class(test, name) for name in sizes} == {
        "ant": 6, "bee": 12, "cow": 1, "dog": 2,
    }  # fmt: skip
    assert not train & test and len(train | test) == sum(sizes.values())
    assert split_files(tmp_path) == [train, test]
    _, most = split_files(tmp_path, test_fraction=0.999)
    assert {name: of_class(most, name) for name in sizes} == {
        name: size - 1 for name, size in sizes.items()
    }
    # An image that is added moves at most one other, which is of its class.
    for i in range(20):
        write_image(tmp_path / "ant" / f"more-{i}.png")
        more_train, more_test = split_files(tmp_path)
        moved = (train & more_test) | (test & more_train)
        assert len(moved) == of_class(moved, "ant") <= 1
        train, test = more_train, more_test
    assert of_class(test, "ant") == 10


def test_a_class_of_one_image_is_trained_on_and_said_so(tmp_path, caplog):
    make_folder(tmp_path, splits=("",), classes=("ant", "bee"), per_class=1)
    assert len(ImageFolder(tmp_path, split="train")) == 2
    refuses(tmp_path, 'all are in "train" and "test" is empty', split="test")
    assert "single image" not in caplog.text
    make_folder(tmp_path, splits=("",), classes=("cow",), per_class=3)
    train, test = split_files(tmp_path)
    assert len(train) == 4 and {file.split("/")[0] for file in test} == {"cow"}
    assert "has it in \"train\", and none in \"test\": 'ant', 'bee'." in caplog.text
    assert "has no image of" not in caplog.text


def test_tables_are_divided_like_folders(tmp_path):
    """With labels of a folder's classes and its paths, the split is the folder's."""
    make_folder(tmp_path, splits=("",), classes=("ant", "bee"), per_class=25)
    paths = files_of(ImageFolder(tmp_path, split="all"))
    rows = "".join(f"{path},{path.split('/')[0]}\n" for path in paths)
    (tmp_path / "table.csv").write_text(f"image,label\n{rows}nowhere.png,\n")
    for split, files in zip(
        ("train", "test"), split_files(tmp_path, test_fraction=0.3), strict=True
    ):
        where = str(tmp_path / "table.csv")
        table = open_(split, source="table", data_dir=where, test_fraction=0.3)
        numbers = [int(table.describe(i).split()[-1]) for i in range(len(table))]
        assert {paths[number] for number in numbers if number < len(paths)} == files


def test_a_missing_class_in_a_split_causes_a_warning(tmp_path, caplog):
    make_folder(tmp_path, per_class=12, classes=("cat", "dog", "fox"))
    ImageFolder(tmp_path, split="train")
    assert "has no image of" not in caplog.text
    first = ImageFolder(tmp_path, split="train[:1]")
    others = {"cat", "dog", "fox"} - {first.class_names[first.label(0)]}
    assert f'"train[:1]" has no image of {", ".join(map(repr, sorted(others)))}.' in caplog.text


@pytest.mark.parametrize("splits", [("train", "test"), ("", "")])
def test_class_names_in_two_unicode_forms_are_refused(tmp_path, splits):
    for split, name in zip(splits, ("caf\u00e9", "cafe\u0301"), strict=True):
        write_image(tmp_path / split / name / "0.png")
        write_image(tmp_path / split / "tea" / "0.png")
    with pytest.raises(DataError, match=r"look alike.*Unicode normalisation"):
        ImageFolder(tmp_path, split="train")


def test_a_class_called_train_is_a_class(tmp_path):
    make_folder(tmp_path, splits=("",), classes=("car", "train"))
    assert ImageFolder(tmp_path, split="train").class_names == ("car", "train")


def test_only_images_are_listed(tmp_path, caplog):
    make_folder(tmp_path)
    for name in ("notes.txt", "more.TXT", "Thumbs.db", "README", ".hidden.png"):
        (tmp_path / "train" / "cat" / name).write_text("no image")
    (tmp_path / ".git").mkdir()
    (tmp_path / "annotations").mkdir()
    assert len(ImageFolder(tmp_path, split="train")) == 40
    skipped = "Skipped 4 files without an image's extension: 2 .txt, 1 .db, 1 without an extension."
    assert skipped in caplog.text
    assert "its other folders are not read ('annotations')" in caplog.text
    # Each note is shown once, whatever part of the data is opened later.
    shown = len(caplog.records)
    ImageFolder(tmp_path, split="train")
    ImageFolder(tmp_path, split="train[:90%]")
    assert len(caplog.records) == shown
    # Listing decodes nothing.
    (tmp_path / "train" / "cat" / "broken.png").write_text("no image")
    assert len(ImageFolder(tmp_path, split="train")) == 41


def test_a_file_that_was_deleted_is_named(tmp_path):
    make_folder(tmp_path)
    source = ImageFolder(tmp_path, split="train")
    pathlib.Path(source.describe(3)).unlink()
    with pytest.raises(DataError, match=r"cannot be read: No such file"):
        source[3]


@pytest.mark.parametrize(
    ("root", "split", "fingerprint"),
    [
        ("flat", "train", "4a9df969940bee9eb1fc7a969dfad2e9"),
        ("flat", "test", "ed61111a50df9463ff0a931862c43181"),
        ("flat", "train[:50%]", "04c23f8b081a59b2407fbe179449eba5"),
        ("split", "train", "48ce6576d0841a92e55a9d5958df7d3f"),
        ("split", "val[50%:]", "2dde4508688870e4c26058a788f43e34"),
    ],
)
def test_a_flat_folder_keeps_its_order_and_splits(tmp_path, root, split, fingerprint):
    """A run continues while fingerprints stay: of "split" from before nested folders were read."""
    for folder in ("flat", "split/train", "split/val"):
        for name in ("cat", "größe 1"):
            (tmp_path / folder / name).mkdir(parents=True)
            for i in range(20):
                (tmp_path / folder / name / f"{i}.png").touch()
    assert ImageFolder(tmp_path / root, split=split).fingerprint == fingerprint


@pytest.mark.parametrize("splits", [("",), ("train", "test")])
def test_nested_and_empty_class_folders_and_other_formats(tmp_path, caplog, splits):
    make_folder(tmp_path, splits=splits, per_class=12)
    for split in splits:
        (tmp_path / split / "empty class" / "deeper").mkdir(parents=True)
        (tmp_path / split / "empty class" / "notes.txt").touch()
        folder = tmp_path / split / "cat" / "more" / "of them"
        folder.mkdir(parents=True)
        for name in ("a.gif", "b.TIF", "c.jp2", "d.ppm"):
            Image.new("RGB", (5, 4), (200, 10, 10)).save(folder / name)
    source = ImageFolder(tmp_path, split="train")
    assert source.class_names == ("cat", "dog")
    assert "omitted class folders without an image: 'empty class'" in caplog.text
    files = files_of(source)
    assert splits == ("",) or len(files) == 28
    for suffix in (".gif", ".TIF", ".jp2", ".ppm"):
        (i,) = (i for i, file in enumerate(files) if file.endswith(suffix))
        assert "cat/more/of them/" in files[i] and source[i]["label"] == 0
        assert decode_image(source[i]["image"])[0, 0, 0] > 150


def refuses(root, match, split="train"):
    with pytest.raises(DataError, match=match):
        ImageFolder(root, split=split)


def test_folder_mistakes(tmp_path):
    refuses(tmp_path / "nowhere", "nowhere cannot be listed: No such file.* Expected ROOT/SPLIT")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", "empty has no folders. Expected ROOT/SPLIT")
    make_folder(tmp_path / "a")
    refuses(tmp_path / "a", 'no split "tset". Did you mean "test"', split="tset")
    write_image(tmp_path / "a" / "test" / "Cat" / "0.png")
    refuses(tmp_path / "a", "differ in their class folders: train lacks Cat")
    (tmp_path / "b" / "cat").mkdir(parents=True)
    refuses(tmp_path / "b", "has no image in any class folder. Expected ROOT/SPLIT")


def test_links_stay_inside_the_root(tmp_path):
    root = tmp_path / "root"
    make_folder(root)
    (root / "train" / "cat" / "twin.png").symlink_to("0.png")
    write_image(tmp_path / "secret.png")
    link = root / "train" / "cat" / "z.png"
    link.symlink_to(tmp_path / "secret.png")
    refuses(root, r"z.png is a link that leads out of .*root, to .*secret.png.*data\.follow_links")
    followed = ImageFolder(root, split="train", follow_links=True)
    assert len(followed) == 42
    z = next(i for i in range(42) if followed.describe(i).endswith("z.png"))
    assert followed[z]["image"] == (tmp_path / "secret.png").read_bytes()
    link.unlink()
    (root / "train" / "cat" / "loop").symlink_to(root / "train")
    for follow_links in (False, True):
        with pytest.raises(
            DataError, match=r"loop is a link to .*train, a folder that contains it"
        ):
            ImageFolder(root, split="train", follow_links=follow_links)
    (root / "train" / "cat" / "loop").unlink()
    (tmp_path / "elsewhere").symlink_to(root)  # The root itself may be a link.
    assert len(ImageFolder(tmp_path / "elsewhere", split="train")) == 41


# TFDS.


@pytest.mark.parametrize(
    ("name", "num_classes"),
    [("cifar10", 10), ("imagenet2012:5.1.0", 1000), ("oxford_flowers102", 102)],
)
def test_tfds(name, num_classes):
    with mock_tfds(num_examples=5):
        source = open_("train[:90%]", source="tfds", name=name)
        assert len(source) == 5
        assert (source.num_classes, source.channels) == (num_classes, 3)
        assert len(source.class_names) == num_classes
        assert pixels(source[3]).shape[-1] == 3
        assert source[3]["label"] == 3
    assert name.partition(":")[0] in source.describe(2)
    assert source.describe(2).endswith(" train[:90%][2]")


def test_tfds_multi_label():
    with mock_tfds():
        source = open_(source="tfds", name="voc/2007", label_key="labels")
        assert source.multi_label
        label = source[1]["label"]
    assert label.dtype == np.float32
    np.testing.assert_array_equal(np.flatnonzero(label), [1, 4])
    assert source.class_names[1] == "bicycle"


def test_tfds_names(tmp_path):
    def refused(match, error=DataError, **data):
        with pytest.raises(error, match=match):
            open_(source="tfds", data_dir=str(tmp_path), **data)

    refused('no data set "cifra10".*Did you mean .*cifar10', name="cifra10")
    refused(r'TFDS cannot open "\.\./\.\./etc"', name="../../etc")
    refused("cannot be loaded at version 9.9.9", name="cifar10:9.9.9")
    refused("BuilderConfig nothing not found", name="voc/nothing")
    refused(r"not prepared in .*file_format='array_record'", name="cifar10")
    refused(
        r'data.image_key="photo".*Accepted: .*image', ConfigError, name="cifar10",
        image_key="photo",
    )  # fmt: skip
    refused(r'data.label_key="id" is not a class', ConfigError, name="cifar10", label_key="id")
    refused(r'data.image_key="label" is not an', ConfigError, name="cifar10", image_key="label")


# Fashion-MNIST.


@pytest.fixture
def small_idx(tmp_path, monkeypatch):
    """A folder of IDX files of 60 and 20 images; the first pixel of image i is i."""
    files = {
        split: (images, labels, count)
        for (split, (images, labels, _)), count in zip(
            fashion_mnist._FILES.items(), (60, 20), strict=True
        )
    }
    monkeypatch.setattr(fashion_mnist, "_FILES", files)
    folder = tmp_path / "idx"
    folder.mkdir()
    for images, labels, count in files.values():
        pixels_of_split = np.zeros((count, 28, 28), np.uint8)
        pixels_of_split[:, 0, 0] = np.arange(count)
        write_idx(folder / images, pixels_of_split)
        write_idx(folder / labels, (np.arange(count) % 10).astype(np.uint8))
    return folder


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.tobytes())


def open_fashion(tmp_path, manual_dir, split="train"):
    return open_(
        split,
        source="fashion_mnist",
        data_dir=str(tmp_path / "tfds"),
        manual_dir=str(manual_dir) if manual_dir else "",
    )


def test_fashion_mnist_from_idx(tmp_path, small_idx, monkeypatch):
    train = open_fashion(tmp_path, small_idx)
    assert (len(train), train.num_classes, train.channels) == (60, 10, 1)
    assert train.class_names[0] == "T-shirt/top"
    assert [pixels(train[i])[0, 0] for i in range(60)] == list(range(60))  # In the files' order.
    assert [train[i]["label"] for i in range(60)] == [i % 10 for i in range(60)]
    # The second time, nothing is prepared, and the files are not needed.
    monkeypatch.setattr(
        fashion_mnist.FashionMnistIdx, "download_and_prepare", lambda self: pytest.fail("again")
    )
    test = open_fashion(tmp_path, None, "test[5:]")
    assert [test[i]["label"] for i in range(2)] == [5, 6]
    assert not list((tmp_path / "tfds").rglob("*incomplete*"))
    with pytest.raises(DataError, match=r'no split "tests".*Did you mean "test"'):
        open_fashion(tmp_path, None, "tests")
    with pytest.raises(DataError, match="cannot open the split"):
        open_fashion(tmp_path, None, "test[:500]")
    pickle.loads(pickle.dumps(test))[0]


def test_fashion_mnist_from_broken_files(tmp_path, small_idx):
    name = "train-labels-idx1-ubyte"
    good = (small_idx / name).read_bytes()
    (small_idx / name).write_bytes(good[:-1])
    with pytest.raises(DataError, match=f"{name} is not Fashion-MNIST's"):
        open_fashion(tmp_path, small_idx)
    (small_idx / name).unlink()
    with pytest.raises(DataError, match=rf"lacks {name}\.gz\."):
        open_fashion(tmp_path, small_idx)
    # No partial data are left.
    (small_idx / name).write_bytes(good)
    assert len(open_fashion(tmp_path, small_idx)) == 60


def test_fashion_mnist_where_it_cannot_be_written(tmp_path, small_idx):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be prepared in .*Set data\.data_dir"):
        open_(source="fashion_mnist", data_dir=str(tmp_path / "file"), manual_dir=str(small_idx))


def test_fashion_mnist_from_a_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"data\.manual_dir=.*: there is no such folder"):
        open_fashion(tmp_path, tmp_path / "missing")


def test_fashion_mnist_from_nowhere(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(fashion_mnist, "PACKAGE_DIR", tmp_path / "none")
    monkeypatch.setattr("tensorflow_datasets.download.DownloadManager.download", offline)
    with pytest.raises(DataError, match=r"apt-get install dataset-fashion-mnist.*data\.manual_dir"):
        open_fashion(tmp_path, None)


def test_fashion_mnist_is_downloaded_by_tfds(tmp_path, small_idx, monkeypatch):
    def download(self, urls):
        return {name: small_idx / url.rpartition("/")[2][:-3] for name, url in urls.items()}

    monkeypatch.setattr(fashion_mnist, "PACKAGE_DIR", tmp_path / "none")
    monkeypatch.setattr("tensorflow_datasets.download.DownloadManager.download", download)
    assert len(open_fashion(tmp_path, None)) == 60


def test_data_without_random_access(tmp_path, small_idx):
    open_fashion(tmp_path, small_idx)
    (info,) = (tmp_path / "tfds").rglob("dataset_info.json")
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "riegeli"}))
    for file in info.parent.glob("*.array_record-*"):
        file.rename(str(file).replace("array_record", "riegeli"))
    with pytest.raises(DataError, match=r"stored as riegeli.*convert_format --dataset_version_dir"):
        open_(source="tfds", name="fashion_mnist_idx", data_dir=str(tmp_path / "tfds"))


def test_a_damaged_record_is_named(tmp_path, small_idx):
    from vit_jax.data.blocks import ExampleLoader

    source = open_fashion(tmp_path, small_idx)
    (file,) = (tmp_path / "tfds").rglob("*train.array_record*")
    content = bytearray(file.read_bytes())
    content[2000:6000] = bytes(4000)
    file.write_bytes(content)
    load = ExampleLoader(open_fashion(tmp_path, None), lambda example, rng: example, 0)
    with pytest.raises(DataError, match=r"fashion_mnist_idx/1.0.0 train\[\d+\]: This record"):
        for i in range(len(source)):
            load(i, epoch=0)


WITHOUT_TENSORFLOW = """
import sys
sys.path.insert(0, sys.argv[1])
from vit_jax.config import base_config
from vit_jax.data.sources import open_source
if __name__ == "__main__":
    config = base_config().data
    config.source, config.data_dir = "fashion_mnist", sys.argv[2]
    source = open_source(config, split="test")
    print(len(source), sum(source[i]["label"] for i in range(100)), source[0]["image"][1:4])
    assert "tensorflow" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.skipif(not fashion_mnist.PACKAGE_DIR.is_dir(), reason="no dataset-fashion-mnist")
def test_concurrent_starts_without_tensorflow(tmp_path):
    """Three processes prepare the data at the same time."""
    script = tmp_path / "open.py"
    script.write_text(WITHOUT_TENSORFLOW)
    command = [sys.executable, "-W", "error", script, ROOT, tmp_path / "tfds"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=250)[0].splitlines()[-1] for process in running]
    assert outputs == [outputs[0]] * 3
    assert outputs[0].startswith("10000 ")
    assert outputs[0].endswith("b'PNG'")
    assert [p.name for p in (tmp_path / "tfds" / "fashion_mnist_idx").iterdir()] == ["1.0.0"]
    source = open_fashion(tmp_path, None)
    assert len(source) == 60_000
    # The published files' first examples: an ankle boot, two shirts, two dresses.
    assert [source.class_names[source[i]["label"]] for i in range(4)] == [
        "Ankle boot", "T-shirt/top", "T-shirt/top", "Dress",
    ]  # fmt: skip
