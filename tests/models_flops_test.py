"""Parameter counts and FLOPs against the papers, the reference code's counts, and XLA."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from ml_collections import FrozenConfigDict

from tests.conftest import campaign
from vit_jax.config import base_config
from vit_jax.models import (
    VARIANTS,
    build,
    forward_flops,
    num_params,
    operations,
    read_section,
    train_flops_per_image,
    update_flops_per_image,
)
from vit_jax.models.flops import count, param_shapes
from vit_jax.models.variants import MIXERS
from vit_jax.optim import frozen_mask, value_and_grad
from vit_jax.parallel.rules import path_name

pytestmark = pytest.mark.medium


def make_config(variant, **changes):
    c = base_config()
    c.model.variant = variant
    c.model.update(changes)
    return read_section(c.model, num_classes=1000)


def inner_programs(eqn):
    """Yields the programs that an equation calls: of jit, a custom derivative, or a loop."""
    kinds = (ClosedJaxpr, Jaxpr)
    leaves = jax.tree.leaves(eqn.params, is_leaf=lambda leaf: isinstance(leaf, kinds))
    for leaf in leaves:
        if isinstance(leaf, kinds):
            yield leaf.jaxpr if isinstance(leaf, ClosedJaxpr) else leaf


# google-research/vision_transformer at 224 pixels, 1000 classes, class token.
@pytest.mark.parametrize(
    ("variant", "params"),
    [
        ("Ti/16", 5_717_416), ("S/16", 22_050_664), ("S/32", 22_878_952), ("B/8", 86_576_872),
        ("B/16", 86_567_656), ("B/32", 88_224_232), ("L/16", 304_326_632), ("L/32", 306_535_400),
        ("H/14", 632_045_800),
    ],
)  # fmt: skip
def test_parameters_with_class_token(variant, params):
    assert num_params(make_config(variant)) == params


@pytest.mark.parametrize(
    ("variant", "params"),
    [("S/16", 22_049_896), ("B/16", 86_566_120), ("S/32", 22_878_184), ("B/32", 88_222_696)],
)
def test_parameters_with_average_pooling(variant, params):
    assert num_params(make_config(variant, pool="gap")) == params


# big_vision's backbones in millions: average pooling, no head.
@pytest.mark.parametrize(
    ("variant", "millions"),
    [
        ("Ti/16", 5.52), ("S/16", 21.66), ("M/16", 38.3), ("B/16", 85.8), ("L/16", 303.3),
        ("So400m/14", 412.4), ("H/14", 630.8), ("g/14", 1011.2), ("g-opt/16", 1134.7),
        ("G/14", 1842.8), ("G-opt/14", 1663.3), ("e/14", 3805.4),
        ("s/28", 5.4), ("s/16", 5.0),  # Zhai et al. 2021, table 2.
    ],
)  # fmt: skip
def test_backbone_parameters(variant, millions):
    count = num_params(make_config(variant, pool="gap", num_classes=0)) / 1e6
    digits = len(str(millions).partition(".")[2])
    assert round(count, digits) == millions


def test_22b_blocks():
    # Dehghani et al. 2023, table 1: 21,743 million parameters: the kernels of the blocks.
    encoder = param_shapes(make_config("22B/14", pool="gap"))["encoder"]["blocks"]
    kernels = [leaf.size for leaf in jax.tree.leaves(encoder) if leaf.ndim > 2]
    assert sum(kernels) // 10**6 == 21_743
    assert set(encoder) == {"norm1", "attn", "mlp"}
    assert set(encoder["norm1"]) == {"scale"} and set(encoder["attn"]["query"]) == {"kernel"}


# XLA also counts norms, softmax and GELU; their fraction falls as the width grows.
def elementwise_share(width):
    return 0.01 + 10.0 / width


# Zhai et al. 2021, table 2: GFLOPs for an image of 224 pixels, counted by XLA, rounded to 0.1.
@pytest.mark.parametrize(
    ("variant", "gflops"),
    [
        ("s/28", 0.7), ("s/16", 2.2), ("S/32", 2.3), ("Ti/16", 2.5), ("B/32", 8.7), ("S/16", 9.2),
        ("B/28", 11.3), ("B/16", 35.1), ("L/16", 122.9), ("g/14", 533.1), ("G/14", 965.3),
    ],
)  # fmt: skip
def test_forward_flops_equal_the_papers(variant, gflops):
    config = make_config(variant, pool="gap", num_classes=0)
    count = forward_flops(config) / 1e9
    assert count <= gflops + 0.05
    assert gflops - 0.05 <= count * (1 + elementwise_share(config.width))


# Every variant has the same formula, so the common ones and the widest patch suffice here.
XLA_COUNTED = ("Ti", "B", "L", "g")


@pytest.mark.parametrize(
    ("variant", "pool"),
    [
        ("Ti", "map"),
        *((variant, "token") for variant in XLA_COUNTED),
        *(
            campaign(variant, pool)
            for variant in VARIANTS
            for pool in ("token", "map")
            if (variant, pool) != ("Ti", "map") and not (variant in XLA_COUNTED and pool == "token")
        ),
    ],
)
def test_forward_flops_against_xla(variant, pool):
    # XLA counts the body of a loop once, so the loop is unrolled; two blocks give the cost of one.
    patch = 14 if VARIANTS[variant].width > 1024 else 16

    def counts(depth):
        config = make_config(f"{variant}/{patch}", pool=pool, scan=False, depth=depth, rep_size=64)
        return xla_flops(config), forward_flops(config)

    (xla1, ours1), (xla2, ours2) = counts(1), counts(2)
    elementwise = elementwise_share(VARIANTS[variant].width)
    for xla, ours in ((xla1, ours1), (xla2 - xla1, ours2 - ours1)):
        assert ours <= xla <= ours * (1 + elementwise), (xla / ours, variant)


def xla_flops(config):
    images = jax.ShapeDtypeStruct((1, *config.image_size, config.channels), jnp.float32)
    lowered = jax.jit(lambda p, x: build(config).apply({"params": p}, x)[0]).lower(
        param_shapes(config), images
    )
    return lowered.cost_analysis()["flops"]


@pytest.mark.parametrize("patch", [campaign(16), 32])
@pytest.mark.parametrize("row", ["Mixer-B", *(campaign(row) for row in MIXERS if row != "Mixer-B")])
def test_forward_flops_of_mixers_against_xla(row, patch):
    one, two = (make_config(f"{row}/{patch}", scan=False, depth=depth) for depth in (1, 2))
    (xla1, ours1), (xla2, ours2) = (
        (xla_flops(config), forward_flops(config)) for config in (one, two)
    )
    for xla, ours in ((xla1, ours1), (xla2 - xla1, ours2 - ours1)):
        # GELU of two MLPs.
        assert ours <= xla <= ours * (1 + 2 * elementwise_share(one.width))


@pytest.mark.parametrize(
    "changes",
    [
        {"mlp": "swiglu", "registers": 4, "pool": "token_gap"},
        {"mlp": "geglu", "distilled": True, "rope": "dinov3"},
        {"mlp": "silu", "pool": "map_patches", "registers": 4},
        {"registers": 8, "class_token": True, "pool": "map", "layer_scale": 1e-4, "mlp": "swiglu"},
        {"attn_norm": True, "mlp_norm": True, "pre_norm": True, "qk_norm": True},
    ],
)
def test_forward_flops_of_options_of_published_models_against_xla(changes):
    config = make_config("B/16", scan=False, depth=2, num_classes=21_843, **changes)
    xla, ours = xla_flops(config), forward_flops(config)
    assert ours <= xla <= ours * (1 + elementwise_share(config.width))


# XLA does not count products with padding, and counts norms and standardisation.
@pytest.mark.parametrize(
    "variant",
    [
        "BiT-R26x1",
        "R+Ti/16",
        "R26+S/32",
        campaign("BiT-R50x1"),
        campaign("BiT-R101x3"),
        campaign("R50+B/16"),
        campaign("R50+L/32"),
    ],
)
def test_forward_flops_of_convolutions_against_xla(variant):
    # On images this large, padding is a small fraction.
    blocks = {} if "BiT" in variant else {"depth": 1, "scan": False}
    config = make_config(variant, image_size=(896,), **blocks)
    assert forward_flops(config) == pytest.approx(xla_flops(config), rel=0.04)


@pytest.mark.parametrize("size", [(224, 224), (97, 161)])
def test_flops_of_each_convolution(size):
    """Every convolution of the program, counted from its shapes."""
    config = make_config("BiT-R26x1", image_size=size)
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    program = jax.make_jaxpr(lambda p, x: build(config).apply({"params": p}, x))(
        param_shapes(config), images
    )

    def convolutions(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "conv_general_dilated":
                kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
                yield out[1] * out[2] * np.prod(kernel)
            for inner in inner_programs(eqn):
                yield from convolutions(inner)

    macs = list(convolutions(program.jaxpr))
    assert len(macs) == 1 + 8 * 3 + 4
    assert forward_flops(config) == 2 * (sum(macs) + 2048 * 1000)


# A model of each kind, with the options of published models: prefix tokens, gates, norms, heads.
SMALL = {
    "vit": {"variant": "Ti/16", "rep_size": 24},
    "map": {"variant": "Ti/16", "pool": "map", "lora_rank": 4, "registers": 2, "mlp": "swiglu"},
    "distilled": {
        "variant": "Ti/16", "distilled": True, "layer_scale": 0.1, "qk_norm": True,
        "qk_norm_bias": True, "attn_norm": True, "mlp": "geglu", "mlp_norm": True, "pre_norm": True,
    },
    "parallel": {
        "variant": "Ti/16", "parallel": True, "norm": "rmsnorm", "key_bias": False,
        "pool": "token_gap", "final_norm": "pooled", "posemb": "sincos2d", "layer_scale": 0.1,
    },
    "plain": {"variant": "Ti/16", "pool": "gap", "qkv_bias": False, "final_norm": "none"},
    "map of patches": {"variant": "Ti/16", "pool": "map_patches", "class_token": True},
    "mixer": {"variant": "Mixer-S/16"},
    "hybrid": {"variant": "R+Ti/16"},
    "resnet v1": {"variant": "BiT-R26x1", "resnet.units": (1, 2)},
    "resnet v2": {"variant": "BiT-R50x1", "resnet.units": (1, 2), "resnet.version": "v2"},
}  # fmt: skip


def small(name, **changes):
    c = base_config()
    fields = {"image_size": (64,)} | SMALL[name] | changes
    if "BiT" not in fields["variant"]:
        fields = {"depth": 2, "scan": False} | fields
    for key, value in fields.items():
        section = c.model.resnet if key.startswith("resnet.") else c.model
        section[key.removeprefix("resnet.")] = value
    return read_section(c.model, num_classes=10)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_is_counted(name):
    shapes = param_shapes(config := small(name))
    paths = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}
    assert count(config).params == paths


@pytest.fixture
def plain_operations(monkeypatch):
    """Products whose backward pass is autodiff's, which computes nothing twice and nothing unused.

    Ours compute the attention matrix again, and leave it to XLA to remove gradients of what is
    frozen.
    """
    for name in ("_matmul", "_attend"):
        monkeypatch.setattr(operations, name, getattr(operations, name).fun)


def training(config, freeze):
    """Returns a loss's gradient in the trained parameters, as in update.py, and its arguments."""
    params = param_shapes(config)
    frozen = frozen_mask(FrozenConfigDict({"freeze": freeze}), params)
    images = jax.ShapeDtypeStruct((1, *config.image_size, config.channels), jnp.float32)

    def loss(params, batch, rng):
        return jnp.sum(build(config).apply({"params": params}, batch)[0] ** 2), {}

    def gradient(params, images):
        return value_and_grad(loss, params, images, jax.random.key(0), frozen=frozen)

    return gradient, params, images


def products(jaxpr):
    """Returns the multiply-adds of all matrix products and convolutions of a program."""
    total = 0
    for eqn in jaxpr.eqns:
        inputs = [var.aval for var in eqn.invars]
        if eqn.primitive.name == "dot_general":
            (summed, _), _ = eqn.params["dimension_numbers"]
            total += eqn.outvars[0].aval.size * math.prod(inputs[0].shape[i] for i in summed)
        elif eqn.primitive.name == "conv_general_dilated":
            spec = eqn.params["dimension_numbers"]
            out_features = inputs[1].shape[spec.rhs_spec[0]]
            total += eqn.outvars[0].aval.size * inputs[1].size // out_features
        length = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for inner in inner_programs(eqn):
            total += length * products(inner)
    return total


FREEZE = {
    "full": (),
    "LoRA": ("(?!(head|head_dist)/|.*_lora/).*",),
    "LoRA alone": ("(?!.*_lora/).*",),
    "head alone": ("(?!(head|head_dist)/).*",),
    "head's bias": ("(?!head/bias).*",),
    "frozen embedding": ("embedding/.*", "(cls|pos_embedding|registers)"),
    "frozen embedding kernel": ("embedding/kernel",),
    "last block": ("(?!encoder/(block_1|norm)/|head/).*",),
    "first block": ("(?!encoder/block_0/).*",),
    "value of the last block": ("(?!encoder/block_1/attn/value/kernel).*",),
    "query of the last block": ("(?!encoder/block_1/attn/query/bias).*",),
    "norms": ("(?!.*/(norm|norm1|norm2)/).*",),
    "frozen head": ("head/.*",),
    "attention": ("(?!.*/attn/).*",),
}


@pytest.mark.usefixtures("plain_operations")
@pytest.mark.parametrize("trained", FREEZE)
def test_training_flops_equal_those_of_the_program(trained):
    """The count equals the sum over all matrix products of the program."""
    config, freeze = small("map" if "LoRA" in trained else "vit"), FREEZE[trained]
    if trained == "LoRA":
        freeze = ("(?!head/|.*_lora/).*",)
    gradient, *args = training(config, freeze)
    program = jax.make_jaxpr(gradient)(*args)
    assert train_flops_per_image(config, freeze=freeze) == 2 * products(program.jaxpr)


@pytest.mark.usefixtures("plain_operations")
@pytest.mark.parametrize("name", ["distilled", "map of patches", "parallel", "plain", "mixer"])
def test_training_flops_of_other_models_equal_those_of_the_program(name):
    for freeze in ((), ("encoder/block_0/.*",), ("(?!head/).*",)):
        gradient, *args = training(config := small(name), freeze)
        program = jax.make_jaxpr(gradient)(*args)
        assert train_flops_per_image(config, freeze=freeze) == 2 * products(program.jaxpr)


@pytest.mark.parametrize(
    "trained", ["full", "LoRA", "head alone", "last block", "frozen embedding"]
)
def test_training_flops_against_xla(trained):
    config = small("vit", depth=4, **({"lora_rank": 8} if trained == "LoRA" else {}))
    freeze = tuple(rule.replace("block_1", "block_3") for rule in FREEZE[trained])
    if trained == "LoRA":
        freeze = ("(?!head/|.*_lora/).*",)
    elif trained == "frozen embedding":
        freeze = ("embedding/.*", "(cls|pos_embedding)")
    gradient, *args = training(config, freeze)
    xla = jax.jit(gradient).lower(*args).cost_analysis()["flops"]
    ours = train_flops_per_image(config, freeze=freeze)
    assert ours <= xla <= ours * (1 + elementwise_share(config.width))


@pytest.mark.parametrize("name", ["resnet v1", "hybrid"])
def test_training_flops_of_convolutions_against_xla(name):
    body = "stem" if name == "hybrid" else "(root|stage1)"
    for freeze in ((), (f"{body}/.*",), ("(?!head/).*",)):
        # On images this large, padding, which XLA does not count, is a small fraction.
        gradient, *args = training(config := small(name, image_size=(512,)), freeze)
        xla = jax.jit(gradient).lower(*args).cost_analysis()["flops"]
        assert train_flops_per_image(config, freeze=freeze) == pytest.approx(xla, rel=0.06)


def test_update_flops_depend_on_the_training_options():
    c = base_config()
    config = small("vit")
    plain = train_flops_per_image(config)
    assert (
        plain == 3 * forward_flops(config) - 2 * 16 * 16 * 16 * 3 * config.width
    )  # No image gradient.
    assert update_flops_per_image(config, c) == plain
    c.optim.sam_rho = 0.1
    assert update_flops_per_image(config, c) == 2 * plain
    c.optim.sam_rho, c.optim.freeze = 0.0, ("(?!head/).*",)
    head = 2 * 24 * 10
    assert (
        update_flops_per_image(config, c) == forward_flops(config) + head
    )  # A probe with augmentation.
    c.cache_features = True
    assert update_flops_per_image(config, c) == 2 * head  # Forward pass and gradient of the kernel.


@pytest.mark.usefixtures("plain_operations")
def test_scanned_blocks_count_as_unrolled_ones():
    config = small("vit", depth=3, scan=True)
    assert train_flops_per_image(config) == train_flops_per_image(small("vit", depth=3))
    gradient, *args = training(config, ())
    assert train_flops_per_image(config) == 2 * products(jax.make_jaxpr(gradient)(*args).jaxpr)
