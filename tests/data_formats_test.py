"""Sources in files with many examples: tables, Hugging Face's data sets, WebDataset, TFRecord."""

import io
import json
import os
import pickle
import tarfile

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image

from tests.data_sources_test import open_, open_fashion, small_idx
from tests.fake_gcs import FakeGcs
from vit_jax.data import reading
from vit_jax.data.blocks import ExampleLoader
from vit_jax.data.shards import index, rows, tfrecord
from vit_jax.data.shards.labels import class_ids
from vit_jax.errors import ConfigError, DataError

__all__ = ["small_idx"]  # A fixture.

# As `datasets` 5.2 writes it: compared with files that the library itself wrote.
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": ["cat", "dog", "fox"], "_type": "ClassLabel"},
}
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 0, 0)).save(file, format="png")
    return file.getvalue()


def hf_table(start, stop):
    """Rows whose image i is png(i) and whose label is i % 3."""
    return pa.table(
        {
            "image": pa.array([{"bytes": png(i), "path": None} for i in range(start, stop)], IMAGE),
            "label": pa.array([i % 3 for i in range(start, stop)], pa.int64()),
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})


def write_stream(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


def write_saved(folder):
    """Writes a DatasetDict as `save_to_disk`: 30 examples in three files, and 10."""
    for split, stop, count in (("train", 30, 3), ("test", 10, 1)):
        size = stop // count
        names = [f"data-{i:05d}-of-{count:05d}.arrow" for i in range(count)]
        for i, name in enumerate(names):
            write_stream(folder / split / name, hf_table(i * size, (i + 1) * size))
        state = {"_data_files": [{"filename": name} for name in names], "_split": None}
        (folder / split / "state.json").write_text(json.dumps(state))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    return {"data_dir": str(folder)}


def write_hub(folder):
    """Writes Parquet files as on the hub."""
    (folder / "data").mkdir(parents=True)
    for name, start, stop in (("train-00000-of-00002", 0, 15), ("train-00001-of-00002", 15, 30)):
        pq.write_table(hf_table(start, stop), folder / f"data/{name}.parquet", row_group_size=4)
    pq.write_table(hf_table(0, 10), folder / "data/test-00000-of-00001.parquet")
    return {"data_dir": str(folder)}


def write_cached(folder, monkeypatch):
    """Writes a data set as in the cache of `load_dataset`."""
    inside = folder / "owner___name" / "default" / "0.0.0" / "c248df"
    write_stream(inside / "name-train-00000-of-00002.arrow", hf_table(0, 20))
    write_stream(inside / "name-train-00001-of-00002.arrow", hf_table(20, 30))
    write_stream(inside / "name-test.arrow", hf_table(0, 10))
    write_stream(inside / "cache-0a1b.arrow", hf_table(0, 2))  # What `map` has kept.
    (inside / "dataset_info.json").write_text(json.dumps({"splits": {"train": {}, "test": {}}}))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder))
    return {"name": "owner/name"}


@pytest.mark.parametrize("layout", ["saved", "hub", "cached"])
def test_data_sets_of_hugging_face(tmp_path, monkeypatch, layout):
    where = {
        "saved": lambda: write_saved(tmp_path),
        "hub": lambda: write_hub(tmp_path),
        "cached": lambda: write_cached(tmp_path, monkeypatch),
    }[layout]()
    train = open_("train", source="hf_datasets", **where)
    for source in (train, pickle.loads(pickle.dumps(train))):  # As in a loader process.
        assert (len(source), source.class_names) == (30, ("cat", "dog", "fox"))
        assert [source[i]["label"] for i in range(30)] == [i % 3 for i in range(30)]
        assert [source[i]["image"] for i in (29, 0, 17)] == [png(29), png(0), png(17)]
    assert train.describe(16).endswith(
        {"saved": "data-00001-of-00003.arrow row 6", "cached": "00000-of-00002.arrow row 16"}.get(
            layout, "train-00001-of-00002.parquet row 1"
        )
    )
    assert len(open_("test", source="hf_datasets", **where)) == 10
    with pytest.raises(DataError, match=r'no split "tets".*Did you mean "test"'):
        open_("tets", source="hf_datasets", **where)
    with pytest.raises(ConfigError, match=r'data\.image_key="img" is no column .*: image, label'):
        open_("train", source="hf_datasets", image_key="img", **where)


def test_slices_have_a_fraction_of_each_class_in_the_order_of_the_file(tmp_path):
    table = pa.table({"image": [png(i % 250) for i in range(900)], "label": [0] * 450 + [1] * 450})
    pq.write_table(table, tmp_path / "train.parquet")

    def part(split):
        source = open_(split, source="table", data_dir=str(tmp_path))
        return [int(source.describe(i).rpartition(" ")[2]) for i in range(len(source))], source

    whole, _ = part("train")
    first, source = part("train[:50%]")
    rest, other = part("train[50%:]")
    assert whole == list(range(900))
    assert first == sorted(first) and sorted(first + rest) == whole
    assert 180 < sum(source.label(i) for i in range(len(source))) < 270
    assert source.fingerprint != other.fingerprint


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_file_of_paths(tmp_path, separator):
    (tmp_path / "images").mkdir()
    lines = [separator.join(("file", "kind", "split"))]
    for i in range(20):
        (tmp_path / "images" / f"00{i}.png").write_bytes(png(i))
        lines.append(separator.join((f"images/00{i}.png", "yes" if i % 2 else "no", "ab"[i > 15])))
    lines += [separator.join((f"{tmp_path}.png", "no", "a")), separator.join(("", "", "a"))]
    (tmp_path / "labels.csv").write_text("\ufeff" + "\n".join(lines))
    (tmp_path.with_suffix(".png")).write_bytes(png(99))
    where = {"source": "table", "data_dir": str(tmp_path / "labels.csv"), "image_key": "file"}
    where |= {"label_key": "kind"}
    source = open_("a", **where)
    assert (len(source), source.class_names) == (18, ("no", "yes"))
    assert source[3] == {"image": png(3), "label": 1}
    assert source.describe(3).endswith("labels.csv row 3")
    load = ExampleLoader(source, lambda example, rng: example, 0)
    with pytest.raises(DataError, match=r"row 20: .* is outside of .*data\.follow_links=True"):
        load(16, epoch=0)
    with pytest.raises(DataError, match="row 21: It has no image"):
        load(17, epoch=0)
    assert open_("a", follow_links=True, **where)[16]["image"] == png(99)
    assert len(open_("b", **where)) == 4


def test_labels():
    def ids(*values, names=()):
        names, by_split = class_ids({"": pa.chunked_array([values])}, names=names, key="labels")
        return names, by_split[""].tolist()

    assert ids(2, 0, None) == (("0", "1", "2"), [2, 0, -1])
    assert ids("2", "0", None) == (("0", "1", "2"), [2, 0, -1])
    assert ids("b", "a", None, "b") == (("a", "b"), [1, 0, -1, 1])
    assert ids("b", "a", "c", names=("b", "a")) == (("b", "a"), [0, 1, -1])
    assert ids(0, 5, -1, names=("x", "y")) == (("x", "y"), [0, -1, -1])
    assert ids(1.0, 0.0, None) == (("0", "1"), [1, 0, -1])
    assert ids(True, False) == (("false", "true"), [1, 0])
    assert ids("01", "10") == (("01", "10"), [0, 1])  # Postal codes are names.
    with pytest.raises(ConfigError, match="labels is not a class label"):
        ids(0.5)
    with pytest.raises(ConfigError, match="labels is of the type list"):
        ids([1, 2])
    with pytest.raises(DataError, match="no example has a label"):
        ids(-1, None)
    with pytest.raises(DataError, match="there is the class id 5,000,000"):
        ids(5_000_000)


def test_a_process_keeps_a_bounded_part_of_a_parquet_file(tmp_path, monkeypatch):
    table = pa.table({"image": [bytes([i]) * 100_000 for i in range(40)]})
    pq.write_table(table, tmp_path / "0.parquet", row_group_size=4)
    monkeypatch.setattr(rows, "_CACHE_BYTES", 900_000)
    opened = rows.open_rows([str(tmp_path / "0.parquet")])
    read = []
    original = opened._read_group
    monkeypatch.setattr(opened, "_read_group", lambda *key: read.append(key) or original(*key))
    for i in (0, 1, 3, 5, 2, 39, 38, 0):
        assert opened.cell("image", i) == bytes([i]) * 100_000
    # Two groups fit: the first was used last when the third came, and goes when it is used again.
    assert [group for _, _, group in read] == [0, 1, 9]
    assert sum(values.nbytes for values in opened._cache.values()) <= 900_000


def test_broken_and_different_tables(tmp_path):
    write_hub(tmp_path)
    first = tmp_path / "data" / "train-00000-of-00002.parquet"
    pq.write_table(hf_table(0, 3).rename_columns(["image", "y"]), first)
    with pytest.raises(DataError, match="Tables of one data set need the same columns"):
        open_(source="hf_datasets", data_dir=str(tmp_path))
    first.write_bytes(first.read_bytes()[:500])
    with pytest.raises(DataError, match=r"train-00000.*cannot be read"):
        open_(source="hf_datasets", data_dir=str(tmp_path))
    (tmp_path / "latin.csv").write_bytes("image,größe\n".encode("latin-1"))
    with pytest.raises(DataError, match="not encoded as UTF-8"):
        open_(source="table", data_dir=str(tmp_path / "latin.csv"))
    saved = tmp_path / "saved"
    write_saved(saved)
    state = {"_data_files": [{"filename": "../../data/test-00000-of-00001.parquet"}]}
    (saved / "train" / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="lists no data files"):
        open_(source="hf_datasets", data_dir=str(saved))


# WebDataset.


def write_shard(path, first, *, samples=10, label=None):
    """Writes samples whose image i is png(i) and whose label is i % 4, or that of a function."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in range(first, first + samples):
            extension, text = label(i) if label else ("cls", str(i % 4))
            for name, content in (
                (f"{i:05d}.png", png(i)),
                (f"{i:05d}.{extension}", text.encode()),
            ):
                member = tarfile.TarInfo(f"photos.v2/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def test_webdataset(tmp_path, monkeypatch):
    for i in range(3):
        write_shard(tmp_path / f"a-train-{i:03d}.tar", 10 * i)
    write_shard(tmp_path / "a-val-000.tar", 30)
    where = {"source": "webdataset", "data_dir": str(tmp_path)}
    train = open_("train", **where)
    for source in (train, pickle.loads(pickle.dumps(train))):
        assert (len(source), source.class_names) == (30, ("0", "1", "2", "3"))
        assert [source[i] for i in (29, 4)] == [
            {"image": png(29), "label": 1},
            {"image": png(4), "label": 0},
        ]
        assert source.describe(13).endswith("a-train-001.tar: photos.v2/00013")
    pattern = open_("train", source="webdataset", data_dir=f"{tmp_path}/a-train-{{000..002}}.tar")
    assert pattern.fingerprint == train.fingerprint
    # The second time nothing is read; a changed file is read again.
    scanned = []
    original = index._scan_all
    monkeypatch.setattr(
        index, "_scan_all", lambda *args, **kw: scanned.append(1) or original(*args, **kw)
    )
    assert len(open_("val", **where)) == 10 and not scanned
    write_shard(tmp_path / "a-val-000.tar", 30, samples=12)
    assert len(open_("val", **where)) == 12 and scanned
    with pytest.raises(DataError, match=r"1 of 4 files do not exist, such as .*a-train-003\.tar"):
        open_("train", source="webdataset", data_dir=f"{tmp_path}/a-train-{{000..003}}.tar")


@pytest.mark.parametrize(
    ("label", "key", "names"),
    [
        (lambda i: ("txt", ("dog\n", "cat\n")[i % 2]), "label", ("cat", "dog")),
        (lambda i: ("json", json.dumps({"label": i % 3})), "label", ("0", "1", "2")),
        (lambda i: ("json", json.dumps({"kind": "xyz"[i % 3]})), "kind", ("x", "y", "z")),
        (lambda i: ("fine.cls", str(i % 2)), "fine.cls", ("0", "1")),
    ],
)
def test_labels_of_webdataset(tmp_path, label, key, names):
    write_shard(tmp_path / "0.tar", 0, samples=40, label=label)
    source = open_("train", source="webdataset", data_dir=str(tmp_path), label_key=key)
    assert source.class_names == names
    assert len(source) + len(open_("test", source="webdataset", data_dir=str(tmp_path),
                                   label_key=key)) == 40  # fmt: skip


def test_broken_tar_files(tmp_path, monkeypatch):
    where = {"source": "webdataset", "data_dir": str(tmp_path)}
    with tarfile.open(tmp_path / "0.tar.gz", "w:gz"):
        pass
    with pytest.raises(DataError, match=r"has no file \*\.tar\. Unpack \.tar\.gz"):
        open_(**where)
    write_shard(tmp_path / "0.tar", 0, samples=40)
    source = open_(**where)
    content = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(content[:5000])
    with pytest.raises(DataError, match="ends before byte"):
        source[len(source) - 1]
    with pytest.raises(DataError, match="cannot be read as a tar file: unexpected end of data"):
        open_(**where)
    (tmp_path / "0.tar").write_bytes(content)
    monkeypatch.setattr(index.storage, "write_bytes", lambda *args: refuse())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert open_(**where)[5] == pickle.loads(pickle.dumps(source))[5]


def refuse():
    raise OSError("a read-only file system")


# TFDS's TFRecord files.


def frame(data):
    """A record in TFRecord's format."""

    def masked(part):
        crc = google_crc32c.value(part)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")

    length = len(data).to_bytes(8, "little")
    return length + masked(length) + data + masked(data)


@pytest.fixture
def as_tfrecord(tmp_path, small_idx):
    """Fashion-MNIST's small data set, prepared as TFRecord: the folder of its files."""
    open_fashion(tmp_path, small_idx)
    (info,) = (tmp_path / "tfds").rglob("dataset_info.json")
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    for file in info.parent.glob("*.array_record-*"):
        reader = ArrayRecordReader(str(file))
        records = map(frame, reader.read_all())
        (file.parent / file.name.replace("array_record", "tfrecord")).write_bytes(b"".join(records))
        reader.close()
        file.unlink()
    return info.parent


def test_tfrecord(tmp_path, as_tfrecord):
    def opened(split):
        return open_(
            split, source="tfds", name="fashion_mnist_idx", data_dir=str(tmp_path / "tfds")
        )

    source = opened("train")
    for copy in (source, pickle.loads(pickle.dumps(source))):
        assert (len(copy), copy.num_classes) == (60, 10)
        assert [copy[i]["label"] for i in range(60)] == [i % 10 for i in range(60)]
    image = np.asarray(Image.open(io.BytesIO(source[17]["image"])))
    assert image[0, 0] == 17  # The first pixel of image i is i.
    part = opened("train[15:40]")
    assert [part[i] for i in range(len(part))] == [source[i] for i in range(15, 40)]
    # The index is kept, and a damaged record is named when it is read.
    assert list(as_tfrecord.glob(".vit_jax_index-*"))
    (file,) = as_tfrecord.glob("*train.tfrecord*")
    state, content = os.stat(file), bytearray(file.read_bytes())
    content[-30] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(DataError, match=r"cannot be read: The record at byte .* is damaged"):
        opened("train")[59]
    file.write_bytes(content[:-1])
    with pytest.raises(DataError, match="is truncated"):
        opened("train")
    file.write_bytes(b"not a record")
    with pytest.raises(DataError, match="is not a TFRecord file, or is damaged, at byte 0"):
        opened("train")


def test_neighbours_are_read_at_once(tmp_path, as_tfrecord, monkeypatch):
    source = open_(source="tfds", name="fashion_mnist_idx", data_dir=str(tmp_path / "tfds"))
    single = [source[i] for i in range(60)]
    lengths = []
    read_at = reading._read_at
    monkeypatch.setattr(
        reading, "_read_at", lambda *args: lengths.append(args[2]) or read_at(*args)
    )
    ids = [31, 8, 30, 9, 32, 58]
    assert source.read(ids) == [single[i] for i in ids]
    assert len(lengths) == 1  # The records between are smaller than a gap.
    monkeypatch.setattr(reading, "_GAP_BYTES", 100)
    assert source.read(ids) == [single[i] for i in ids]
    assert len(lengths) == 1 + 3


def test_array_record_reads_google_cloud_storage(tmp_path, small_idx, monkeypatch):
    """By itself, without gcsfs; but no other store, and no address of a file."""
    source = open_fashion(tmp_path, small_idx)
    (file,) = (tmp_path / "tfds").rglob("*train.array_record-*")
    with FakeGcs() as store:
        store.put("data/train", file.read_bytes())
        monkeypatch.setenv(
            "CLOUD_STORAGE_EMULATOR_ENDPOINT", store.environment["STORAGE_EMULATOR_HOST"]
        )
        remote = ArrayRecordDataSource("gs://bucket/data/train")
        assert remote.__getitems__([59, 0]) == source._records.data_source.__getitems__([59, 0])
        with pytest.raises(RuntimeError, match=r"NOT_FOUND|404|No such object"):
            ArrayRecordDataSource("gs://bucket/data/none")
    for address in (f"file://{file}", "s3://bucket/data/train"):
        with pytest.raises(RuntimeError, match="No such file or directory"):
            ArrayRecordDataSource(address)


def test_fewer_records_than_prepared(tmp_path, as_tfrecord):
    (file,) = as_tfrecord.glob("*test.tfrecord*")
    end = tfrecord.scan(str(file))["offset"][-1].as_py() - 12
    file.write_bytes(file.read_bytes()[:end])
    with pytest.raises(DataError, match=r"has 19 records, and dataset_info\.json says 20"):
        open_("test", source="tfds", name="fashion_mnist_idx", data_dir=str(tmp_path / "tfds"))
