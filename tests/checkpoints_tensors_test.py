"""Files of tensors: intact ones from their own libraries, damaged ones, and other formats.

A bad file raises CheckpointError and nothing else, and nothing in it is executed.
"""

import io
import json
import pickle
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import strategies as st

from tests.fuzzing import fuzz
from tests.tensor_files import (
    ARRAYS,
    npy,
    read_all,
    safetensors_numpy,
    to_torch,
    torch,
    write,
    zipped,
)
from vit_jax.errors import CheckpointError
from vit_jax.pretrained.tensors import Npz, Pth, Safetensors, open_tensors

KINDS = {
    "safetensors": Safetensors,
    "npz": Npz,
    "npz compressed": Npz,
    "pth": Pth,
    "pth legacy": Pth,
}


@pytest.fixture(params=KINDS)
def written(request, tmp_path):
    """A file of each kind, with a name that does not show the kind."""
    return request.param, write(request.param, tmp_path / "weights")


# --- Intact files


def test_every_tensor_is_read_as_it_was_written(written):
    kind, path = written
    tensors = open_tensors(path)
    assert type(tensors) is KINDS[kind] and set(tensors) == set(ARRAYS)
    for name, want in ARRAYS.items():
        assert tensors[name] == (want.shape, want.dtype)
        got = tensors.read(name)
        assert got.dtype == want.dtype and got.flags.c_contiguous and got.flags.writeable
        np.testing.assert_array_equal(got, want)


def test_leading_rows(written):
    tensors = open_tensors(written[1])
    for rows in (slice(1, 3), slice(None, 2), slice(2, 9), slice(-1, None), slice(3, 1)):
        for name in ("kernel", "brain", "empty"):
            got = tensors.read(name, rows)
            np.testing.assert_array_equal(got, ARRAYS[name][rows])
            assert got.shape == ARRAYS[name][rows].shape
    for name, rows in (("kernel", slice(0, 4, 2)), ("scalar", slice(0, 1))):
        with pytest.raises(ValueError, match="not consecutive rows"):
            tensors.read(name, rows)


def test_reading_rows_needs_memory_for_the_rows_only(tmp_path):
    safetensors_numpy.save_file({"a": np.ones((1000, 1000), np.float32)}, tmp_path / "x")
    tensors = open_tensors(tmp_path / "x")
    tracemalloc.start()
    got = tensors.read("a", slice(10, 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert got.nbytes == 40_000 and peak < 100_000


def test_all_the_goldens_are_opened(goldens):
    files = [
        path
        for path in sorted(goldens.glob("*/*/*"))
        if path.suffix in (".safetensors", ".pth", ".bin") or path.name == "ckpt.npz"
    ]
    assert len(files) > 30
    for path in files:
        tensors = open_tensors(path)
        assert tensors and all(tensors.read(n).shape == tensors[n].shape for n in tensors)


def test_npz_in_other_orders(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "x.npz", fortran=np.asfortranarray(array), big=array.astype(">f4"))
    tensors = open_tensors(tmp_path / "x.npz")
    for name in tensors:
        got = tensors.read(name)
        assert got.dtype == np.dtype(np.float32) == tensors[name].dtype and got.flags.c_contiguous
        np.testing.assert_array_equal(got, array)


def test_a_file_that_was_changed_after_opening_is_not_read(tmp_path):
    path = write("safetensors", tmp_path / "x")
    tensors = open_tensors(path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="has changed"):
        tensors.read("kernel")


# --- Shards


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_shards(tmp_path, form):
    names, weights = list(ARRAYS), {}
    for i, part in enumerate((names[:4], names[4:])):
        file = f"model-{i + 1:05}-of-00002.{form}"
        if form == "safetensors":
            safetensors_numpy.save_file({n: ARRAYS[n] for n in part}, tmp_path / file)
        else:
            torch.save({n: to_torch(ARRAYS[n]) for n in part}, tmp_path / file)
        weights |= dict.fromkeys(part, file)
    index = tmp_path / f"model.{form}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    tensors = open_tensors(index)
    for name, want in ARRAYS.items():
        np.testing.assert_array_equal(tensors.read(name), want)
    np.testing.assert_array_equal(tensors.read("kernel", slice(1, 2)), ARRAYS["kernel"][1:2])

    index.write_text(json.dumps({"weight_map": weights | {"more": file}}))
    with pytest.raises(CheckpointError, match="more is not in"):
        open_tensors(index)
    (tmp_path / file).unlink()
    with pytest.raises(CheckpointError, match=r"is missing: the checkpoint has 2 shards"):
        open_tensors(index)
    for hostile in ("../x.safetensors", "/etc/passwd", 3, None, "x.txt"):
        index.write_text(json.dumps({"weight_map": {"a": hostile}}))
        with pytest.raises(CheckpointError):
            open_tensors(index)


# --- Other formats


def tarred(name):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", r"LFS.*git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
        (tarred("a"), "tar -xf"),
        (zipped("model.weights.h5"), "Keras"),
        (b"\x83\xa6params\x80", "MessagePack"),
        (pickle.dumps({"a": 1}), "pickle, which can execute code"),
        (b'{"model_type": "vit"}', "JSON"),
        (b"\x93NUMPY\x01\x00", "savez"),
    ],
)
def test_other_formats_are_named(tmp_path, content, match):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=match):
        open_tensors(tmp_path / "model.safetensors")


def test_no_file(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r'There is no file.*Did you mean "model.safeten'):
        open_tensors(tmp_path / "model.safetensor")
    with pytest.raises(CheckpointError, match=r"is a folder: .*It has: model.safetensors"):
        open_tensors(tmp_path)


# --- Hostile files


def header(entries, data=b"", length=None):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (header({"a": entry()}, b"1234", length=2**26), "header claims"),
        (header({"a": entry()}, b"123"), "has 3 for them"),
        (header({"a": entry(shape=(2,))}, b"1234"), "too many or too few"),
        (header({"a": entry(shape=(-1,))}, b"1234"), "shape is"),
        (header({"a": entry(shape=(2**62, 2**62))}, b"1234"), "shape is"),
        (header({"a": entry(offsets=(-4, 0))}, b"1234"), "data_offsets are invalid"),
        (header({"a": entry(), "b": entry()}, b"1234"), "overlap others"),
        (header({"a": entry(offsets=(4, 8))}, b"12345678"), "leave a gap"),
        (header(b'{"a": 1, "a": 2}'), "twice"),
        (header(b"{" + b'"a":[' * 10**5), "not valid JSON"),
        (header({"a": entry(dtype="F8_E4M3")}, b"1234"), r"F8_E4M3, which is not supp.*quantised"),
    ],
)
def test_hostile_safetensors(tmp_path, content, match):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match=match):
        open_tensors(tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.npy", npy(shape=(10**12,)), "should have .* bytes, and has"),
        ("a.npy", npy(shape=(-3,), data=bytes(12)), "shape is"),
        ("a.npy", npy(np.array([object()], dtype=object)), "could execute code|Can't"),
        ("a.npy", npy(np.array(["text"])), "not supported"),
        ("dir/", b"", "not an array"),
    ],
)
def test_hostile_npz(tmp_path, name, content, match):
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "x", "w", method) as archive:
            archive.writestr("good.npy", npy(np.ones(3)))
            archive.writestr(name, content)
        tracemalloc.start()
        with pytest.raises(CheckpointError, match=match):
            open_tensors(tmp_path / "x")
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()


@fuzz(120, data=st.data())
def test_damage_of_any_kind_raises_a_checkpoint_error(written, data):
    _, path = written
    whole = path.with_name("whole")
    if not whole.exists():
        whole.write_bytes(path.read_bytes())
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(0, 4), label="flips")):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    start = data.draw(st.one_of(st.just(0), st.integers(0, len(content))), label="start")
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))), label="end")
    path.write_bytes(content[start:end])
    read_all(path)
