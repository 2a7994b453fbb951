"""PyTorch's files: the model is found in what training saved, and nothing in them is executed."""

import argparse
import importlib.util
import io
import os
import pathlib
import zipfile

import numpy as np
import pytest
from hypothesis import strategies as st

from tests.fuzzing import bounded, fuzz
from tests.tensor_files import read_all, torch, write, zipped
from vit_jax.errors import CheckpointError
from vit_jax.pretrained.tensors import open_tensors

MODEL = {"head.weight": torch.ones(2, 3)}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2, 3)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    ("content", "wrapper", "beside"),
    [
        (MODEL, "", ()),
        (
            {"model": MODEL, "optimizer": OPTIMIZER, "epoch": 9, "args": argparse.Namespace(lr=1)},
            "model",
            ("optimizer", "epoch", "args"),
        ),
        ({"state_dict": MODEL, "state_dict_ema": MODEL}, "state_dict_ema", ("state_dict",)),
        ({"student": {}, "teacher": {"backbone": MODEL}}, "teacher.backbone", ("student",)),
        ({"model": MODEL, "best": np.float64(81.2)}, "model", ("best",)),
    ],
)
def test_the_model_is_found_in_what_training_saved(tmp_path, content, wrapper, beside):
    torch.save(content, tmp_path / "x.pth")
    tensors = open_tensors(tmp_path / "x.pth")
    assert tensors.metadata == {"wrapper": wrapper, "beside": beside}
    for name in tensors:
        assert tensors.read(name).shape == tensors[name].shape


@pytest.mark.parametrize("content", [[1, 2], {"model": {"a": 1}}, torch.ones(2)])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"holds no state dict.*state_dict"):
        open_tensors(tmp_path / "x.pth")


def test_parameters_and_transposed_tensors(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": torch.nn.Parameter(weight), "b": weight.T}, tmp_path / "x.pth")
    tensors = open_tensors(tmp_path / "x.pth")
    np.testing.assert_array_equal(tensors.read("a"), weight.numpy())
    np.testing.assert_array_equal(tensors.read("b", slice(1, 3)), weight.T.numpy()[1:])
    assert tensors.read("b").flags.c_contiguous


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(1).expand(10**9),  # Four gigabytes, of four bytes.
        torch.eye(3).to_sparse(),
        torch.ones(2, dtype=torch.complex64),
    ],
)
def test_tensors_that_are_not_in_the_file_or_not_supported(tmp_path, tensor):
    torch.save({"a": tensor}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"bytes are missing|not supported"):
        open_tensors(tmp_path / "x.pth")


class Runs:
    """Executes a command when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("new_form", [True, False])
def test_code_is_refused_by_name(tmp_path, monkeypatch, new_form):
    monkeypatch.chdir(tmp_path)
    content = {"model": MODEL, "args": Runs()}
    torch.save(content, "x.pth", _use_new_zipfile_serialization=new_form)
    with pytest.raises(CheckpointError, match=r"holds (os|posix)\.mkdir.*state_dict"):
        open_tensors(pathlib.Path("x.pth"))
    torch.save(torch.nn.Linear(2, 2), "y.pth", _use_new_zipfile_serialization=new_form)
    with pytest.raises(CheckpointError, match=r"holds torch\.nn\.modules\.linear\.Linear"):
        open_tensors(pathlib.Path("y.pth"))
    assert not (tmp_path / "ran").exists()


def test_zip_bombs_are_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**26))
    with bounded(), pytest.raises(CheckpointError, match=r"data\.pkl is compressed"):
        open_tensors(tmp_path / "x")


def test_programs_are_refused(tmp_path):
    (tmp_path / "x").write_bytes(zipped("x/data.pkl"))
    with zipfile.ZipFile(tmp_path / "x", "a") as archive:
        archive.writestr("x/constants.pkl", b"")
    with pytest.raises(CheckpointError, match=r"TorchScript.*state_dict"):
        open_tensors(tmp_path / "x")


def test_torch_is_not_installed(tmp_path, monkeypatch):
    path, find = write("pth", tmp_path / "x"), importlib.util.find_spec
    monkeypatch.setattr("vit_jax.pretrained.tensors.pth.find_spec", lambda name: find(name + "_no"))
    with pytest.raises(CheckpointError, match=r"pip install vit_jax\[torch\]"):
        open_tensors(path)


@fuzz(200, noise=st.binary(max_size=99))
def test_noise_in_a_pickle(tmp_path, noise):
    intact = io.BytesIO()
    torch.save(MODEL, intact)
    with zipfile.ZipFile(intact) as archive, zipfile.ZipFile(tmp_path / "x", "w") as other:
        for item in archive.namelist():
            content = archive.read(item)
            if item.endswith("data.pkl"):
                content = content[: -len(noise)] + noise if noise else content
            other.writestr(item, content)
    read_all(tmp_path / "x")
