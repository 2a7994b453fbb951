"""ResNets and hybrids against the reference implementations, and their consistency."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import campaign, slow
from tests.small_models import apply, images, random_params
from vit_jax.config import base_config
from vit_jax.config.model import RESNET_NUMERICS
from vit_jax.errors import ConfigError
from vit_jax.models import (
    ResnetConfig,
    StemConfig,
    VitConfig,
    build,
    num_params,
    param_shapes,
    parse_variant,
    read_section,
)
from vit_jax.models.resize import resize_posemb
from vit_jax.models.resnet import StdConv, Stem
from vit_jax.models.variants import RESNETS

V1, V2 = ({"version": version, **numerics} for version, numerics in RESNET_NUMERICS.items())
TINY = ResnetConfig(units=(1, 1), width_factor=0.5, image_size=(48, 48), num_classes=6)


def make_config(variant, **changes):
    c = base_config()
    c.model.variant = variant
    for key, value in changes.items():
        section, _, leaf = key.rpartition("__")
        (c.model[section] if section else c.model)[leaf] = value
    return read_section(c.model, num_classes=1000)


# --- Against big_vision and google-research/vision_transformer ------------------------------------


def nest(flat):
    """Converts {"a/b": array} to {"a": {"b": array}}."""
    tree = {}
    for key, value in flat.items():
        *folders, leaf = key.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = jnp.asarray(value)
    return tree


def renamed(ckpt, rules):
    """Renames a checkpoint's arrays, each by the first rule that matches."""
    flat = {}
    for key in ckpt:
        name = key.removeprefix("params/").removeprefix("resnet/")
        for pattern, ours in rules:
            name = re.sub(pattern, ours, name)
        flat[name] = ckpt[key]
    return nest(flat)


V1_NAMES = (
    (r"^conv_root", "root/conv"),
    (r"^gn_root", "root/norm"),
    (r"^block(\d+)/unit(\d+)", r"stage\1/unit\2"),
    (r"/conv_proj/", "/proj/"),
    (r"/gn_proj/", "/proj_norm/"),
    (r"/gn(\d)/", r"/norm\1/"),
)
TF_NAMES = (
    (r"/beta$", "/bias"),
    (r"/gamma$", "/scale"),
    (r"^root_block/standardized_conv2d", "root/conv"),
    (r"^group_norm", "norm"),
    (r"^head/conv2d", "head"),
    (r"^block(\d+)/unit0*(\d+)", r"stage\1/unit\2"),
    (r"/a/proj/standardized_conv2d", "/proj"),
    *((rf"/{x}/standardized_conv2d", f"/conv{i}") for i, x in enumerate("abc", 1)),
    *((rf"/{x}/group_norm", f"/norm{i}") for i, x in enumerate("abc", 1)),
)


def golden(folder, name):
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = next(entry for entry in manifest["models"] if entry["id"] == name)
    files = (np.load(folder / name / f"{kind}.npz") for kind in ("ckpt", "inputs", "expected"))
    return entry, *files


def assert_within_tolerance(got, want, entry):
    for key, value in got.items():
        tol = entry["expected_arrays"][key]["tol"]
        np.testing.assert_allclose(value, want[key], atol=tol, rtol=0, err_msg=key)


def root_and_map(config, params, x):
    """Returns the output of the root, and the last feature map."""
    body = {name: value for name, value in params.items() if name != "head"}
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(StemConfig)}
    stem = Stem(StemConfig(**fields), "float32")

    @jax.jit
    def run(body, x):
        return stem.apply(
            {"params": body},
            x,
            capture_intermediates=lambda module, _: module.name == "root",
            mutable=["intermediates"],
        )

    feature_map, variables = run(body, x)
    return variables["intermediates"]["root"]["__call__"][0], feature_map


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "numerics", "names"),
    [("bv_npz/bit_v1", V1, V1_NAMES), ("bv_npz/bit_paper_tfnames", V2, TF_NAMES)],
)
def test_resnets_equal_the_reference(goldens, name, numerics, names):
    entry, ckpt, inputs, want = golden(goldens, name)
    params = renamed(ckpt, names)
    params["head"]["kernel"] = params["head"]["kernel"].reshape(
        256, 6
    )  # TF's head is a convolution.
    got = {}
    for suffix in ("", "_40x56"):
        x = jnp.asarray(inputs[f"image{suffix}"])
        config = dataclasses.replace(TINY, image_size=x.shape[1:3], **numerics)
        with jax.default_matmul_precision("highest"):
            logits, out = apply(config, params, x)
            if not suffix:
                stem, feature_map = root_and_map(config, params, x)
        place = f"{suffix.lstrip('_')}/" if suffix else ""
        got |= {f"{place}logits": logits, f"{place}features": out["pre_logits"]}
        if not suffix:
            got |= {"stem": stem, "feature_map": feature_map}
    assert set(got) == set(want)
    assert_within_tolerance(got, want, entry)
    # The numerics of the other version are measurably different.
    other = dataclasses.replace(config, std_eps=1e-2)
    assert np.abs(apply(other, params, x)[0] - logits).max() > 1e-4


VIT_NAMES = (
    *((pattern.replace("^", "^(?=.)"), f"stem/{ours}") for pattern, ours in V1_NAMES[:3]),
    *V1_NAMES[3:],
    (r"^Transformer/posembed_input/", ""),
    (r"^Transformer/encoderblock_", "encoder/block_"),
    (r"^Transformer/encoder_norm", "encoder/norm"),
    (r"/LayerNorm_0/", "/norm1/"),
    (r"/LayerNorm_2/", "/norm2/"),
    (r"/MultiHeadDotProductAttention_1/", "/attn/"),
    (r"/MlpBlock_3/Dense_0/", "/mlp/fc1/"),
    (r"/MlpBlock_3/Dense_1/", "/mlp/fc2/"),
)


@pytest.mark.medium
def test_a_hybrid_equals_the_reference(goldens):
    entry, ckpt, inputs, want = golden(goldens, "vt_npz/hybrid_token")
    # Old flax stored the scales of group norm as [1, 1, 1, channels].
    squeezed = {k: v.squeeze() if "/gn" in f"/{k}" else v for k, v in ckpt.items()}
    params = renamed(squeezed, VIT_NAMES)
    config = VitConfig(
        image_size=(64, 64), patch_size=(1, 1), num_classes=9, width=32, depth=2, mlp_dim=64,
        num_heads=4, stem=StemConfig(units=(1, 1), width_factor=0.5), scan=False,
    )  # fmt: skip
    assert config.stride == (8, 8) and config.grid == (8, 8)
    x = jnp.asarray(inputs["image"])
    with jax.default_matmul_precision("highest"):
        logits, out = apply(config, params, x, capture=("embed", "blocks", "attention"))
        stem = jax.jit(Stem(config.stem, "float32").apply)({"params": params["stem"]}, x)
        got = {"stem": stem}
        got |= {"logits": logits, "features": out["pre_logits"], "tokens": out["tokens"]}
        got["embed"] = out["embed"]
        for i in range(config.depth):
            got |= {f"block{i}": out["blocks"][i], f"attn{i}": out["attention"][i]}

        large = dataclasses.replace(config, image_size=(96, 96))
        params["pos_embedding"] = resize_posemb(
            params["pos_embedding"], old=(8, 8), new=(12, 12), prefix=1, kernel="bilinear_corners"
        )
        logits, out = apply(large, params, inputs["image_96x96"])
    got |= {"96x96/logits": logits, "96x96/features": out["pre_logits"]}
    got["96x96/tokens"] = out["tokens"]
    assert set(got) == set(want)
    assert_within_tolerance(got, want, entry)


# --- Against other formulations -------------------------------------------------------------------


@pytest.mark.medium
@pytest.mark.parametrize("std_eps_in", ["std", "var"])
def test_kernels_are_standardised(std_eps_in):
    config = StemConfig(units=(), std_eps=1e-10, std_eps_in=std_eps_in)
    x = jnp.eye(9 * 4).reshape(36, 3, 3, 4)  # Each image selects one entry of the kernel.
    conv = StdConv(config, features=5, size=3, stride=3, dtype="float32")
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32) * 7 + 3
    got = np.asarray(jax.jit(conv.apply)({"params": {"kernel": kernel}}, x)).reshape(36, 5)
    np.testing.assert_allclose(got.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(got.std(axis=0), 1, rtol=1e-6)


@pytest.mark.parametrize("depth", RESNETS)
def test_variants_are_named_by_their_number_of_layers(depth):
    row, multiple = parse_variant(f"BiT-R{depth}x1.5")
    assert row.version == "v2" and row.padding == "explicit" and multiple == 1
    assert sum(row.units) * 3 + 2 == depth


@pytest.mark.parametrize("numerics", [V1, V2])
def test_both_versions_have_the_same_parameters(numerics):
    config = ResnetConfig(
        units=(1, 2), width_factor=1.5, image_size=(33, 65), num_classes=7, **numerics
    )
    assert config.root_width == 96 and config.features == 768 and config.stride == 8
    shapes = param_shapes(config)
    assert shapes["root"]["conv"]["kernel"].shape == (7, 7, 3, 96)
    unit = shapes["stage2"]["unit1"]
    assert unit["conv2"]["kernel"].shape == (3, 3, 192, 192)
    assert unit["proj"]["kernel"].shape == (1, 1, 384, 768)
    assert unit["conv3"]["kernel"].shape == (1, 1, 192, 768)
    v1 = numerics["version"] == "v1"
    assert ("proj_norm" in unit) == ("norm" in shapes["root"]) == v1
    assert ("norm" in shapes) == (not v1)
    assert "proj" not in shapes["stage2"]["unit2"]


@pytest.mark.medium
@pytest.mark.parametrize("numerics", [campaign(V1), V2])
def test_a_new_resnet_predicts_the_bias(numerics):
    config = dataclasses.replace(TINY, head_bias_init=-6.9, **numerics)
    fresh = jax.jit(build(config).init)(jax.random.key(1), images(config))["params"]
    logits, out = apply(config, fresh, images(config))
    np.testing.assert_allclose(logits, -6.9)
    assert out["pre_logits"].shape == (2, 256) and set(out) == {"pre_logits"}
    assert np.abs(out["pre_logits"]).max() > 0.1


@pytest.mark.medium
@pytest.mark.parametrize("numerics", [V1, V2])
def test_bfloat16_computes_near_float32_and_returns_float32(numerics):
    config = dataclasses.replace(TINY, **numerics)
    params, x = random_params(config), images(config)
    want = apply(config, params, x)[0]
    logits, out = apply(dataclasses.replace(config, dtype="bfloat16"), params, x)
    assert logits.dtype == jnp.float32 and out["pre_logits"].dtype == jnp.float32
    np.testing.assert_allclose(logits, want, atol=0.1 * np.abs(want).max())
    assert np.abs(logits - want).max() > 0


@pytest.mark.medium
def test_a_model_without_a_head_returns_its_features():
    config = dataclasses.replace(TINY, num_classes=0)
    params = random_params(config)
    assert "head" not in params
    logits, out = apply(config, params, images(config))
    np.testing.assert_array_equal(logits, out["pre_logits"])


# --- Names and mistakes ---------------------------------------------------------------------------


@pytest.mark.medium
@pytest.mark.parametrize(
    ("variant", "grid", "params"),
    [
        # google-research/vision_transformer at 224 pixels, 1000 classes, class token.
        ("R+Ti/16", 7, 6_337_704), ("R26+S/32", 7, 36_431_912), ("R26+B/32", 7, 101_383_976),
        ("R50+B/16", 14, 98_659_112), ("R50+L/32", 7, 328_994_856),
    ],
)  # fmt: skip
def test_hybrids_equal_the_published_ones(variant, grid, params):
    config = make_config(variant)
    assert config.grid == (grid, grid) and config.stride == (224 // grid, 224 // grid)
    assert config.stride[0] == parse_variant(variant)[1]
    assert num_params(config) == params


# timm 1.0.31: resnetv2_50x1_bit, ..._101x3_bit, ..._152x2_bit, with 1000 classes.
@pytest.mark.medium
@pytest.mark.parametrize(
    ("variant", "params"),
    [("BiT-R50x1", 25_549_352), slow("BiT-R101x3", 387_934_888), slow("BiT-R152x2", 236_335_208)],
)
def test_resnets_equal_the_published_ones(variant, params):
    assert num_params(make_config(variant)) == params


def test_overrides_change_the_resnet():
    config = make_config(
        "BiT-R50x1", resnet__version="v1", resnet__units=(1, 2), resnet__gn_eps=1e-3
    )
    assert (config.version, config.padding, config.std_eps_in, config.std_eps) == (
        "v1",
        "same",
        "std",
        1e-5,
    )
    assert (config.units, config.gn_eps) == ((1, 2), 1e-3)
    config = make_config("R26+S/32", resnet__units=(1, 1), resnet__padding="explicit", width=96)
    assert config.stem == StemConfig(units=(1, 1), padding="explicit")
    assert config.stride == (8, 8) and config.width == 96


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("BiT-R51x1", {}, 'Did you mean "BiT-R50x1"'),
        ("BiT-50x1", {}, 'such as "BiT-R50x1"'),
        ("BiT-R50x0.3", {}, "multiple of 32"),
        ("BiT-R50x9000", {}, "at most 64"),
        ("R26+S/16", {}, 'Did you mean "R26\\+S/32"'),
        ("R50+H/14", {}, "no such hybrid"),
        ("BiT-R50x1", {"pool": "gap"}, "model.pool is 'gap', but a ResNet does not use it"),
        ("BiT-R50x1", {"dropout": 0.1}, "model.dropout is 0.1, but a ResNet does not use it"),
        ("BiT-R50x1", {"stochastic_depth": 0.1}, "model.stochastic_depth is 0.1"),
        ("BiT-R50x1", {"scan": False}, "leave it at True"),
        ("S/16", {"resnet__version": "v2"}, "model.resnet.version is 'v2', but a Vision Transf"),
        ("S/16", {"token_mlp_dim": 9}, "model.token_mlp_dim is 9, but a Vision Transformer does"),
        ("R26+S/32", {"token_mlp_dim": 9}, "does not use it: leave it at None"),
        ("BiT-R50x1", {"resnet__version": "v3"}, "model.resnet.version is \"v3\""),
        ("BiT-R50x1", {"resnet__padding": "valid"}, "Accepted: same, explicit"),
        ("BiT-R50x1", {"resnet__std_eps": -1.0}, "model.resnet.std_eps is -1.0"),
        ("BiT-R50x1", {"resnet__units": (3, 0)}, r"model.resnet.units is \(3, 0\)"),
        ("BiT-R50x1", {"resnet__units": ("3",)}, "write a tuple of whole numbers"),
        ("BiT-R50x1", {"dtype": "float16"}, 'Did you mean "bfloat16"'),
        ("R50+B/16", {"image_size": (232,)}, "stem's stride times the patch size, 16"),
        ("R+Ti/16", {"image_size": (240,)}, "The nearest multiples: 224 or 256"),
    ],
)  # fmt: skip
def test_mistakes_are_named(variant, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(variant, **changes)


def test_wrong_images_and_captures_are_named():
    params = random_params(TINY)
    with pytest.raises(ConfigError, match=r"takes images of height, width, channels \(48, 48, 3\)"):
        apply(TINY, params, np.zeros((1, 32, 32, 3), np.float32))
    with pytest.raises(ConfigError, match=r'A Resnet cannot capture "blocks"\. Accepted: feat'):
        apply(TINY, params, images(TINY), capture=("blocks",))
