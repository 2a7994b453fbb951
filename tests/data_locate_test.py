"""From what a user points to, to the keys of `config.data`."""

import pytest

from tests.data_formats_test import (
    hf_table,
    pq,
    write_cached,
    write_hub,
    write_saved,
    write_shard,
)
from tests.data_sources_test import make_folder, open_, open_fashion, small_idx
from vit_jax.data.locate import locate_data
from vit_jax.errors import ConfigError, DataError

__all__ = ["small_idx"]  # A fixture.


def opened(text):
    """The number of examples of the split train of what a text names, and its settings."""
    settings = locate_data(text)
    return len(open_(settings.pop("split", "train"), **settings)), settings


def test_folders_and_files(tmp_path):
    make_folder(tmp_path / "images")
    write_saved(tmp_path / "saved")
    write_hub(tmp_path / "hub")
    write_shard(tmp_path / "tars" / "train-0.tar", 0)
    pq.write_table(hf_table(0, 9).rename_columns(["img", "kind"]), tmp_path / "train.parquet")

    def source(name, count, kind, where=""):
        data_dir = str(tmp_path / (where or name.partition(":")[0]))
        assert opened(str(tmp_path / name)) == (count, {"source": kind, "data_dir": data_dir})

    source("images", 40, "image_folder")
    source("images:test[:25%]", 10, "image_folder")
    source("saved", 30, "hf_datasets")
    source("hub", 30, "hf_datasets")
    source("hub:test", 10, "hf_datasets")
    source("tars", 10, "webdataset")
    source("tars/train-{0..0}.tar", 10, "webdataset")
    (tmp_path / "data.csv").write_text("file_name,target\nimages/train/cat/0.png,cat\n")
    assert locate_data(str(tmp_path / "data.csv")) == {
        "source": "table",
        "data_dir": str(tmp_path / "data.csv"),
        "image_key": "file_name",
        "label_key": "target",
    }
    with pytest.raises(ConfigError, match=r"which column is data\.label_key\? Of img, kind, none"):
        locate_data(str(tmp_path / "train.parquet"))


def test_what_is_ambiguous_or_unknown(tmp_path):
    make_folder(tmp_path / "both")
    write_shard(tmp_path / "both" / "0.tar", 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    for name, error, match in [
        ("both", ConfigError, "has tar files and folders of images: give the one that is meant"),
        ("empty", DataError, "has no data of a known kind. Give a folder with"),
        ("missing", DataError, "missing does not exist"),
        ("missing.csv:test", DataError, r"missing\.csv does not exist"),
        ("notes.txt", DataError, r"notes\.txt is of no known kind"),
        ("both/train/cat/0.png", DataError, r"0\.png is an image, without a label"),
        ("a-{0..3}.tar", DataError, "4 of 4 files do not exist"),
    ]:
        with pytest.raises(error, match=match):
            locate_data(str(tmp_path / name))
    with pytest.raises(ConfigError, match="No data are named"):
        locate_data("")


def test_names(tmp_path, monkeypatch, small_idx):
    write_cached(tmp_path / "hf", monkeypatch)
    assert locate_data("digits:test") == {"source": "digits", "split": "test"}
    assert locate_data("cifar10:3.0.2") == {"source": "tfds", "name": "cifar10:3.0.2"}
    assert opened("owner/name:test") == (10, {"source": "hf_datasets", "name": "owner/name"})
    assert opened("hf:owner/name:default")[0] == 30
    assert locate_data("tfds:voc/2007") == {"source": "tfds", "name": "voc/2007"}
    with pytest.raises(DataError, match=r"cifra10 is no file or folder.*Did you mean cifar10"):
        locate_data("cifra10")
    (tmp_path / "hf" / "owner___name").rename(tmp_path / "hf" / "cifar10")
    with pytest.raises(ConfigError, match="write tfds:cifar10 or hf:cifar10"):
        locate_data("cifar10")
    with pytest.raises(DataError, match="cache has no data set 'owner/name'"):
        open_(source="hf_datasets", name="owner/name")
    # A folder that TFDS has prepared.
    open_fashion(tmp_path, small_idx)
    folder = str(tmp_path / "tfds" / "fashion_mnist_idx" / "1.0.0")
    settings = {"source": "tfds", "name": "fashion_mnist_idx:1.0.0"}
    assert opened(folder) == (60, settings | {"data_dir": str(tmp_path / "tfds")})
