"""Shardings: every parameter follows its rule; nothing large is replicated by accident."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from ml_collections import ConfigDict

from vit_jax.config import base_config
from vit_jax.errors import ConfigError
from vit_jax.models import Vit, param_shapes, read_section
from vit_jax.optim import make_optimizer
from vit_jax.parallel import rules
from vit_jax.parallel.constraints import constrain
from vit_jax.parallel.mesh import check_batch_size, make_mesh, mesh_shape


def mesh(**sizes):
    sizes = {"data": 1, "fsdp": 1, "tensor": 1} | sizes
    return make_mesh(ConfigDict(sizes), devices=jax.devices()[: int(np.prod([*sizes.values()]))])


def model_config(variant="B/16", **changes):
    c = base_config()
    c.model.variant = variant
    c.model.update(changes)
    return read_section(c.model, num_classes=1000)


EVERY_PARAMETER = [
    {"pool": "token", "rep_size": -1},
    {"pool": "map", "scan": False, "depth": 2},
    {"variant": "22B/14", "pool": "map"},
    {"registers": 4, "distilled": True, "mlp": "swiglu", "layer_scale": 1e-4, "qk_norm": True,
     "qk_norm_bias": True, "attn_norm": True, "mlp_norm": True, "pre_norm": True,
     "final_norm": "pooled"},
    {"variant": "R50+L/32"},
    {"lora_rank": 8},
]  # fmt: skip
# Without heads there is nothing for the axis tensor.
WITHOUT_HEADS = [{"variant": "BiT-R50x3"}, {"variant": "Mixer-L/16"}, {"variant": "Mixer-B/32"}]


@pytest.mark.medium
@pytest.mark.parametrize("changes", EVERY_PARAMETER + WITHOUT_HEADS)
def test_large_parameters_are_split_over_all_their_axes(changes):
    shapes = param_shapes(model_config(**changes))
    grid = mesh(fsdp=4, tensor=2)
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        name = rules.path_name(path)
        spec = rules.partition_spec(name, leaf.shape, grid)
        local = jax.sharding.NamedSharding(grid, spec).shard_shape(leaf.shape)
        share = np.prod(local) / leaf.size
        if leaf.ndim >= 2 and name.endswith("kernel") and leaf.size >= rules.LARGE:
            inner = "/attn/" in name or "/mlp/" in name
            assert share == (1 / 8 if inner else 1 / 4), name
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    local_total = sum(
        np.prod(sharding.shard_shape(leaf.shape))
        for leaf, sharding in zip(
            jax.tree.leaves(shapes),
            jax.tree.leaves(rules.param_shardings(shapes, grid)),
            strict=True,
        )
    )
    assert local_total < total / (3.8 if changes in WITHOUT_HEADS else 6.5)


@pytest.mark.medium
def test_every_rule_matches_some_parameter():
    names = {
        rules.path_name(path)
        for changes in EVERY_PARAMETER + WITHOUT_HEADS
        for path, _ in jax.tree_util.tree_leaves_with_path(param_shapes(model_config(**changes)))
    }
    import re

    for pattern, *splits in rules.RULES:
        assert any(re.fullmatch(pattern, name) for name in names), pattern
        axes = {axis for split in splits for axis in split}
        assert axes <= {None, "fsdp", "tensor", ("tensor", "fsdp")}


def test_a_misspelt_rule_is_an_error_and_does_not_replicate(monkeypatch):
    # Silent failure: a parameter without a matching rule would be replicated on every device.
    misspelt = tuple((p.replace("fc1", "fc_1"), *splits) for p, *splits in rules.RULES)
    monkeypatch.setattr(rules, "RULES", misspelt)
    with pytest.raises(ConfigError, match=r"No sharding rule matches .*mlp/fc1/kernel"):
        rules.param_shardings(param_shapes(model_config()), mesh(fsdp=8))


def test_a_dimension_that_does_not_split_is_an_error_if_large():
    shapes = param_shapes(model_config("Ti/16", num_heads=3))
    with pytest.raises(ConfigError, match=r"does not split over mesh.tensor=2"):
        rules.param_shardings(shapes, mesh(tensor=2))
    small = rules.partition_spec("encoder/blocks/attn/query/kernel", (2, 6, 3, 2), mesh(tensor=2))
    assert small == PartitionSpec(None, "fsdp", None, None)


@pytest.mark.parametrize(
    ("heads", "want"),
    [(16, (None, ("tensor", "fsdp"), None, None)), (6, (None, "tensor", None, "fsdp"))],
)
def test_the_output_projection_is_split_over_heads_where_they_divide(heads, want):
    name, shape = "encoder/blocks/attn/out/kernel", (24, heads, 64, 1024)
    assert rules.partition_spec(name, shape, mesh(fsdp=4, tensor=2)) == PartitionSpec(*want)


@pytest.mark.medium
@pytest.mark.parametrize("variant", ["B/16", "R50+B/16", "BiT-R50x1", "Mixer-B/16"])
@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "lion", "lamb", "muon"])
def test_optimizer_state_is_split_like_its_parameters(name, variant):
    c = base_config()
    c.optim.name = name
    shapes, grid = param_shapes(model_config(variant)), mesh(fsdp=4, tensor=2)
    tx = make_optimizer(c.optim, shapes, schedule=lambda step: 1.0)
    state = jax.eval_shape(tx.init, shapes)
    layout = rules.state_shardings(state, shapes, grid)
    sizes = jax.tree.leaves(jax.tree.map(lambda leaf: leaf.size, state))
    local = [
        int(np.prod(sharding.shard_shape(leaf.shape)))
        for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(layout), strict=True)
    ]
    heads = variant in ("B/16", "R50+B/16")
    assert sum(local) < sum(sizes) / (5 if heads else 3.5)
    assert max(here for here, size in zip(local, sizes, strict=True) if here == size) < rules.LARGE


def test_a_large_state_without_a_parameter_is_an_error():
    shapes = {"head": {"kernel": jax.ShapeDtypeStruct((1024, 1000), jnp.float32)}}
    state = {"odd": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
    with pytest.raises(ConfigError, match="too large to replicate"):
        rules.state_shardings(state, shapes, mesh(fsdp=2))
    rules.state_shardings(state, shapes, mesh(data=2))  # Without fsdp everything is replicated.


@pytest.mark.medium
def test_constraints_are_in_the_lowered_program():
    # Under `with mesh:` or without a current mesh, constraints have no effect, silently.
    config = model_config("mu/16", image_size=(32,), depth=2)
    x = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)
    shapes = param_shapes(config)

    def lower():
        return (
            jax.jit(lambda p, x: Vit(config).apply({"params": p}, x)[0]).lower(shapes, x).as_text()
        )

    with jax.set_mesh(mesh(data=2, fsdp=2, tensor=2)):
        text = lower()
    assert "sharding_constraint" in text
    # Heads and MLP over tensor, batches over data and fsdp.
    assert '{"data", "fsdp"}, {}, {"tensor"}' in text
    assert '{"data", "fsdp"}, {}, {"tensor"}, {}' in text
    assert "sharding_constraint" not in lower()


@pytest.mark.parametrize(
    ("axes", "lacking"),
    [(("x",), "data, fsdp, tensor"), (("data", "tensor", "FSDP"), "fsdp")],
)
def test_a_mesh_without_our_axes_is_refused(axes, lacking):
    other = jax.make_mesh(
        (2, *[1] * (len(axes) - 1)), axes, axis_types=(AxisType.Auto,) * len(axes),
        devices=jax.devices()[:2],
    )  # fmt: skip
    message = f"has the axes {', '.join(axes)} and lacks {lacking}: .*parallel.mesh.make_mesh"
    with jax.set_mesh(other), pytest.raises(ConfigError, match=message):
        constrain(jnp.zeros((2, 2)), "data", None)
    # Also a parameter that is split over no axis.
    with pytest.raises(ConfigError, match=message):
        rules.param_shardings({"bias": np.zeros(3)}, other)


def test_a_mesh_may_have_more_axes():
    axes = ("data", "fsdp", "tensor", "pipeline")
    more = jax.make_mesh((1, 2, 1, 1), axes, axis_types=(AxisType.Auto,) * 4,
                         devices=jax.devices()[:2])  # fmt: skip
    specs = rules.param_shardings({"head": {"kernel": np.zeros((4, 3))}}, more)
    assert specs["head"]["kernel"].spec == PartitionSpec("fsdp", None)


@pytest.mark.parametrize(
    ("sizes", "devices", "want"),
    [
        ({"data": -1}, 8, (8, 1, 1)),
        ({"data": -1, "fsdp": 2, "tensor": 2}, 8, (2, 2, 2)),
        ({"data": 1, "fsdp": -1}, 8, (1, 8, 1)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 8, (2, 2, 2)),
    ],
)
def test_mesh_sizes(sizes, devices, want):
    sizes = {"data": 1, "fsdp": 1, "tensor": 1} | sizes
    assert tuple(mesh_shape(ConfigDict(sizes), devices).values()) == want


@pytest.mark.parametrize(
    "sizes", [{"data": 3}, {"data": -1, "fsdp": -1}, {"data": 0}, {"data": 2}, {"tensor": 16}]
)
def test_mesh_sizes_that_do_not_fit(sizes):
    sizes = {"data": 1, "fsdp": 1, "tensor": 1} | sizes
    with pytest.raises(ConfigError, match=r"mesh\.data="):
        mesh_shape(ConfigDict(sizes), 8)


def test_batch_sizes_that_do_not_split():
    check_batch_size(32, accum_steps=2, mesh=mesh(data=2, fsdp=2, tensor=2))
    with pytest.raises(ConfigError, match=r"multiple of 8, such as 8 or 16"):
        check_batch_size(12, accum_steps=2, mesh=mesh(data=4))
    with pytest.raises(ConfigError, match=r"multiple of 8, such as 8\.$"):
        check_batch_size(4, accum_steps=2, mesh=mesh(data=4))
