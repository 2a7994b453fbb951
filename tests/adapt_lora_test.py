"""LoRA: it begins as the model that it adapts, trains adapters and head alone, and merges."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.conftest import slow
from tests.small_models import apply, images, random_params
from tests.small_run import mesh_of, run, small_config
from vit_jax.checkpoints.load import load_run
from vit_jax.models import VitConfig, build, forward_flops, param_shapes, read_section
from vit_jax.models.lora import merge_lora
from vit_jax.optim import make_optimizer
from vit_jax.parallel.rules import param_shardings, path_name
from vit_jax.pretrained.load import load_pretrained
from vit_jax.training.init_from import inherit_model, inherit_params

CFG = VitConfig(
    image_size=(8, 8), patch_size=(4, 4), num_classes=10, width=32, depth=2, mlp_dim=64,
    num_heads=4, lora_rank=3, lora_alpha=6.0,
)  # fmt: skip
FREEZE = ("(?!head/|.*_lora/).*",)


def paths(tree):
    return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.medium
@pytest.mark.parametrize(
    ("pool", "scan"), [("token", False), ("map", True), slow("token", True), slow("map", False)]
)
def test_merged_it_says_the_same(scan, pool):
    cfg = dataclasses.replace(CFG, scan=scan, pool=pool)
    params = jax.tree.map(jnp.asarray, random_params(cfg))
    merged, plain = merge_lora(params, cfg)
    assert plain.lora_rank == 0
    assert paths(merged).keys() == paths(param_shapes(plain)).keys()
    want, _ = apply(cfg, params, images(cfg))
    got, _ = apply(plain, merged, images(cfg))
    np.testing.assert_allclose(got, want, atol=2e-5)
    base = {k: v for k, v in paths(params).items() if "_lora/" not in k}
    assert np.abs(paths(merged)["encoder/norm/scale"] - base["encoder/norm/scale"]).max() == 0
    unadapted = jax.tree_util.tree_map_with_path(lambda p, _: base[path_name(p)], merged)
    without, _ = apply(plain, unadapted, images(cfg))
    assert np.abs(without - want).max() > 0.01
    assert merge_lora(merged, plain) == (merged, plain)


@pytest.mark.medium
def test_it_begins_as_the_model_without_adapters():
    """Bit by bit: whatever was random there is as random here, and B is zero."""
    plain = dataclasses.replace(CFG, lora_rank=0)
    x = images(CFG)
    adapted, before = (
        jax.jit(build(cfg).init)(jax.random.key(0), x)["params"] for cfg in (CFG, plain)
    )
    ours, theirs = paths(adapted), paths(before)
    for name, leaf in theirs.items():
        np.testing.assert_array_equal(ours[name], leaf, err_msg=name)
    added = ours.keys() - theirs.keys()
    assert len(added) == 8 and all(np.any(ours[k]) == k.endswith("/a") for k in added)
    width, rank = CFG.width, CFG.lora_rank
    assert sum(ours[k].size for k in added) == CFG.depth * 4 * 2 * width * rank
    more = forward_flops(CFG) - forward_flops(plain)
    assert more == 2 * CFG.depth * CFG.num_tokens * 8 * width * rank


def test_only_what_is_trained_has_optimizer_state():
    config = small_config(optim__freeze=FREEZE).optim
    shapes = param_shapes(CFG)
    tx = make_optimizer(config, shapes, schedule=lambda step: 1.0)
    state = jax.eval_shape(tx.init, shapes)
    held = {name for name in paths(shapes) if any(k.endswith(name) for k in paths(state))}
    assert held == {n for n in paths(shapes) if n.startswith("head/") or "_lora/" in n}


@pytest.mark.medium
def test_adapters_are_split_as_their_kernels():
    mesh = mesh_of(2, 2, 2)
    params = random_params(CFG)
    layout = param_shardings(params, mesh)
    specs = {name: tuple(x.spec) for name, x in paths(layout).items() if "_lora/" in name}
    where = "encoder/blocks/attn"
    assert specs[f"{where}/query_lora/a"] == (None, "fsdp", None)
    assert specs[f"{where}/query_lora/b"] == (None, None, "tensor", None)
    assert specs[f"{where}/out_lora/a"] == (None, "tensor", None, None)
    assert specs[f"{where}/out_lora/b"] == (None, None, "fsdp")

    want, _ = apply(CFG, params, images(CFG))
    with jax.set_mesh(mesh):
        got, _ = apply(CFG, jax.device_put(params, layout), images(CFG))
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.slow
def test_a_run_adapts_a_run(tmp_path):
    """Adapters and head learn, the rest stays; then it is a checkpoint like any other."""
    first = {"total_steps": 3, "model__scan": False, "evals": ConfigDict()}
    run(tmp_path / "first", **first)
    changes = {
        "init_from": str(tmp_path / "first"), "model__variant": "", "model__depth": None,
        "optim__freeze": FREEZE, "optim__weight_decay": 0.0, "model__lora_rank": 2,
        "evals": ConfigDict(), "total_steps": 3,
    }  # fmt: skip
    run(tmp_path / "second", **changes)
    mesh = mesh_of()
    before = load_pretrained(str(tmp_path / "first"))
    adapted = load_run(tmp_path / "second", mesh=mesh)
    assert np.abs(adapted.params["encoder"]["blocks"]["attn"]["value_lora"]["b"]).max() > 0
    np.testing.assert_array_equal(
        adapted.params["encoder"]["blocks"]["attn"]["value"]["kernel"][1],
        before.params["encoder"]["block_1"]["attn"]["value"]["kernel"],
    )

    merged = load_pretrained(str(tmp_path / "second"))
    assert merged.config.lora_rank == 0
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 1)), jnp.float32)
    got, _ = apply(merged.config, merged.params, x)
    cfg = dataclasses.replace(merged.config, lora_rank=2)
    want, _ = apply(cfg, adapted.params, x)
    np.testing.assert_allclose(got, want, atol=1e-5)

    # Starting from it: its adapters are part of the kernels.
    again = small_config(**changes | {"init_from": str(tmp_path / "second")})
    again = inherit_model(again, tmp_path / "third")
    cfg = read_section(again.model, num_classes=10)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), param_shapes(cfg))
    with jax.set_mesh(mesh):
        fresh = jax.device_put(zeros, param_shardings(zeros, mesh))
        third, _ = inherit_params(again, cfg, fresh, mesh=mesh)
    np.testing.assert_array_equal(
        third["encoder"]["blocks"]["attn"]["value"]["kernel"],
        merged.params["encoder"]["blocks"]["attn"]["value"]["kernel"],
    )
