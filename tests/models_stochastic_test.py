"""Dropout and stochastic depth: present where they should be, keyed, and of the right size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_models import apply, random_params
from vit_jax.errors import ConfigError
from vit_jax.models import Vit, VitConfig
from vit_jax.models.attention import dot_product_attention, resolve_backend
from vit_jax.models.blocks import Block

CFG = VitConfig(
    image_size=(16, 16), patch_size=(4, 4), num_classes=3, width=16, depth=2, mlp_dim=32,
    num_heads=2,
)  # fmt: skip
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16, 16, 3)), jnp.float32)


@pytest.mark.medium
@pytest.mark.parametrize("scan", [True, False])
def test_evaluation_drops_nothing(scan):
    plain = dataclasses.replace(CFG, scan=scan)
    cfg = dataclasses.replace(plain, dropout=0.5, attention_dropout=0.5, stochastic_depth=0.5)
    p = random_params(plain)
    np.testing.assert_array_equal(apply(cfg, p, X)[0], apply(plain, p, X)[0])


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["dropout", "attention_dropout", "stochastic_depth"])
@pytest.mark.parametrize("scan", [True, False])
def test_each_kind_of_dropout_changes_the_training_output(kind, scan):
    # The attention_dropout case is the trap of an attention function that ignores its dropout.
    cfg = dataclasses.replace(CFG, **{kind: 0.5}, scan=scan)
    plain = dataclasses.replace(CFG, scan=scan)
    p, key = random_params(plain), jax.random.key
    still = apply(plain, p, X)[0]
    a, b, again = (apply(cfg, p, X, train=True, rng=key(seed))[0] for seed in (1, 2, 1))
    assert np.abs(a - still).max() > 1e-3 and np.abs(a - b).max() > 1e-3
    np.testing.assert_array_equal(a, again)


@pytest.mark.medium
def test_layers_of_a_scan_have_keys_of_their_own():
    # Two blocks with equal parameters and equal masks would change their input equally.
    cfg = dataclasses.replace(CFG, dropout=0.5)
    p = random_params(cfg)
    blocks = jax.tree.map(lambda leaf: np.stack([leaf[0]] * 2), p["encoder"]["blocks"])
    for kernel in (blocks["attn"]["out"], blocks["mlp"]["fc2"]):
        kernel |= {"kernel": kernel["kernel"] * 0, "bias": kernel["bias"] * 0}
    blocks["mlp"]["fc2"]["bias"] += 1
    p["encoder"]["blocks"] = blocks
    _, out = apply(cfg, p, X, train=True, capture=("embed", "blocks"), rng=jax.random.key(0))
    first, second = out["blocks"][0] - out["embed"], out["blocks"][1] - out["blocks"][0]
    np.testing.assert_allclose(np.unique(np.round(first, 4)), [0, 2], atol=1e-3)  # A mask over 0.5.
    assert (np.abs(first - second) > 1).mean() > 0.3


@pytest.mark.medium
def test_attention_dropout_keeps_the_mean_and_the_share():
    rng = np.random.default_rng(1)
    q, k = (jnp.asarray(rng.normal(size=(1, 4, 2, 8)), jnp.float32) for _ in range(2))
    v = jnp.asarray(rng.normal(size=(1, 4, 2, 8)), jnp.float32)
    want, _ = dot_product_attention(q, k, v)
    keys = jax.random.split(jax.random.key(0), 20_000)
    out = np.asarray(
        jax.jit(
            jax.vmap(lambda key: dot_product_attention(q, k, v, dropout=0.3, dropout_rng=key)[0])
        )(keys)
    )
    error = out.std(0) / np.sqrt(len(keys))
    assert (np.abs(out.mean(0) - want) < 5 * error + 1e-6).all() and out.std(0).min() > 0.05


@pytest.mark.medium
def test_stochastic_depth_drops_whole_examples_at_the_rate_of_the_layer():
    cfg = dataclasses.replace(CFG, stochastic_depth=0.4)
    block = Block(cfg, train=True)
    x, key = np.tile(np.arange(16, dtype=np.float32), (4000, 2, 1)), jax.random.key
    shapes = jax.eval_shape(block.init, {"params": key(0), "dropout": key(0)}, x, jnp.float32(0))
    p = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    p["params"]["mlp"]["fc2"]["bias"] += 1  # All that the block adds.
    y, _ = jax.jit(block.apply)(p, x, jnp.float32(0.25), rngs={"dropout": key(1)})
    change = np.asarray(y) - x
    assert set(np.unique(np.round(change, 4))) == {0.0, np.float32(np.round(4 / 3, 4))}
    per_example = change[:, 0, 0] > 0
    assert (change > 0).reshape(4000, -1).all(1).sum() == per_example.sum()
    assert abs(per_example.mean() - 0.75) < 0.03


@pytest.mark.parametrize(
    ("changes", "train", "platform", "want"),
    [
        ({}, False, "cpu", "xla"),
        ({"dtype": "bfloat16"}, True, "cuda", "cudnn"),
        ({"dtype": "bfloat16", "attention": "xla"}, True, "cuda", "xla"),
        ({"dtype": "bfloat16", "attention_dropout": 0.1}, True, "cuda", "xla"),
        ({"dtype": "bfloat16", "attention_dropout": 0.1}, False, "cuda", "cudnn"),
        ({"dtype": "float32"}, False, "cuda", "xla"),
        ({"dtype": "bfloat16", "num_heads": 4}, False, "cuda", "xla"),
        ({"dtype": "bfloat16", "num_heads": 1, "width": 128}, False, "cuda", "cudnn"),
        ({"dtype": "bfloat16", "num_heads": 1, "width": 136}, False, "cuda", "xla"),
        ({"dtype": "bfloat16"}, False, "tpu", "xla"),
        ({"dtype": "bfloat16"}, False, "gpu", "xla"),
    ],
)
def test_attention_back_end_is_resolved(changes, train, platform, want):
    cfg = dataclasses.replace(CFG, **changes)
    assert resolve_backend(cfg, train=train, platform=platform) == want


def test_cudnn_never_drops_dropout_silently():
    cfg = dataclasses.replace(CFG, dtype="bfloat16", attention="cudnn", attention_dropout=0.1)
    assert resolve_backend(cfg, train=False, platform="cuda") == "cudnn"
    with pytest.raises(ConfigError, match="attention_dropout is on"):
        resolve_backend(cfg, train=True, platform="cuda")
    with pytest.raises(ConfigError, match="platform is cpu, not an NVIDIA"):
        jax.eval_shape(Vit(cfg).init, jax.random.key(0), X)


@pytest.mark.medium
def test_dropout_is_at_each_of_its_places():
    # With every branch silenced but one, half of what that one adds must be missing.
    cfg = dataclasses.replace(CFG, dropout=0.5, depth=1, mlp_dim=512)
    p = jax.tree.map(lambda leaf: leaf * 0, random_params(cfg))

    def zeros(p, name):
        """Share of zeros, or of dropped tokens, in the captured array."""
        _, out = apply(cfg, p, X, train=True, capture=("embed", "blocks"), rng=jax.random.key(3))
        return np.asarray(out[name])

    blocks = p["encoder"]["blocks"]
    embedded = {**p, "pos_embedding": np.ones_like(p["pos_embedding"])}
    np.testing.assert_allclose((zeros(embedded, "embed") == 0).mean(), 0.5, atol=0.05)

    ones = np.ones_like(blocks["attn"]["out"]["bias"])
    attn = {**blocks["attn"], "out": {**blocks["attn"]["out"], "bias": ones}}
    after = zeros({**p, "encoder": {**p["encoder"], "blocks": {**blocks, "attn": attn}}}, "blocks")
    np.testing.assert_allclose((after == 0).mean(), 0.5, atol=0.05)

    mlp = {"fc1": blocks["mlp"]["fc1"], "fc2": {**blocks["mlp"]["fc2"], "bias": ones}}
    after = zeros({**p, "encoder": {**p["encoder"], "blocks": {**blocks, "mlp": mlp}}}, "blocks")
    np.testing.assert_allclose((after == 0).mean(), 0.5, atol=0.05)

    # Inside the MLP each hidden unit is dropped by itself: the sum of 512 varies by its binomial.
    fc1 = {**blocks["mlp"]["fc1"], "bias": np.full_like(blocks["mlp"]["fc1"]["bias"], 10.0)}
    fc2 = {**blocks["mlp"]["fc2"], "kernel": np.full_like(blocks["mlp"]["fc2"]["kernel"], 0.1)}
    mlp = {"fc1": fc1, "fc2": fc2}
    after = zeros({**p, "encoder": {**p["encoder"], "blocks": {**blocks, "mlp": mlp}}}, "blocks")
    kept = after[after != 0] / 2  # Undo the scaling of the dropout behind it.
    np.testing.assert_allclose(kept.mean(), 512, rtol=0.02)
    np.testing.assert_allclose(kept.std(), np.sqrt(512), rtol=0.3)


@pytest.mark.medium
@pytest.mark.parametrize("scan", [True, False])
def test_stochastic_depth_grows_linearly_from_zero(scan):
    cfg = dataclasses.replace(CFG, stochastic_depth=0.6, depth=4, scan=scan)
    images = np.tile(X, (100, 1, 1, 1))
    _, out = apply(
        cfg, random_params(cfg), images, train=True, capture=("embed", "blocks"),
        rng=jax.random.key(0),
    )  # fmt: skip
    blocks = np.asarray(out["blocks"])
    inputs = np.concatenate([out["embed"][None], blocks[:-1]])
    # An example is unchanged if both of the block's branches were dropped.
    unchanged = (inputs == blocks).all(axis=(2, 3)).mean(axis=1)
    np.testing.assert_allclose(unchanged, np.linspace(0, 0.6, 4) ** 2, atol=0.07)
    assert unchanged[0] == 0
