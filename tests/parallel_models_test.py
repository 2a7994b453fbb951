"""Every kind of model computes the same on eight devices as on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import campaign, slow
from tests.small_run import mesh_of
from vit_jax.config import base_config
from vit_jax.models import build, param_shapes, read_section
from vit_jax.models.operations import project
from vit_jax.parallel.mesh import batch_sharding
from vit_jax.parallel.rules import param_shardings, path_name

MODELS = {
    "ViT": {
        "variant": "mu/8", "depth": 2, "registers": 4, "distilled": True, "mlp": "swiglu",
        "layer_scale": 0.5, "qk_norm": True, "qk_norm_bias": True, "attn_norm": True,
        "mlp_norm": True, "rope": "dinov3", "lora_rank": 2,
    },
    "hybrid": {"variant": "R26+S/32", "width": 32, "depth": 1, "mlp_dim": 64, "num_heads": 4},
    "ResNet v1": {"variant": "BiT-R26x0.5"},
    "ResNet v2": {"variant": "BiT-R26x0.5"},
    "Mixer": {"variant": "Mixer-S/8", "width": 32, "depth": 2, "mlp_dim": 64, "token_mlp_dim": 24},
}  # fmt: skip
RESNETS = {
    "hybrid": {"units": (1,), "width_factor": 0.5},
    "ResNet v1": {"units": (1, 1), "version": "v1"},
    "ResNet v2": {"units": (1, 1)},
}


def make(name):
    c = base_config().model
    c.update(MODELS[name])
    c.resnet.update(RESNETS.get(name, {}))
    c.image_size = (32, 40)
    return read_section(c, num_classes=16)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("Mixer", (2, 2, 2)),
        slow("ViT", (2, 2, 2)),
        slow("hybrid", (2, 2, 2)),
        slow("ResNet v2", (1, 8, 1)),
        *(campaign(name, (1, 8, 1)) for name in MODELS if name != "ResNet v2"),
        *(campaign(name, (2, 2, 2)) for name in ("ResNet v1", "ResNet v2")),
    ],
)
def test_the_same_gradient_on_any_mesh(name, sizes):
    config = make(name)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, *config.image_size, 3)).astype(np.float32)
    shapes = param_shapes(config)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) * 0.2, shapes)

    def loss(params, x):
        logits, out = build(config).apply({"params": params}, x, train=True)
        assert out["pre_logits"].dtype == jnp.float32
        return jnp.square(jnp.tanh(logits)).mean()

    want = jax.jit(jax.value_and_grad(loss))(params, x)
    mesh = mesh_of(*sizes)
    with jax.set_mesh(mesh):
        layout = param_shardings(shapes, mesh)
        inputs = jax.device_put((params, x), (layout, batch_sharding(mesh)))
        step = jax.jit(jax.value_and_grad(loss), out_shardings=(None, layout))
        lowered = step.lower(*inputs)
        assert "sharding_constraint" in lowered.as_text()
        got = lowered.compile()(*inputs)

    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want[1]))
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(got[1]), jax.tree.leaves(want[1]), strict=True
    ):
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=2e-5 * largest, err_msg=path_name(path)
        )


def test_kernel_gradients_are_summed_in_the_chosen_dtype():
    # Rounded once to bfloat16, a sum of these would be off by up to 2^-9.
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(size=(512, 8)), jnp.bfloat16) for _ in range(2))
    kernel = rng.normal(size=(8, 8)).astype(np.float32)
    exact = np.asarray(x, np.float64).T @ np.asarray(dy, np.float64)
    mesh = mesh_of(8, 1, 1)
    errors = {}
    for dtype in ("bfloat16", "float32"):
        layer = functools.partial(project, axes=1, sum_dtype=dtype)
        with jax.set_mesh(mesh):
            inputs = jax.device_put((x, dy), batch_sharding(mesh))
            (gradient,) = jax.jit(
                lambda x, dy, layer=layer: jax.vjp(lambda kernel: layer(x, kernel), kernel)[1](dy)
            )(*inputs)
        assert gradient.dtype == jnp.float32
        errors[dtype] = np.abs(gradient / exact - 1).max()
    assert errors["float32"] < 1e-4 < errors["bfloat16"] < 0.02
