"""Paths and addresses: invalid ones are refused, local ones are not changed."""

import concurrent.futures
import errno
import os

import pytest
from etils import epath

from vit_jax import storage
from vit_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://bucket/run", "use a folder of this machine .* or gs://"),
        ("gs:/bucket/run", "write gs://bucket/folder"),  # As pathlib writes it.
        ("gs://bucket", "write gs://bucket/folder"),
        ("gs://bucket/../other/run", "has no . and .."),
        ("gs://bucket/run[1]", "'\\[' '\\]' would be read as a pattern"),
        ("", "is empty"),
        ("/gs/bucket/run", "is read as one of an object store"),
        ("~nobody-of-this-name/run", "write ./~nobody-of-this-name/run"),
    ],
)
def test_invalid_addresses_are_refused(address, message):
    with pytest.raises(ConfigError, match=f"^--workdir.*{message}"):
        storage.as_path(address, name="--workdir")


def test_local_paths_are_not_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for text in ("run", "a b/[x]~", "/abs/../olute", "gs", "x/gs:/x"):
        assert os.fspath(storage.as_path(text)) == os.fspath(storage.as_path(epath.Path(text)))
        assert storage.is_local(storage.as_path(text))
    assert os.fspath(storage.as_path("~/x")) == f"{tmp_path}/x"
    assert os.fspath(storage.absolute("/a/link/../b")) == "/a/link/../b"  # Links are not resolved.
    assert os.fspath(storage.absolute("gs://bucket/run")) == "gs://bucket/run"


def test_without_gcsfs_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(storage, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'gcsfs is not installed.*pip install -e "\.\[gcs\]"'):
        storage.as_path("gs://another/run")


def test_files_of_a_disk_and_of_a_store_behave_alike(gcs, tmp_path):
    for folder in (epath.Path(tmp_path / "new"), epath.Path("gs://bucket/new")):
        assert storage.names(folder) == [] and not storage.exists(folder)
        assert storage.identity(folder / "x") is None
        storage.make_folder(folder)
        storage.write_bytes(folder / "x", b"one")
        one = storage.identity(folder / "x")
        storage.write_bytes(folder / "x", b"another")
        assert storage.identity(folder / "x") != one is not None
        assert storage.read_bytes(folder / "x") == b"another"
        assert storage.read_bytes(folder / "x", limit=7) == b"another"
        with pytest.raises(OSError, match="larger than 6 bytes") as error:
            storage.read_bytes(folder / "x", limit=6)
        assert error.value.errno == errno.EFBIG
        storage.write_bytes(folder / "a~", b"")
        assert storage.exists(folder / "x") and storage.exists(folder)
        assert not storage.exists(folder / "y") and not storage.exists(folder / "x" / "y")
        assert "x" in storage.names(folder)
        storage.delete(folder / "x")
        assert not storage.exists(folder / "x")
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(folder / "x")


def test_a_listing_has_pages(gcs):
    for i in range(120):
        gcs.put(f"many/{i:03}/x", b"")
    assert storage.names("gs://bucket/many") == [f"{i:03}" for i in range(120)]


def test_an_unreadable_path_is_not_reported_as_missing(tmp_path, gcs):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        storage.names(tmp_path / "file")
    gcs.fault = lambda method, path: 403
    for look in (storage.exists, storage.names, storage.identity, storage.read_bytes):
        with pytest.raises(OSError, match="Forbidden"):
            look("gs://bucket/run")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    storage.write_bytes(tmp_path / "x", b"old")

    def fail(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        storage.write_bytes(tmp_path / "x", b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x", b"old")]


def test_two_writers_of_one_file_leave_it_intact(tmp_path):
    def write(letter):
        for _ in range(60):
            storage.write_bytes(tmp_path / "x", letter * 300_000)
            content = storage.read_bytes(tmp_path / "x")
            assert content in (b"a" * 300_000, b"b" * 300_000)

    with concurrent.futures.ThreadPoolExecutor(2) as writers:
        list(writers.map(write, [b"a", b"b"]))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
