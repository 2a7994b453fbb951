"""The Vision Transformer against the reference implementations, and its consistency."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.conftest import campaign
from tests.small_models import (
    apply,
    fresh_head,
    images,
    loss_and_gradient,
    random_params,
    unscan,
)
from vit_jax.config import base_config
from vit_jax.config.fields import declarations
from vit_jax.errors import ConfigError
from vit_jax.models import Vit, VitConfig, read_section
from vit_jax.models.blocks import REMAT
from vit_jax.optim import make_optimizer, make_schedule, softmax_xent, value_and_grad

TINY = VitConfig(
    image_size=(16, 24), patch_size=(8, 8), num_classes=5, width=32, depth=3, mlp_dim=48,
    num_heads=4,
)  # fmt: skip


# --- Against google-research/vision_transformer and big_vision ------------------------------------


def google_params(ckpt):
    """Renames the arrays of a Google checkpoint (pre-linen and linen numbering)."""
    flat = {key.removeprefix("params/"): ckpt[key] for key in ckpt}
    names = {
        "LayerNorm_0": "norm1", "LayerNorm_1": "norm2", "LayerNorm_2": "norm2",
        "MultiHeadDotProductAttention_0": "attn", "MultiHeadDotProductAttention_1": "attn",
        "MlpBlock_0": "mlp", "MlpBlock_3": "mlp", "Dense_0": "fc1", "Dense_1": "fc2",
    }  # fmt: skip
    map_names = {**names, "LayerNorm_0": "norm"}
    params = {}
    for key, value in flat.items():
        parts = key.split("/")
        if parts[0] == "MAPHead_0":
            parts = ["map_head"] + [map_names.get(part, part) for part in parts[1:]]
        elif parts[0] == "Transformer":
            if "posembed" in parts[1]:
                parts = ["pos_embedding"]
            else:
                block = parts[1].replace("encoderblock_", "block_").replace("encoder_norm", "norm")
                parts = ["encoder", block] + [names.get(part, part) for part in parts[2:]]
        node = params
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = jnp.asarray(value)
    return params


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vt_npz/token_prelogits", {"pool": "token", "rep_size": True}),
        ("vt_npz/gap_norep", {"pool": "gap"}),
        ("bv_npz/map_learn", {"pool": "map"}),
        ("bv_npz/gap_sincos2d", {"pool": "gap", "posemb": "sincos2d"}),
    ],
)
def test_equals_the_reference(goldens, name, changes):
    manifest = json.loads((goldens / "manifest.json").read_text())
    entry = next(entry for entry in manifest["models"] if entry["id"] == name)
    arch, ckpt = entry["architecture"], np.load(goldens / name / "ckpt.npz")
    params = google_params(ckpt)
    width, patch = params["embedding"]["kernel"].shape[-1], params["embedding"]["kernel"].shape[0]
    want = np.load(goldens / name / "expected.npz")
    x = np.load(goldens / name / "inputs.npz")["image"]
    if "rep_size" in changes:
        changes = {**changes, "rep_size": params["pre_logits"]["kernel"].shape[1]}
    config = VitConfig(
        image_size=x.shape[1:3], patch_size=(patch, patch), num_classes=want["logits"].shape[1],
        width=width, depth=arch["depth"], mlp_dim=arch["mlp_dim"], num_heads=arch["num_heads"],
        scan=False, **changes,
    )  # fmt: skip
    with jax.default_matmul_precision("highest"):
        logits, out = apply(
            config, params, jnp.asarray(x), capture=("embed", "blocks", "attention")
        )
    got = {"logits": logits, "features": out["pre_logits"], "tokens": out["tokens"]}
    got["embed"] = out["embed"]
    for i in range(arch["depth"]):
        got |= {f"block{i}": out["blocks"][i], f"attn{i}": out["attention"][i]}
    compared = [key for key in got if key in want]
    assert {"logits", "tokens", "block0"} <= set(compared)
    for key in compared:
        tol = entry["expected_arrays"][key]["tol"]
        np.testing.assert_allclose(got[key], want[key], atol=tol, rtol=0, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["f32acc", "bf16acc_accum2"])
def test_fine_tuning_gives_the_references_parameters(goldens, name):
    """Ten steps of google-research/vision_transformer: model, gradient, optimizer, schedule."""
    folder = goldens / "training" / f"vt_finetune_token_{name}"
    manifest = json.loads((goldens / "manifest.json").read_text())
    entry = next(e for e in manifest["training"] if e["dir"] == f"training/{folder.name}")
    recipe, tol = entry["recipe"], {k: v.get("tol") for k, v in entry["expected_arrays"].items()}
    want, inputs = np.load(folder / "expected.npz"), np.load(folder / "inputs.npz")
    params = google_params(np.load(folder / "ckpt.npz"))
    config = VitConfig(
        image_size=(32, 32), patch_size=(8, 8), num_classes=5, width=32, depth=2, mlp_dim=64,
        num_heads=4, scan=False,
    )  # fmt: skip
    c = base_config().optim
    c.name, c.lr, c.clip_norm = "sgd", recipe["base_lr"], 1.0
    c.momentum_dtype = recipe["accumulator_dtype"]
    c.schedule.warmup_steps = recipe["warmup_steps"]
    schedule = make_schedule(c.schedule, total_steps=recipe["steps"], batch_size=8, num_examples=80)
    tx = make_optimizer(c, params, schedule=schedule)

    def loss_fn(params, batch, rng):
        logits, _ = Vit(config).apply({"params": params}, batch["image"], train=True)
        return softmax_xent(logits, batch["label"]).mean(), {}

    @jax.jit
    def step(params, opt_state, batch):
        (loss, _), grads = value_and_grad(
            loss_fn, params, batch, jax.random.key(0), accum_steps=recipe["accum_steps"]
        )
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss, optax.tree.norm(grads)

    image_key, label_key = (next(k for k in inputs if part in k) for part in ("image", "label"))
    opt_state, losses, norms = tx.init(params), [], []
    for t in range(recipe["steps"]):
        batch = {"image": inputs[image_key][t], "label": inputs[label_key][t]}
        params, opt_state, loss, norm = step(params, opt_state, jax.tree.map(jnp.asarray, batch))
        losses.append(loss)
        norms.append(norm)
    np.testing.assert_allclose(losses, want["losses"], rtol=0, atol=tol["losses"])
    key = "grad_norm_before_clip"
    np.testing.assert_allclose(norms, want[key], rtol=0, atol=tol[key])
    final = {k.removeprefix("final/"): want[k] for k in want if k.startswith("final/")}
    tols = google_params({k: np.float64(tol[f"final/{k}"]) for k in final})
    jax.tree.map(
        lambda got, ref, atol: np.testing.assert_allclose(got, ref, rtol=0, atol=float(atol)),
        params, google_params(final), tols,
    )  # fmt: skip


# --- Against other formulations -------------------------------------------------------------------


def layer_norm(x, p, eps, kind):
    if kind == "layernorm":
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * p["scale"]


def gelu(x, kind):
    from scipy.special import erf

    if kind == "erf":
        return x * 0.5 * (1 + erf(x / np.sqrt(2)))
    return x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def numpy_attention(config, p, y):
    def kernel(name):
        if not config.lora_rank:
            return p[name]["kernel"]
        a, b = (p[f"{name}_lora"][side] for side in "ab")
        added = a @ b.reshape(config.lora_rank, -1) * config.lora_alpha / config.lora_rank
        return p[name]["kernel"] + added.reshape(p[name]["kernel"].shape)

    heads = []
    for h in range(config.num_heads):
        q, k, v = (
            y @ kernel(n)[:, h] + (p[n]["bias"][h] if "bias" in p[n] else 0)
            for n in ("query", "key", "value")
        )
        if config.qk_norm:
            zero = {"bias": 0}
            q = layer_norm(q, p["query_norm"] | zero, config.ln_eps, "layernorm")
            k = layer_norm(k, p["key_norm"] | zero, config.ln_eps, "layernorm")
        a = np.exp(q @ k.T / np.sqrt(q.shape[1]))
        heads.append(a / a.sum(1, keepdims=True) @ v)
    y = np.concatenate(heads, axis=1)
    if config.attn_norm:
        y = layer_norm(y, p["norm"], config.ln_eps, "layernorm")
    return y @ kernel("out").reshape(config.width, config.width) + p["out"]["bias"]


def numpy_vit(config, params, x):
    """The model in float64 NumPy, written from the papers, one image and one head at a time."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    (rows, cols), (ph, pw) = config.grid, config.patch_size
    out = []
    for image in np.asarray(x, np.float64):
        patches = [
            image[r * ph : (r + 1) * ph, c * pw : (c + 1) * pw].reshape(-1)
            for r in range(rows)
            for c in range(cols)
        ]
        kernel = p["embedding"]["kernel"].reshape(-1, config.width)
        t = np.stack(patches) @ kernel + p["embedding"]["bias"]
        if config.pool == "token":
            t = np.concatenate([p["cls"][0], t])
        t = t + p["pos_embedding"][0]
        for i in range(config.depth):
            b = jax.tree.map(lambda leaf, i=i: leaf[i], p["encoder"]["blocks"])

            def mlp(y, b=b):
                y = gelu(y @ b["mlp"]["fc1"]["kernel"] + b["mlp"]["fc1"]["bias"], config.gelu)
                return y @ b["mlp"]["fc2"]["kernel"] + b["mlp"]["fc2"]["bias"]

            y = layer_norm(t, b["norm1"], config.ln_eps, config.norm)
            if config.parallel:
                t = t + numpy_attention(config, b["attn"], y) + mlp(y)
            else:
                t = t + numpy_attention(config, b["attn"], y)
                t = t + mlp(layer_norm(t, b["norm2"], config.ln_eps, config.norm))
        t = layer_norm(t, p["encoder"]["norm"], config.ln_eps, config.norm)
        out.append(t[0] if config.pool == "token" else t.mean(0))
    return np.stack(out) @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.medium
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pool": "gap", "gelu": "erf", "ln_eps": 1e-3},
        {"qkv_bias": False, "qk_norm": True, "norm": "rmsnorm", "parallel": True},
        {"key_bias": False, "attn_norm": True, "lora_rank": 2, "lora_alpha": 3.0},
    ],
)
def test_equals_a_float64_reimplementation(changes):
    config = dataclasses.replace(TINY, **changes)
    params, x = random_params(config), images(config)
    attention = params["encoder"]["blocks"]["attn"]
    assert ("bias" in attention["query"]) == config.qkv_bias
    assert ("bias" in attention["key"]) == (config.qkv_bias and config.key_bias)
    np.testing.assert_allclose(apply(config, params, x)[0], numpy_vit(config, params, x), atol=2e-5)


AGREE = dataclasses.replace(TINY, depth=2, width=16, mlp_dim=24, num_heads=2)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("pool", "posemb"), [campaign("token", "learned"), ("gap", "sincos2d"), campaign("map", "none")]
)
def test_scanned_and_unrolled_agree(pool, posemb):
    config = dataclasses.replace(AGREE, pool=pool, posemb=posemb, rep_size=20)
    params, x = random_params(config), images(config)
    value, grads = loss_and_gradient(config)(params, x)
    unrolled = dataclasses.replace(config, scan=False)
    other, other_grads = loss_and_gradient(unrolled)(unscan(params, config.depth), x)
    np.testing.assert_allclose(other, value, rtol=1e-6)
    assert_near(other_grads, unscan(grads, config.depth))


@pytest.mark.medium
@pytest.mark.parametrize("remat", ["full", campaign("dots"), campaign("dots_no_batch")])
def test_recomputed_activations_give_the_same_gradient(remat):
    config = dataclasses.replace(AGREE, pool="gap", posemb="sincos2d", rep_size=20)
    params, x = random_params(config), images(config)
    want = loss_and_gradient(config)(params, x)
    assert_near(loss_and_gradient(dataclasses.replace(config, remat=remat))(params, x), want)


def assert_near(gradient, want):
    # The gradient of the key's bias is zero except for rounding, so errors are absolute.
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale), gradient, want
    )


def test_remat_policies_are_the_choices_of_the_config():
    (choices,) = (d.choices for field, d in declarations(VitConfig) if field.name == "remat")
    assert set(choices) == {"auto", "none", *REMAT}


@pytest.mark.medium
def test_intermediates_are_returned_only_on_request():
    params, x = random_params(TINY), images(TINY)
    plain, few = apply(TINY, params, x)
    logits, all_ = apply(TINY, params, x, capture=("embed", "blocks", "attention"))
    np.testing.assert_array_equal(plain, logits)
    assert set(few) == {"tokens", "pre_logits"}
    n, depth = TINY.num_tokens, TINY.depth
    assert n == 2 * 3 + 1
    assert all_["embed"].shape == (2, n, 32) and all_["blocks"].shape == (depth, 2, n, 32)
    assert all_["attention"].shape == (depth, 2, 4, n, n)
    np.testing.assert_allclose(all_["attention"].sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(all_["pre_logits"], all_["tokens"][:, 0])
    # Otherwise free: without captures, the program stacks nothing over the depth.
    stacked = f"f32[{depth},2,4,{n},{n}]"
    programs = [
        str(jax.make_jaxpr(lambda p, c=c: Vit(TINY).apply({"params": p}, x, capture=c))(params))
        for c in ((), ("attention",))
    ]
    assert stacked not in programs[0] and stacked in programs[1]


@pytest.mark.medium
def test_a_new_model_predicts_the_bias():
    config = dataclasses.replace(TINY, head_bias_init=-6.9)
    params = random_params(config) | {"head": fresh_head(config)}
    np.testing.assert_allclose(apply(TINY, params, images(config))[0], -6.9)


@pytest.mark.medium
def test_bfloat16_computes_near_float32_and_returns_float32():
    params, x = random_params(TINY), images(TINY)
    logits, out = apply(dataclasses.replace(TINY, dtype="bfloat16"), params, x)
    assert logits.dtype == jnp.float32 and out["pre_logits"].dtype == jnp.float32
    assert out["tokens"].dtype == jnp.bfloat16
    want = apply(TINY, params, x)[0]
    np.testing.assert_allclose(logits, want, atol=0.05 * np.abs(want).max())


def test_published_overrides_of_a_variant():
    c = base_config()
    c.model.variant, c.model.depth = "22B/14", 2
    config = read_section(c.model, num_classes=10)
    assert (config.width, config.depth, config.qkv_bias, config.qk_norm, config.parallel) == (
        6144, 2, False, True, True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("variant", "B16", 'such as "B/16"'),
        ("variant", "So400/14", 'Did you mean "So400m"'),
        ("variant", "X/16", "Accepted: mu, s, Ti"),
        ("image_size", (225,), "multiple of the patch size 16. The nearest multiples: 224 or 240"),
        ("image_size", (8,), "nearest multiples: 16"),
        ("image_size", (224, 224, 3), r"write \(side,\) or \(height, width\)"),
        ("pool", "cls", "Accepted: token, gap, map"),
        ("posemb", "sincos", 'Did you mean "sincos2d"'),
        ("dropout", 1.5, "at least 0 and below 1"),
        ("num_heads", 5, "not a multiple of model.num_heads 5"),
        ("remat", "all", "Accepted: auto, none, named"),
        ("depth", 0, "must be from 1 to"),
    ],
)  # fmt: skip
def test_mistakes_are_named(key, value, message):
    c = base_config()
    c.model[key] = value
    with pytest.raises(ConfigError, match=message):
        read_section(c.model, num_classes=10)


def test_wrong_images_and_captures_are_named():
    params = random_params(TINY)
    with pytest.raises(ConfigError, match=r"takes images of height, width, channels \(16, 24, 3\)"):
        apply(TINY, params, jnp.zeros((1, 16, 16, 3)))
    with pytest.raises(ConfigError, match='Did you mean "attention"'):
        apply(TINY, params, images(TINY), capture=("atention",))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rope_grid", (16,), "model.rope_grid is .16,.: write a tuple of 2 whole numbers"),
        ("rope_grid", (16, -1), r"\(16, -1\): each number must be at least 0"),
        ("rope_periods", ("1",), "write a tuple of numbers"),
        ("rope_periods", (1.0, 2.0), "must have 16, a quarter of a head"),
        ("rope_theta", 0.0, "model.rope_theta is 0.0: it must be above 0"),
        ("mlp", "swglu", 'Did you mean "swiglu"'),
        ("final_norm", "token", 'Did you mean "tokens"'),
        ("registers", -1, "must be from 0 to 1,024"),
    ],
)
def test_mistakes_in_options_of_published_models_are_named(key, value, message):
    c = base_config()
    c.model[key] = value
    with pytest.raises(ConfigError, match=message):
        read_section(c.model, num_classes=10)


def test_keys_that_are_set_reach_the_model_and_others_are_defaults():
    c = base_config()
    c.model.update({"rope": "dinov3", "rope_periods": tuple(range(1, 17)), "rope_grid": (7, 7)})
    c.model.update({"registers": 4, "layer_scale": 1e-5, "qkv_bias": False})
    config = read_section(c.model, num_classes=10)
    assert config.rope_periods[:2] == (1.0, 2.0) and type(config.rope_periods[0]) is float
    assert (config.rope_grid, config.registers, config.layer_scale, config.qkv_bias) == (
        (7, 7),
        4,
        1e-5,
        False,
    )
    plain = read_section(base_config().model, num_classes=10)
    assert plain == VitConfig(
        image_size=(224, 224), patch_size=(16, 16), num_classes=10, width=384, depth=12,
        mlp_dim=1536, num_heads=6,
    )  # fmt: skip
