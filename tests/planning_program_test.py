"""Reading a compiled program: collectives, loops, traffic; and FLOPs of a traced one."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.small_run import mesh_of, small_config
from vit_jax.models import read_section, update_flops_per_image
from vit_jax.planning import kept as kept_module
from vit_jax.planning.collectives import collectives, replica_groups
from vit_jax.planning.flops import traced_flops
from vit_jax.planning.hlo import Hlo, arrays
from vit_jax.planning.kept import kept_arrays
from vit_jax.planning.step import Step, compile_step
from vit_jax.planning.traffic import hbm_bytes
from vit_jax.training.experiment import Experiment, open_training_data


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, x={1}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,4]<=[8], x", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("no groups", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ],
)
def test_replica_groups(text, groups):
    assert replica_groups(text, 8).tolist() == groups


def test_arrays_of_a_shape():
    text = "(bf16[2,3]{1,0:T(8,128)(2,1)}, f32[], /*index=5*/pred[7]{0:S(1)})"
    found = arrays(text)
    assert [(a.dtype, a.dims, a.in_hbm, a.size) for a in found] == [
        ("bf16", (2, 3), True, 12),
        ("f32", (), True, 4),
        ("pred", (7,), False, 7),
    ]


@pytest.fixture(scope="module")
def looped():
    """A program on a mesh of 2 x 4: a sum over each axis, one of them in a loop of 5 iterations."""
    mesh = mesh_of(data=2, fsdp=4)

    def step(x, kernel):
        def body(carry, _):
            y = jax.lax.with_sharding_constraint(carry @ kernel, PartitionSpec("data", None))
            return jnp.tanh(y), None

        y, _ = jax.lax.scan(body, x, None, length=5)
        return y.sum()

    with jax.set_mesh(mesh):
        x = NamedSharding(mesh, PartitionSpec("data", "fsdp"))
        k = NamedSharding(mesh, PartitionSpec("fsdp", None))
        shapes = (
            jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=x),
            jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=k),
        )
        return Hlo.parse(jax.jit(step).lower(*shapes).compile().as_text()), mesh


def test_collectives_are_counted_with_their_loops_axes_and_bytes(looped):
    hlo, mesh = looped
    assert [trips for _, trips in hlo.loops()] == [5]
    found = {(each.kind, each.axes, each.in_loop): each for each in collectives(hlo, mesh)}
    # The batch of a data shard, 8 rows of 64 features in float32, is the sum of 4 products.
    product = found["all-reduce", ("fsdp",), True]
    assert product.executions == 5 and product.devices == 4 and product.dtype == "f32"
    assert product.bytes == 8 * 64 * 4 and product.largest == (8, 64)
    assert product.sent_bytes == 5 * 2 * 8 * 64 * 4 * 3 / 4
    total = next(e for key, e in found.items() if key[0] == "all-reduce" and "data" in key[1])
    assert not total.in_loop and total.bytes == 4


def test_a_reduce_scatter_works_on_its_operand():
    """Of the text of an operation of its own; XLA for TPUs mostly writes a fusion."""
    text = """ENTRY %main (p: f32[64]) -> f32[16] {
  %p = f32[64]{0} parameter(0)
  ROOT %r = f32[16]{0} reduce-scatter(%p), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
}"""
    (found,) = collectives(Hlo.parse(text), mesh_of(data=2, fsdp=4))
    assert (found.kind, found.axes, found.bytes) == ("reduce-scatter", ("fsdp",), 64 * 4)
    assert found.sent_bytes == 64 * 4 * 3 / 4


def test_a_collective_that_overlaps_with_products_counts_once():
    """XLA for TPUs writes it into each fusion from its start to its end."""
    gather = """ROOT %{0} = f32[64]{{0}} all-gather(%p), channel_id=3, replica_groups=[2,4]<=[8], \
dimensions={{0}}, frontend_attributes={{chain_id="{1}"}}"""
    called = "".join(
        f"%fused.{i} (p: f32[16]) -> f32[64] {{\n  %p = f32[16]{{0}} parameter(0)\n"
        f"  {gather.format(f'g{i}', chain)}\n}}\n"
        for i, chain in enumerate((0, 0, 1))
    )
    calls = "".join(f"  %f{i} = f32[64]{{0}} fusion(%p), calls=%fused.{i}\n" for i in range(3))
    text = f"{called}ENTRY %main (p: f32[16]) -> f32[64] {{\n{calls}}}"
    (gathers,) = collectives(Hlo.parse(text), mesh_of(data=2, fsdp=4))
    assert gathers.executions == 2 and gathers.bytes == 64 * 4


def test_traffic_counts_operands_and_results_of_products():
    def step(a, b):
        return (a @ b) @ b

    a, b = jnp.ones((64, 128)), jnp.ones((128, 128))
    hlo = Hlo.parse(jax.jit(step).lower(a, b).compile().as_text())
    # Each product reads [64, 128] and [128, 128] and writes [64, 128].
    assert hbm_bytes(hlo) == 2 * (64 * 128 + 128 * 128 + 64 * 128) * 4


def test_traffic_of_slices_is_that_of_the_slice():
    def step(stack, x):
        def body(carry, kernel):
            return carry @ kernel, carry

        return jax.lax.scan(body, x, stack)

    stack, x = jnp.ones((10, 64, 64)), jnp.ones((8, 64))
    hlo = Hlo.parse(jax.jit(step).lower(stack, x).compile().as_text())
    moved = hbm_bytes(hlo)
    whole = stack.size * 4
    # The stack is read once, not once an iteration; a kernel may be copied before its product.
    assert whole < moved < 4 * whole


def test_traffic_of_asynchronous_operations_counts_once():
    """A call of a computation, and a slice that is copied into the memory of the processor."""
    text = """%gather (a: bf16[16]) -> bf16[64] {
  %a = bf16[16]{0} parameter(0)
  ROOT %g = bf16[64]{0} all-gather(%a), replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (p: bf16[16], q: f32[100]) -> bf16[64] {
  %p = bf16[16]{0} parameter(0)
  %q = f32[100]{0} parameter(1)
  %s = ((f32[100]{0}), f32[10]{0:S(1)}, s32[]{:S(2)}) slice-start(%q), slice={[0:10]}
  %slice = f32[10]{0:S(1)} slice-done(%s)
  %start = ((bf16[16]{0}), bf16[64]{0}) async-start(%p), calls=%gather
  ROOT %done = bf16[64]{0} async-done(%start)
}"""
    assert hbm_bytes(Hlo.parse(text)) == 10 * 4 + (16 + 64) * 2


def test_traffic_of_a_gather_that_products_carry_counts_where_it_starts():
    """What XLA:TPU writes with full effort: a start, a product beside it, and an end."""
    gather = """%{0} = bf16[64]{{0}} all-gather(%a), channel_id=3, replica_groups=[2,4]<=[8], \
dimensions={{0}}, frontend_attributes={{chain_id="1"}}"""
    text = f"""%starts (a: bf16[16]) -> (bf16[64], u32[]) {{
  %a = bf16[16]{{0}} parameter(0)
  {gather.format("g1")}
  ROOT %s = (bf16[64]{{0}}, u32[]{{:S(2)}}) custom-call(%g1), \
custom_call_target="AsyncCollectiveStart"
}}

%carries (a: bf16[16], whole: bf16[64], x: f32[10]) -> (f32[10], bf16[16], bf16[64]) {{
  %x = f32[10]{{0}} parameter(2)
  %y = f32[10]{{0}} multiply(%x, %x)
  %a = bf16[16]{{0}} parameter(0)
  %whole = bf16[64]{{0}} parameter(1)
  {gather.format("g2")}
  ROOT %t = (f32[10]{{0}}, bf16[16]{{0}}, bf16[64]{{0}}, bf16[64]{{0}}) tuple(%y, %a, %whole, %g2)
}}

%ends (a: bf16[16], whole: bf16[64]) -> bf16[64] {{
  %a = bf16[16]{{0}} parameter(0)
  %whole = bf16[64]{{0}} parameter(1)
  {gather.format("g3")}
  ROOT %d = bf16[64]{{0}} custom-call(%a, %whole, %g3), custom_call_target="AsyncCollectiveDone"
}}

ENTRY %main (p: bf16[16], q: f32[10]) -> bf16[64] {{
  %p = bf16[16]{{0}} parameter(0)
  %q = f32[10]{{0}} parameter(1)
  %start = (bf16[64]{{0}}, u32[]{{:S(2)}}) fusion(%p), calls=%starts
  %whole = bf16[64]{{0}} get-tuple-element(%start), index=0
  %beside = (f32[10]{{0}}, bf16[16]{{0}}, bf16[64]{{0}}, bf16[64]{{0}}) fusion(%p, %whole, %q), \
calls=%carries
  %carried = bf16[64]{{0}} get-tuple-element(%beside), index=3
  ROOT %end = bf16[64]{{0}} fusion(%p, %carried), calls=%ends
}}"""
    assert hbm_bytes(Hlo.parse(text)) == (16 + 64) * 2 + (10 + 10) * 4


STEPS = {"mix__mixup_alpha": 0.2, "optim__ema_decay": 0.9}


def step_of(mesh=None, **changes):
    config = small_config(**STEPS, **changes)
    return Step.of(config, mesh or mesh_of(), num_classes=10, num_examples=1442)


@pytest.mark.medium
@pytest.mark.parametrize("remat", ["none", "full"])
def test_traced_flops_are_those_of_the_formula_and_what_is_computed_again(remat):
    step = step_of(model__remat=remat, model__scan=True)
    model = step.model_config
    images = step.config.batch_size
    traced = traced_flops(step.trace().jaxpr) / images
    again = traced - update_flops_per_image(model, step.config)
    tokens, width = model.num_tokens, model.width
    # Attention's weights are computed again in the backward pass, whatever is kept; and there is
    # the gradient of the images, which XLA removes.
    weights = 2 * tokens**2 * width * model.depth + 2 * model.image_size[0] ** 2 * width
    forward = {"none": 0, "full": 2 * tokens * width * (4 * width + model.mlp_dim) * model.depth}
    forward["full"] += 2 * 2 * tokens**2 * width * model.depth
    assert again == pytest.approx(weights + forward[remat], rel=0.02)


@pytest.mark.slow
def test_the_step_is_the_one_that_train_compiles():
    mesh = mesh_of(data=2, fsdp=2)
    step = step_of(mesh)
    with jax.set_mesh(mesh):
        experiment = Experiment.of(step.config, open_training_data(step.config), mesh)
        program = experiment.program()
        trained = program.train_step.lower(program.shapes, step.batch, step.stop)
    planned = step.trace().lower()
    assert planned.as_text() == trained.as_text()
    batch = next(iter(experiment.batches(0, on_bad=None)))
    shapes = {name: (array.shape, array.dtype, array.sharding) for name, array in batch.items()}
    assert shapes == {name: (s.shape, s.dtype, s.sharding) for name, s in step.batch.items()}


@pytest.mark.slow
def test_kept_activations_of_a_scanned_model(monkeypatch):
    monkeypatch.setattr(kept_module, "SMALL", 1)
    scanned = {"model__remat": "dots_no_batch", "model__scan": True, "model__depth": 3}
    step = step_of(mesh_of(data=2), **scanned, batch_size=22)
    hlo = Hlo.parse(compile_step(step, step.trace(), full_effort=False).text)
    images = 11
    kept = kept_arrays(hlo, step.model_config, images=images, state=set(), tensor=1)
    hidden = [each for each in kept if each.what == "hidden units of the MLP"]
    model = step.model_config
    size = model.depth * images * model.num_tokens * model.mlp_dim * 4
    assert hidden and hidden[0].bytes == pytest.approx(size * hidden[0].count)
    assert "hidden" in hidden[0].formula


@pytest.mark.parametrize(
    ("tensor", "dims", "what", "formula"),
    [
        (1, (196, 3072), "hidden units of the MLP", "depth b n hidden"),
        (2, (196, 1536), "hidden units of the MLP", "depth b n hidden/2"),
        (4, (49, 768), "residual stream", "depth b n/4 width"),
        (4, (3, 196, 64), "queries, keys, values, outputs", "depth b heads/4 n head width"),
        (4, (196, 192), "queries, keys, values, outputs", "depth b n width/4"),
        (4, (3, 196, 196), "attention weights", "depth b heads/4 n n"),
        (4, (49,), "statistics of softmax and norms", "depth b n/4"),
        # A quarter of the MLP is as wide as the residual stream.
        (4, (196, 768), "residual stream or hidden units", "depth b n width"),
    ],
)
def test_kept_dimensions_have_the_letters_of_their_part_on_a_device(tensor, dims, what, formula):
    model = read_section(
        small_config(model__variant="B/16", model__image_size=(224,), model__pool="gap",
                     model__depth=None).model, num_classes=10,
    )  # fmt: skip
    shape = f"(s32[], bf16[{','.join(map(str, (model.depth, 2048, *dims)))}])"
    trips = f'{{"known_trip_count":{{"n":"{model.depth}"}}}}'
    text = f"""ENTRY %main (p: {shape}) -> {shape} {{
  ROOT %w = {shape} while(%p), condition=%c, body=%b, backend_config={trips}
}}"""
    (kept,) = kept_arrays(Hlo.parse(text), model, images=2048, state=set(), tensor=tensor)
    assert (kept.what, kept.formula, kept.count) == (what, formula, 1)
