"""Sizes and costs against the papers, the reference code's counts, and XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from tests.conftest import campaign
from vit_jax.config import base_config
from vit_jax.models import (
    VARIANTS,
    Vit,
    build,
    forward_flops,
    model_config,
    num_params,
    train_flops,
)
from vit_jax.models.flops import param_shapes
from vit_jax.models.variants import MIXERS


def config(variant, **changes):
    c = base_config()
    c.model.variant = variant
    c.model.update(changes)
    return model_config(c.model, num_classes=1000)


# google-research/vision_transformer at 224 pixels, 1000 classes, class token.
@pytest.mark.medium
@pytest.mark.parametrize(
    ("variant", "params"),
    [
        ("Ti/16", 5_717_416), ("S/16", 22_050_664), ("S/32", 22_878_952), ("B/8", 86_576_872),
        ("B/16", 86_567_656), ("B/32", 88_224_232), ("L/16", 304_326_632), ("L/32", 306_535_400),
        ("H/14", 632_045_800),
    ],
)  # fmt: skip
def test_parameters_with_class_token(variant, params):
    assert num_params(config(variant)) == params


@pytest.mark.medium
@pytest.mark.parametrize(
    ("variant", "params"),
    [("S/16", 22_049_896), ("B/16", 86_566_120), ("S/32", 22_878_184), ("B/32", 88_222_696)],
)
def test_parameters_with_average_pooling(variant, params):
    assert num_params(config(variant, pool="gap")) == params


# big_vision's backbones in millions: average pooling, no head.
@pytest.mark.medium
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
    count = num_params(config(variant, pool="gap", num_classes=0)) / 1e6
    digits = len(str(millions).partition(".")[2])
    assert round(count, digits) == millions


@pytest.mark.medium
def test_22b_blocks():
    # Dehghani et al. 2023, table 1: 21,743 million parameters: the kernels of the blocks.
    encoder = param_shapes(config("22B/14", pool="gap"))["encoder"]["blocks"]
    kernels = [leaf.size for leaf in jax.tree.leaves(encoder) if leaf.ndim > 2]
    assert sum(kernels) // 10**6 == 21_743
    assert set(encoder) == {"norm1", "attn", "mlp"}
    assert set(encoder["norm1"]) == {"scale"} and set(encoder["attn"]["query"]) == {"kernel"}


# XLA counts norms, softmax and GELU too; their share falls as the width grows.
def elementwise_share(width):
    return 0.01 + 10.0 / width


# Zhai et al. 2021, table 2: GFLOPs of an image of 224 pixels, counted by XLA, rounded to 0.1.
@pytest.mark.parametrize(
    ("variant", "gflops"),
    [
        ("s/28", 0.7), ("s/16", 2.2), ("S/32", 2.3), ("Ti/16", 2.5), ("B/32", 8.7), ("S/16", 9.2),
        ("B/28", 11.3), ("B/16", 35.1), ("L/16", 122.9), ("g/14", 533.1), ("G/14", 965.3),
    ],
)  # fmt: skip
def test_forward_flops_are_the_papers(variant, gflops):
    cfg = config(variant, pool="gap", num_classes=0)
    count = forward_flops(cfg) / 1e9
    assert count <= gflops + 0.05
    assert gflops - 0.05 <= count * (1 + elementwise_share(cfg.width))


# Each variant is the same formula at another size: of the common ones, and of the widest patch.
XLA_COUNTED = ("Ti", "B", "L", "g")


@pytest.mark.medium
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
        cfg = config(f"{variant}/{patch}", pool=pool, scan=False, depth=depth, rep_size=64)
        return xla_flops(cfg), forward_flops(cfg)

    (xla1, ours1), (xla2, ours2) = counts(1), counts(2)
    elementwise = elementwise_share(VARIANTS[variant].width)
    for xla, ours in ((xla1, ours1), (xla2 - xla1, ours2 - ours1)):
        assert ours <= xla <= ours * (1 + elementwise), (xla / ours, variant)


def xla_flops(cfg):
    images = jax.ShapeDtypeStruct((1, *cfg.image_size, cfg.channels), jnp.float32)
    lowered = jax.jit(lambda p, x: build(cfg).apply({"params": p}, x)[0]).lower(
        param_shapes(cfg), images
    )
    return lowered.cost_analysis()["flops"]


@pytest.mark.medium
@pytest.mark.parametrize("patch", [campaign(16), 32])
@pytest.mark.parametrize("row", ["Mixer-B", *(campaign(row) for row in MIXERS if row != "Mixer-B")])
def test_forward_flops_of_mixers_against_xla(row, patch):
    one, two = (config(f"{row}/{patch}", scan=False, depth=depth) for depth in (1, 2))
    (xla1, ours1), (xla2, ours2) = ((xla_flops(cfg), forward_flops(cfg)) for cfg in (one, two))
    for xla, ours in ((xla1, ours1), (xla2 - xla1, ours2 - ours1)):
        # GELU of two MLPs.
        assert ours <= xla <= ours * (1 + 2 * elementwise_share(one.width))


@pytest.mark.medium
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
def test_forward_flops_of_what_checkpoints_need_against_xla(changes):
    cfg = config("B/16", scan=False, depth=2, num_classes=21_843, **changes)
    xla, ours = xla_flops(cfg), forward_flops(cfg)
    assert ours <= xla <= ours * (1 + elementwise_share(cfg.width))


# XLA does not count what kernels multiply beyond the border, and counts norms and standardisation.
@pytest.mark.medium
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
    # On images this large the border is a small share.
    blocks = {} if "BiT" in variant else {"depth": 1, "scan": False}
    cfg = config(variant, image_size=(896,), **blocks)
    assert forward_flops(cfg) == pytest.approx(xla_flops(cfg), rel=0.04)


@pytest.mark.medium
@pytest.mark.parametrize("size", [(224, 224), (97, 161)])
def test_flops_of_each_convolution(size):
    """The program's convolutions one by one, from their shapes."""
    cfg = config("BiT-R26x1", image_size=size)
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    program = jax.make_jaxpr(lambda p, x: build(cfg).apply({"params": p}, x))(
        param_shapes(cfg), images
    )

    def convolutions(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "conv_general_dilated":
                kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
                yield out[1] * out[2] * np.prod(kernel)
            for inner in jaxprs_in_params(eqn.params):
                yield from convolutions(inner)

    macs = list(convolutions(program.jaxpr))
    assert len(macs) == 1 + 8 * 3 + 4
    assert forward_flops(cfg) == 2 * (sum(macs) + 2048 * 1000)


@pytest.mark.medium
def test_training_takes_three_forward_passes():
    # The backward pass of the patch embedding needs no gradient of the image: a little less.
    cfg = config("Ti/16", depth=2, scan=False)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)

    def loss(params, x):
        return Vit(cfg).apply({"params": params}, x)[0].sum()

    xla = jax.jit(jax.grad(loss)).lower(param_shapes(cfg), images).cost_analysis()["flops"]
    assert train_flops(cfg) == pytest.approx(xla, rel=0.06)
