"""MLP-Mixer against the reference implementation, and its consistency."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_models import (
    apply,
    fresh_head,
    images,
    loss_and_gradient,
    random_params,
    unscan,
)
from vit_jax.config import base_config
from vit_jax.errors import ConfigError
from vit_jax.models import MixerConfig, num_params, read_section

TINY = MixerConfig(
    image_size=(16, 24), patch_size=(8, 8), num_classes=5, width=32, depth=3, mlp_dim=48,
    token_mlp_dim=20,
)  # fmt: skip
NAMES = (
    (r"^stem/", "embedding/"),
    (r"^MixerBlock_", "encoder/block_"),
    (r"^pre_head_layer_norm", "encoder/norm"),
    (r"/LayerNorm_0/", "/norm1/"),
    (r"/LayerNorm_1/", "/norm2/"),
    (r"/token_mixing/", "/token_mlp/"),
    (r"/channel_mixing/", "/mlp/"),
    (r"/Dense_0/", "/fc1/"),
    (r"/Dense_1/", "/fc2/"),
)


def make_config(variant, **changes):
    c = base_config()
    c.model.variant = variant
    c.model.update(changes)
    return read_section(c.model, num_classes=1000)


@pytest.mark.medium
def test_equals_the_reference(goldens):
    manifest = json.loads((goldens / "manifest.json").read_text())
    entry = next(entry for entry in manifest["models"] if entry["id"] == "vt_npz/mixer")
    folder, params = goldens / "vt_npz/mixer", {}
    for key, value in np.load(folder / "ckpt.npz").items():
        for pattern, ours in NAMES:
            key = re.sub(pattern, ours, key)
        *parts, leaf = key.split("/")
        node = params
        for part in parts:
            node = node.setdefault(part, {})
        node[leaf] = jnp.asarray(value)
    config = MixerConfig(
        image_size=(32, 32), patch_size=(8, 8), num_classes=10, width=48, depth=3, mlp_dim=96,
        token_mlp_dim=24, scan=False,
    )  # fmt: skip
    x, want = np.load(folder / "inputs.npz")["image"], np.load(folder / "expected.npz")
    with jax.default_matmul_precision("highest"):
        logits, out = apply(config, params, jnp.asarray(x), capture=("embed", "blocks"))
    got = {"logits": logits, "features": out["pre_logits"], "tokens": out["tokens"]}
    got |= {"embed": out["embed"]} | {f"block{i}": out["blocks"][i] for i in range(3)}
    assert set(got) == set(want)
    for key, value in got.items():
        tol = entry["expected_arrays"][key]["tol"]
        np.testing.assert_allclose(value, want[key], atol=tol, rtol=0, err_msg=key)


# google-research/vision_transformer at 224 pixels, 1000 classes.
@pytest.mark.parametrize(
    ("variant", "params"),
    [("Mixer-B/16", 59_880_472), ("Mixer-B/32", 60_293_428), ("Mixer-L/16", 208_196_168)],
)
def test_sizes_equal_the_published_ones(variant, params):
    assert num_params(make_config(variant)) == params


@pytest.mark.slow
def test_scan_remat_and_unrolled_agree():
    config = dataclasses.replace(TINY, depth=2)
    params, x = random_params(config), images(config)
    unrolled = dataclasses.replace(config, scan=False)
    value, grads = loss_and_gradient(config)(params, x)
    other, other_grads = loss_and_gradient(unrolled)(unscan(params, config.depth), x)
    np.testing.assert_allclose(other, value, rtol=1e-6)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))

    def assert_close(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale)

    jax.tree.map(assert_close, other_grads, unscan(grads, config.depth))
    _, again = loss_and_gradient(dataclasses.replace(config, remat="full"))(params, x)
    jax.tree.map(assert_close, again, grads)


@pytest.mark.medium
def test_intermediates_are_returned_only_on_request():
    params, x = random_params(TINY), images(TINY)
    plain, few = apply(TINY, params, x)
    logits, out = apply(TINY, params, x, capture=("embed", "blocks"))
    np.testing.assert_array_equal(plain, logits)
    assert set(few) == {"tokens", "pre_logits"}
    assert TINY.num_tokens == 6
    assert out["embed"].shape == out["tokens"].shape == (2, 6, 32)
    assert out["blocks"].shape == (3, 2, 6, 32)
    np.testing.assert_allclose(out["pre_logits"], out["tokens"].mean(axis=1), rtol=1e-6, atol=1e-6)


@pytest.mark.medium
def test_stochastic_depth_drops_branches_of_whole_examples():
    config = dataclasses.replace(TINY, stochastic_depth=0.9, depth=2)
    x = jnp.tile(images(config, batch=1), (64, 1, 1, 1))
    params = random_params(config)
    _, still = apply(config, params, x, capture=("blocks",))
    _, out = apply(config, params, x, train=True, capture=("blocks",), rng=jax.random.key(0))
    np.testing.assert_array_equal(
        out["blocks"][0], still["blocks"][0]
    )  # The first block has rate 0.
    changed = np.any(np.asarray(out["blocks"][1] != out["blocks"][0]), axis=(1, 2))
    # Each of two branches is kept with probability .1: .19 of the examples change.
    assert 2 <= changed.sum() <= 25


@pytest.mark.medium
def test_bfloat16_and_a_new_model():
    config = dataclasses.replace(TINY, head_bias_init=-6.9)
    params, x = random_params(TINY), images(TINY)
    np.testing.assert_allclose(apply(TINY, params | {"head": fresh_head(config)}, x)[0], -6.9)
    logits, out = apply(dataclasses.replace(TINY, dtype="bfloat16"), params, x)
    assert logits.dtype == out["pre_logits"].dtype == jnp.float32
    assert out["tokens"].dtype == jnp.bfloat16
    want = apply(TINY, params, x)[0]
    np.testing.assert_allclose(logits, want, atol=0.05 * np.abs(want).max())


@pytest.mark.parametrize("scan", [True, False])
def test_a_mixer_cannot_change_its_resolution(scan):
    params = random_params(dataclasses.replace(TINY, scan=scan))
    other = dataclasses.replace(TINY, image_size=(32, 24), scan=scan)
    with pytest.raises(ConfigError, match=r"are for 6 patches, .* has 12: unlike a ViT"):
        apply(other, params, images(other))


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("Mixer-X/16", {}, "Mixer-S, Mixer-B"),
        ("Mixer-B", {}, 'such as "Mixer-B/16"'),
        ("Mixer-B/16", {"dropout": 0.1}, "model.dropout is 0.1, but an MLP-Mixer does not use"),
        ("Mixer-B/16", {"posemb": "none"}, "model.posemb is 'none', but an MLP-Mixer"),
        ("Mixer-B/16", {"attention": "xla"}, "leave it at 'auto'"),
        ("Mixer-B/16", {"image_size": (225,)}, "The nearest multiples: 224 or 240"),
        ("Mixer-B/16", {"token_mlp_dim": 0}, "model.token_mlp_dim is 0"),
        ("Mixer-B/16", {"stochastic_depth": 1.0}, "at least 0 and below 1"),
        ("Mixer-B/16", {"gelu": "exact"}, "Accepted: tanh, erf"),
    ],
)
def test_mistakes_are_named(variant, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(variant, **changes)
