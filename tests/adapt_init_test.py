"""A run starts from any checkpoint: it takes its model and its parameters, and needs it no more."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.small_run import run, small_config, train_on_one
from vit_jax.checkpoints.load import load_run
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.inference.evaluate import evaluate
from vit_jax.inference.predict import predict
from vit_jax.models import build, read_section
from vit_jax.parallel.mesh import make_mesh
from vit_jax.pretrained.load import load_pretrained

pytestmark = pytest.mark.medium
STILL = {  # Nothing moves.
    "total_steps": 1, "optim__lr": 1e-30, "optim__weight_decay": 0.0,
    "optim__schedule__warmup_steps": None,
}  # fmt: skip
COLOR = {
    "model__channels": 3,
    "data__train_transforms": ({"op": "decode", "channels": 3}, {"op": "resize"},
                               {"op": "value_range"}),
    "data__eval_transforms": ({"op": "decode", "channels": 3}, {"op": "resize"},
                              {"op": "value_range"}),
}  # fmt: skip
TAKEN = {"model__variant": "", "model__depth": None, "model__pool": None}
# A checkpoint of another publisher each: what it is called, its image size.
PUBLISHED = {
    "hf_vit/cls": "model.safetensors",
    "vt_npz/token_prelogits": "ckpt.npz",
    "timm_vit/gap_fcnorm_pth": "checkpoint.pth",
    "deit_native/distilled": "checkpoint.pth",
    "dinov2_native/reg4": "checkpoint.pth",
}


def one():
    mesh = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1})
    return make_mesh(mesh, devices=jax.devices()[:1])


def hints(goldens, name):
    manifest = json.loads((goldens / "manifest.json").read_text())
    (entry,) = (e for e in manifest["models"] if e["id"] == name)
    return entry


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_model_is_taken_as_it_is(goldens, tmp_path, name):
    """The body that the run begins with is the published one, at the run's image size."""
    path = goldens / name / PUBLISHED[name]
    architecture = hints(goldens, name)["architecture"]
    given = tuple((k, architecture[k]) for k in ("num_heads",) if k in architecture)
    published = load_pretrained(str(path), hints=dict(given))
    patch = published.config.patch_size[0]
    size = published.config.image_size[0] + 2 * patch
    run(
        tmp_path / "run", **STILL, **COLOR, **TAKEN, init_from=str(path), init_hints=given,
        init_skip=("(head|head_dist|pre_logits)/.*",), model__image_size=(size,), model__rep_size=0,
    )  # fmt: skip

    started = load_run(tmp_path / "run", mesh=one())
    cfg = read_section(started.config.model, num_classes=10)
    assert cfg.image_size == (size, size) and started.config.model.width == cfg.width
    for field in ("gelu", "ln_eps", "pool", "registers", "distilled", "layer_scale", "qk_norm"):
        assert getattr(cfg, field) == getattr(published.config, field), field
    larger = load_pretrained(str(path), hints=dict(given), image_size=size).params
    for part in started.params.keys() - {"head", "head_dist"}:
        jax.tree.map(np.testing.assert_array_equal, started.params[part], larger[part])
    assert not np.any(np.abs(started.params["head"]["kernel"]) > 1e-20)

    # The features are those of the model that the loader gives.
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, size, size, 3)), jnp.float32)
    ours = build(cfg).apply({"params": started.params}, images)[1]["tokens"]
    theirs = load_pretrained(str(path), hints=dict(given), image_size=size, num_classes=10)
    want = theirs.model.apply({"params": theirs.params}, images)[1]["tokens"]
    np.testing.assert_allclose(ours, want, atol=1e-5)


@pytest.mark.slow
def test_a_run_needs_its_origin_only_once(tmp_path):
    run(tmp_path / "first", total_steps=3, model__gelu="erf", model__registers=1)
    changes = {**TAKEN, "init_from": str(tmp_path / "first"), "model__image_size": (16,)}
    changes |= dict.fromkeys(
        ("data__train_transforms", "data__eval_transforms"), ({"op": "inherit"},)
    )
    straight = run(tmp_path / "straight", **changes)
    assert run(tmp_path / "second", **changes) == straight

    shutil.rmtree(tmp_path / "second" / "checkpoints" / "12")
    shutil.rmtree(tmp_path / "first")
    assert run(tmp_path / "second", **changes) == straight
    assert evaluate(tmp_path / "second").count == 50
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "image.png")
    assert len(list(predict(tmp_path / "second", [str(tmp_path / "image.png")]))) == 1
    with pytest.raises(CheckpointError, match="first does not exist"):
        run(tmp_path / "third", **changes)

    # From the state of another run, too; and a real change is noticed.
    before = str(tmp_path / "straight" / "checkpoints" / "8")
    assert run(tmp_path / "fourth", **changes, resume=before) == straight[-2:]
    with pytest.raises(ConfigError, match=r"model\.gelu: 'erf' -> 'tanh'"):
        run(tmp_path / "second", **changes, model__gelu="tanh")
    with pytest.raises(ConfigError, match=r"model\.dropout: 0\.0 -> 0\.1"):
        run(tmp_path / "second", **changes, model__dropout=0.1)


@pytest.mark.slow
def test_blocks_may_be_stacked_otherwise(tmp_path, finished_run):
    finished_run(tmp_path / "first")
    for scan in (False, True):
        source = "first" if not scan else "False"
        run(
            tmp_path / str(scan), **TAKEN, **STILL, init_from=str(tmp_path / source),
            model__scan=scan, init_skip=(),
        )  # fmt: skip
    jax.tree.map(
        np.testing.assert_array_equal,
        load_run(tmp_path / "first", mesh=one()).params,
        load_run(tmp_path / "True", mesh=one()).params,
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"model__variant": "mu/8"},
            ConfigError,
            r'"mu/8".*patch_size \(8, 8\).*has.*patch_size \(4, 4\)',
        ),
        ({"model__variant": "Ti/4"}, ConfigError, r'width 192.*has .*width 32.*variant to ""'),
        ({"model__variant": "Mixer-B/16"}, ConfigError, "token_mlp_dim 384"),
        ({"model__variant": "BiT-R50x1"}, ConfigError, r"units \(3, 4, 6, 3\)"),
        ({"model__pool": "gap"}, CheckpointError, "cls: checkpoint .*, model lacks it"),
        ({"init_skip": ()}, CheckpointError, r"head/kernel: checkpoint \(32, 10\)"),
        (
            {"init_from": ""},
            ConfigError,
            r"model\.variant=.*init_from is empty: pass --config\.init_from",
        ),
    ],
)
def test_what_does_not_fit_shows_both_sides(tmp_path, plain_run, changes, error, message):
    changes = {"init_from": str(plain_run), **TAKEN} | changes
    with pytest.raises(error, match=message):
        train_on_one(small_config(**changes, model__num_classes=11), tmp_path / "second")


@pytest.mark.slow
def test_other_pixels_are_said(tmp_path, plain_run, caplog):
    decode = {"op": "decode", "channels": 1}
    other = (decode, {"op": "resize"}, {"op": "normalize", "mean": (0.45,), "std": (0.23,)})
    run(tmp_path / "same", **STILL, **TAKEN, init_from=str(plain_run))
    assert "black and white" not in caplog.text
    run(
        tmp_path / "second", **STILL, **TAKEN, init_from=str(plain_run),
        data__eval_transforms=other,
    )  # fmt: skip
    assert "data.eval_transforms maps black and white to -1.96 and 2.39, and" in caplog.text
