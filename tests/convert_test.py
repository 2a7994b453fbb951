"""`python -m vit_jax.convert`: inspects, verifies and writes checkpoints."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.commands import ROOT, call
from tests.damaged_checkpoints import Shelf
from tests.tiny_checkpoints import LABELS
from vit_jax.convert import FORMATS
from vit_jax.pretrained.exports import TARGETS
from vit_jax.pretrained.load import load_pretrained

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return Shelf(tmp_path_factory.mktemp("shelf"))


def called(*texts, code=0, cwd=ROOT):
    result = call("convert", *texts, cwd=cwd)
    assert result.code == code and "Traceback" not in result.err, result
    return result


INSPECTED = {
    "vt_npz/token_prelogits/ckpt.npz": ("Google .npz", "rep_size", "gelu tanh", "pool token"),
    "vt_npz/mixer/ckpt.npz": ("MLP-Mixer", "Mixer", "token_mlp_dim 24"),
    "bv_npz/bit_v1/ckpt.npz": ("BiT ResNet", "Resnet", "version v1"),
    "hf_vit/cls": ("Hugging Face transformers, model_type vit", "ln_eps 1e-12", "10"),
    "hf_dinov3_vit/gated": ("model_type dinov3_vit", "mlp swiglu", "rope dinov3", "no head"),
    "dinov2_native/reg4/checkpoint.pth": ("names of DINOv2", "registers 4", "gelu erf"),
    "timm_vit/cls/model.safetensors": ("timm, names of timm", "posemb_resize bicubic_antialias"),
    "torchvision_vit/cls/checkpoint.pth": ("torchvision", "posemb_resize bicubic_corners"),
}


@pytest.mark.parametrize("name", INSPECTED)
def test_inspect_prints_the_model(goldens, manifest, name):
    (fixture,) = [f for f in manifest["models"] if name.startswith(f["id"])]
    heads = fixture["architecture"].get("num_heads")
    size = "x".join(map(str, fixture["architecture"]["image_size"]))
    hints = "" if name.startswith("hf") else f"--hints=image_size={size}"
    if hints and heads:
        hints += f",num_heads={heads}"
    out = called(f"--inspect={goldens / name}", *filter(None, [hints])).out
    for texts in (*INSPECTED[name], f"image size     {size}", "GFLOPs an image"):
        assert texts in out, f"{texts!r} is not in {out}"


def test_inspect_for_another_size(shelf):
    out = called("--inspect=hf", "--image_size=64x32", cwd=shelf.folder).out
    assert "64x32, patches of 8x8, a grid of 8x4" in out
    assert "positions from 4x4 to 8x4 patches (bicubic)" in out
    assert "thing 0; thing 1; thing 2; thing 3; thing 4" in out


def test_verify_reports_equal_and_different_outputs(goldens, tmp_path):
    out = called(f"--verify={goldens / 'hf_vit/cls'}").out
    assert "hf_vit/cls" in out and "logits" in out and "WRONG" not in out
    copy = tmp_path / "hf_vit/cls"
    shutil.copytree(goldens / "hf_vit/cls", copy)
    shutil.copy(goldens / "manifest.json", tmp_path)
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if "layer.1" in name and "dense.weight" in name)
    tensors[name][0, 0] += 0.01
    save_file(tensors, copy / "model.safetensors")
    lines = called(f"--verify={copy}", code=1).out.splitlines()
    assert any(" logits " in line and line.endswith("  WRONG") for line in lines)


@pytest.mark.parametrize("damage", ["no inputs", "nothing to compare", "NaN"])
def test_a_damaged_reference_is_an_error(goldens, tmp_path, damage):
    copy = tmp_path / "hf_vit/cls"
    shutil.copytree(goldens / "hf_vit/cls", copy)
    manifest = json.loads((goldens / "manifest.json").read_text())
    (entry,) = [f for f in manifest["models"] if f["id"] == "hf_vit/cls"]
    if damage == "no inputs":
        (copy / "inputs.npz").unlink()
    elif damage == "nothing to compare":
        entry["expected_arrays"] = {}
    else:
        expected = dict(np.load(copy / "expected.npz"))
        np.savez(copy / "expected.npz", **expected | {"logits": expected["logits"] * np.nan})
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    result = called(f"--verify={copy}", code=1 if damage == "NaN" else 2)
    assert {
        "no inputs": "hf_vit/cls: its arrays cannot be read (FileNotFoundError",
        "nothing to compare": "hf_vit/cls: it has no array that can be compared",
        "NaN": "WRONG",
    }[damage] in result.out + result.err


def test_convert_writes_and_prints_what_it_did(shelf, tmp_path):
    out = called(
        shelf.folder / "hf", tmp_path / "vit", "--to=timm", "--image_size=48",
        "--change_numerics", "--dtype=bfloat16",
    ).out  # fmt: skip
    assert out.startswith(f"{tmp_path / 'vit'}: written, --to=timm\n")
    assert "position embedding resized from 4x4 to 6x6 patches (bicubic)" in out
    loaded = load_pretrained(tmp_path / "vit")
    assert loaded.config.image_size == (48, 48) and loaded.labels == LABELS
    assert load_file(tmp_path / "vit/model.safetensors")["norm.weight"].dtype == "bfloat16"
    # safetensors creates files for their owner alone; ours have the permissions of the umask.
    (tmp_path / "ordinary").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "vit").iterdir()}
    assert modes == {(tmp_path / "ordinary").stat().st_mode}


def test_help(commands):
    assert FORMATS == TARGETS
    result = commands.run("convert", "--help")
    for texts in ("--inspect CHECKPOINT", "--verify REFERENCE", "Exit codes: 0 done;", *TARGETS):
        assert texts in result.out, texts
