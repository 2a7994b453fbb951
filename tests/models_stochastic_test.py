"""Dropout and stochastic depth: their positions, random keys and rates."""

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
    config = dataclasses.replace(plain, dropout=0.5, attention_dropout=0.5, stochastic_depth=0.5)
    p = random_params(plain)
    np.testing.assert_array_equal(apply(config, p, X)[0], apply(plain, p, X)[0])


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["dropout", "attention_dropout", "stochastic_depth"])
@pytest.mark.parametrize("scan", [True, False])
def test_each_kind_of_dropout_changes_the_training_output(kind, scan):
    # Case attention_dropout: an attention function might ignore its dropout.
    config = dataclasses.replace(CFG, **{kind: 0.5}, scan=scan)
    plain = dataclasses.replace(CFG, scan=scan)
    p, key = random_params(plain), jax.random.key
    still = apply(plain, p, X)[0]
    a, b, again = (apply(config, p, X, train=True, rng=key(seed))[0] for seed in (1, 2, 1))
    assert np.abs(a - still).max() > 1e-3 and np.abs(a - b).max() > 1e-3
    np.testing.assert_array_equal(a, again)


@pytest.mark.medium
def test_scanned_blocks_have_different_random_keys():
    # Two blocks with equal parameters and equal masks would change their input equally.
    config = dataclasses.replace(CFG, dropout=0.5)
    p = random_params(config)
    blocks = jax.tree.map(lambda leaf: np.stack([leaf[0]] * 2), p["encoder"]["blocks"])
    for kernel in (blocks["attn"]["out"], blocks["mlp"]["fc2"]):
        kernel |= {"kernel": kernel["kernel"] * 0, "bias": kernel["bias"] * 0}
    blocks["mlp"]["fc2"]["bias"] += 1
    p["encoder"]["blocks"] = blocks
    _, out = apply(config, p, X, train=True, capture=("embed", "blocks"), rng=jax.random.key(0))
    first, second = out["blocks"][0] - out["embed"], out["blocks"][1] - out["blocks"][0]
    np.testing.assert_allclose(
        np.unique(np.round(first, 4)), [0, 2], atol=1e-3
    )  # The mask, divided by 0.5.
    assert (np.abs(first - second) > 1).mean() > 0.3


@pytest.mark.medium
def test_attention_dropout_has_the_right_mean_and_rate():
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
def test_stochastic_depth_drops_whole_examples_at_the_rate_of_the_block():
    config = dataclasses.replace(CFG, stochastic_depth=0.4)
    block = Block(config, train=True)
    x, key = np.tile(np.arange(16, dtype=np.float32), (4000, 2, 1)), jax.random.key
    shapes = jax.eval_shape(block.init, {"params": key(0), "dropout": key(0)}, x, jnp.float32(0))
    p = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    p["params"]["mlp"]["fc2"]["bias"] += 1  # The block's only contribution.
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
    config = dataclasses.replace(CFG, **changes)
    assert resolve_backend(config, train=train, platform=platform) == want


def test_cudnn_never_ignores_dropout_silently():
    config = dataclasses.replace(CFG, dtype="bfloat16", attention="cudnn", attention_dropout=0.1)
    assert resolve_backend(config, train=False, platform="cuda") == "cudnn"
    with pytest.raises(ConfigError, match="attention_dropout is on"):
        resolve_backend(config, train=True, platform="cuda")
    with pytest.raises(ConfigError, match="platform is cpu, not an NVIDIA"):
        jax.eval_shape(Vit(config).init, jax.random.key(0), X)


@pytest.mark.medium
def test_dropout_is_at_each_of_its_positions():
    # With only one branch active, half of its output must be zero.
    config = dataclasses.replace(CFG, dropout=0.5, depth=1, mlp_dim=512)
    p = jax.tree.map(lambda leaf: leaf * 0, random_params(config))

    def zeros(p, name):
        """Returns the fraction of zeros, or of dropped tokens, in the captured array."""
        _, out = apply(config, p, X, train=True, capture=("embed", "blocks"), rng=jax.random.key(3))
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

    # In the MLP each hidden unit is dropped independently: the sum of 512 is binomial.
    fc1 = {**blocks["mlp"]["fc1"], "bias": np.full_like(blocks["mlp"]["fc1"]["bias"], 10.0)}
    fc2 = {**blocks["mlp"]["fc2"], "kernel": np.full_like(blocks["mlp"]["fc2"]["kernel"], 0.1)}
    mlp = {"fc1": fc1, "fc2": fc2}
    after = zeros({**p, "encoder": {**p["encoder"], "blocks": {**blocks, "mlp": mlp}}}, "blocks")
    sums = after[after != 0] / 2  # Undoes the scaling of the dropout after the MLP.
    np.testing.assert_allclose(sums.mean(), 512, rtol=0.02)
    np.testing.assert_allclose(sums.std(), np.sqrt(512), rtol=0.3)


@pytest.mark.medium
@pytest.mark.parametrize("scan", [True, False])
def test_stochastic_depth_grows_linearly_from_zero(scan):
    config = dataclasses.replace(CFG, stochastic_depth=0.6, depth=4, scan=scan)
    images = np.tile(X, (100, 1, 1, 1))
    _, out = apply(
        config, random_params(config), images, train=True, capture=("embed", "blocks"),
        rng=jax.random.key(0),
    )  # fmt: skip
    blocks = np.asarray(out["blocks"])
    inputs = np.concatenate([out["embed"][None], blocks[:-1]])
    # An example is unchanged if both of the block's branches were dropped.
    unchanged = (inputs == blocks).all(axis=(2, 3)).mean(axis=1)
    np.testing.assert_allclose(unchanged, np.linspace(0, 0.6, 4) ** 2, atol=0.07)
    assert unchanged[0] == 0
