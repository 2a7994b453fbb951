"""One model under different names and wrappers is loaded with the same bits."""

import dataclasses
import re
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.small_run import mesh_of
from tests.tiny_checkpoints import LABELS, outputs, random_images, tiny
from vit_jax.pretrained.exports import export
from vit_jax.pretrained.load import load_pretrained
from vit_jax.pretrained.tensors import Safetensors

pytestmark = pytest.mark.medium

GOOGLE = {"gelu": "tanh", "posemb_resize": "bilinear_corners"}
HINTS = {"num_heads": 4, "image_size": 32}


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def timm_file(tmp_path, rename=lambda name: name, change=lambda array: array, **config):
    """Returns a model, and the path of a bare file of timm with its tensors."""
    pretrained = tiny(family="timm", posemb_resize="bicubic_antialias", **config)
    export(pretrained, tmp_path / "timm", to="timm")
    tensors = load_file(tmp_path / "timm/model.safetensors")
    save_file({rename(n): change(t) for n, t in tensors.items()}, tmp_path / "x.safetensors")
    return pretrained, tmp_path / "x.safetensors"


def google_file(tmp_path, rename=lambda name: name, change=lambda array: array, **config):
    """Returns a model, and the path of a file of Google."""
    pretrained = tiny(**GOOGLE | config)
    export(pretrained, tmp_path / "whole.npz", to="big_vision")
    with np.load(tmp_path / "whole.npz") as file:
        tensors = {rename(n.removeprefix("params/")): change(file[n]) for n in file}
    np.savez(tmp_path / "x.npz", **tensors)
    return pretrained, tmp_path / "x.npz"


@pytest.mark.parametrize("prefix", ["module.", "teacher.backbone.", "model."])
def test_prefixes_of_training_scripts(prefix, tmp_path):
    pretrained, path = timm_file(tmp_path, lambda name: prefix + name)
    assert same(load_pretrained(path, hints=HINTS).params, pretrained.params)


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/img/"])
def test_prefixes_of_archives(prefix, tmp_path):
    pretrained, path = google_file(tmp_path, lambda name: prefix + name)
    name = f"{path}:img" if prefix.endswith("img/") else path
    assert same(load_pretrained(name).params, pretrained.params)


@pytest.mark.parametrize(
    ("model", "moments"), [("opt/target/", "opt/state/param_states/"), ("params/", "opt/0/mu/")]
)
@pytest.mark.parametrize("kind", ["vit", "resnet", "mixer"])
def test_an_optimizer_state_in_the_file(kind, model, moments, goldens, tmp_path):
    if kind == "vit":
        _, path = google_file(tmp_path)
    else:
        path = goldens / {"resnet": "bv_npz/bit_v1", "mixer": "vt_npz/mixer"}[kind] / "ckpt.npz"
    with np.load(path) as file:
        bare = {n.removeprefix("params/").removeprefix("opt/target/"): file[n] for n in file}
    np.savez(tmp_path / "bare.npz", **bare)
    state = {f"{moments}{n}": t + 1 for n, t in bare.items()}
    tensors = {f"{model}{n}": t for n, t in bare.items()} | {"step": np.array(3)}
    np.savez(tmp_path / "with.npz", **state, **tensors)
    loaded, expected = (
        load_pretrained(tmp_path / "with.npz"),
        load_pretrained(tmp_path / "bare.npz"),
    )
    assert same(loaded.params, expected.params) and len(loaded.left_out) == len(state) + 1


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_twelve_stacked_blocks(dtype, tmp_path):
    pretrained, path = google_file(tmp_path, depth=12)
    with np.load(path) as file:
        tensors = dict(file)
    names = {n for n in tensors if "encoderblock_0/" in n}
    for name in names:
        blocks = [tensors.pop(name.replace("_0/", f"_{i}/", 1)) for i in range(12)]
        tensors[name.replace("encoderblock_0/", "encoderblock/")] = np.stack(blocks)
    assert not any("encoderblock_" in n for n in tensors)
    np.savez(path, **{n: t.astype(dtype) for n, t in tensors.items()})
    exact = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), pretrained.params)
    assert same(load_pretrained(path).params, exact)


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_big_visions_first_attention_pooling(prefix, tmp_path):
    pretrained, path = google_file(
        tmp_path, lambda name: prefix + name.removeprefix("MAPHead_0/"), pool="map"
    )
    assert same(load_pretrained(path).params, pretrained.params)


def test_big_visions_names_of_bit(goldens, tmp_path):
    path = goldens / "bv_npz/bit_paper_tfnames/ckpt.npz"
    names = (
        (r"/a/proj/standardized_conv2d/", "/conv_proj/"),
        *((rf"/{x}/standardized_conv2d/", f"/conv{k}/") for k, x in enumerate("abc", 1)),
        *((rf"/{x}/group_norm/", f"/gn{k}/") for k, x in enumerate("abc", 1)),
        (r"root_block/standardized_conv2d/", "root_block/conv_root/"),
        (r"group_norm/", "norm-pre-head/"), (r"gamma$", "scale"), (r"beta$", "bias"),
        (r"head/conv2d/", "head/"), ("^resnet/", ""), ("^", "params/"),
    )  # fmt: skip
    with np.load(path) as file:
        tensors = dict(file)
    for pattern, new in names:
        tensors = {re.sub(pattern, new, name): array for name, array in tensors.items()}
    assert "params/block1/unit01/gn1/scale" in tensors and "params/head/kernel" in tensors
    np.savez(tmp_path / "x.npz", **tensors)
    loaded, expected = load_pretrained(tmp_path / "x.npz"), load_pretrained(path)
    assert same(loaded.params, expected.params) and loaded.config == expected.config


def test_chunks_of_dinov2(tmp_path):
    def chunked(name):
        return re.sub(r"^blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) // 4}.{m[1]}.", name)

    pretrained, path = timm_file(tmp_path, chunked, depth=12, layer_scale=1e-5)
    loaded = load_pretrained(path, hints=HINTS)
    assert same(loaded.params, pretrained.params) and loaded.config.depth == 12


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_dtypes(dtype, tmp_path):
    pretrained, path = timm_file(tmp_path, change=lambda t: t.astype(dtype))
    exact = jax.tree.map(
        lambda x: np.asarray(x).astype(dtype).astype(np.float32), pretrained.params
    )
    loaded = load_pretrained(path, hints=HINTS).params
    assert same(loaded, exact) and {str(x.dtype) for x in jax.tree.leaves(loaded)} == {"float32"}


def test_a_file_of_a_folder_is_described_by_its_config(tmp_path):
    pretrained = tiny(labels=LABELS, num_heads=2)
    export(pretrained, tmp_path / "vit", to="hf")
    other, path = timm_file(tmp_path)
    shutil.copy(path, tmp_path / "vit/timm.safetensors")
    for name in ("vit", "vit/model.safetensors"):
        loaded = load_pretrained(tmp_path / name)
        assert same(loaded.params, pretrained.params)
        assert loaded.config == pretrained.config or loaded.config.num_heads == 2
    # Another file in the folder is not described by the config.json.
    loaded = load_pretrained(tmp_path / "vit/timm.safetensors", hints=HINTS)
    assert same(loaded.params, other.params) and loaded.labels is None


# ------------------------------------------------------------------------- meshes, heads and sizes


@pytest.mark.parametrize("kind", ["hf", "sharded google", "mixer"])
def test_a_mesh_has_the_same_parameters(kind, goldens, tmp_path):
    mesh = mesh_of(fsdp=4, tensor=2)
    path, hints = {
        "hf": (goldens / "hf_vit/cls", {}),
        "sharded google": (goldens / "bv_npz/scan_gap/ckpt.npz", {}),
        "mixer": (goldens / "vt_npz/mixer/ckpt.npz", {}),
    }[kind]
    alone = load_pretrained(path, hints=hints)
    spread = load_pretrained(path, hints=hints, mesh=mesh)
    assert same(jax.device_get(spread.params), jax.device_get(alone.params))
    assert max(len(x.sharding.device_set) for x in jax.tree.leaves(spread.params)) == 8
    if kind != "mixer":
        side = alone.config.stride[0]
        size = (alone.config.image_size[0] + side, alone.config.image_size[1] + 2 * side)
        alone = load_pretrained(path, hints=hints, image_size=size, num_classes=3)
        spread = load_pretrained(path, hints=hints, image_size=size, num_classes=3, mesh=mesh)
        assert same(jax.device_get(spread.params), jax.device_get(alone.params))


def test_a_mesh_reads_each_tensor_once(goldens, monkeypatch):
    reads, read = [], Safetensors.read

    def counted(self, name, rows=None):
        reads.append((name, rows and (rows.start, rows.stop)))
        return read(self, name, rows)

    monkeypatch.setattr(Safetensors, "read", counted)
    load_pretrained(goldens / "hf_vit/cls", mesh=mesh_of(fsdp=4, tensor=2))
    assert len(reads) > 30 and len(set(reads)) == len(reads)


@pytest.mark.parametrize("num_classes", [None, 0, 5, 7])
def test_another_head(num_classes, tmp_path):
    pretrained, path = timm_file(tmp_path, distilled=True)
    loaded = load_pretrained(path, hints=HINTS, num_classes=num_classes)
    heads = {name for name in loaded.params if name.startswith("head")}
    assert loaded.config.num_classes == (5 if num_classes is None else num_classes)
    assert heads == (set() if num_classes == 0 else {"head", "head_dist"})
    if num_classes in (None, 5):
        assert same(loaded.params, pretrained.params)
    if num_classes == 7:
        assert not np.any(loaded.params["head"]["kernel"])
        assert "head is zeros" in loaded.all_notes[-1]
        trained = dataclasses.replace(loaded, params=jax.tree.map(lambda x: x + 1, loaded.params))
        assert trained.all_notes == loaded.notes
    images = random_images(loaded)
    for_size = load_pretrained(path, hints=HINTS, num_classes=num_classes, image_size=(40, 48))
    assert for_size.params["pos_embedding"].shape == (1, 5 * 6 + 2, 16)
    tokens = outputs(loaded, images)["tokens"]
    np.testing.assert_allclose(tokens, outputs(pretrained, images)["tokens"], atol=1e-5)


def test_a_head_without_a_bias_is_named(tmp_path):
    _, path = timm_file(tmp_path)
    tensors = load_file(path)
    del tensors["head.bias"]
    save_file(tensors, path)
    loaded = load_pretrained(path, hints=HINTS, leave_out=["head/bias"])
    assert not np.any(loaded.params["head"]["bias"]) and "head/bias initialised" in loaded.notes
