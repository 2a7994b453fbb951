"""Programs of TPU pods, compiled without a TPU where libtpu is installed: what moves between chips.

XLA for CPUs has no reduce-scatter and gathers in float32, so its programs prove nothing of this.
"""

import collections
import math

import pytest

from vit_jax.config import base_config, freeze
from vit_jax.parallel.mesh import make_mesh
from vit_jax.planning import topology
from vit_jax.planning.collectives import SCATTER
from vit_jax.planning.hlo import Hlo
from vit_jax.planning.step import Step, compile_step

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tpu_compiler")]
WIDTH, HIDDEN, TOKENS, BATCH = 1024, 4096, 256, 512


def moved_by_step(name, **changes):
    """{(kind, dtype): sizes in elements} of the arrays that the train step's collectives return."""
    c = base_config()
    c.batch_size, c.total_steps = BATCH, 10
    c.model.update({
        "variant": "L/14", "depth": 2, "pool": "gap", "dtype": "bfloat16", "remat": "named",
    })  # fmt: skip
    c.model.update({k: v for k, v in changes.items() if k not in c.mesh})
    c.mesh.update({k: v for k, v in changes.items() if k in c.mesh})
    mesh = make_mesh(c.mesh, devices=topology.devices(topology.parse(name)))
    step = Step.of(freeze(c), mesh, num_classes=1000, num_examples=1000)
    assert step.model_config.num_tokens == TOKENS
    found = collections.defaultdict(list)
    hlo = Hlo.parse(compile_step(step, step.trace(), full_effort=False).text)
    for instruction, computation, _ in hlo.executed():
        kind = instruction.opcode.removesuffix("-start")
        if kind in ("all-gather", "all-reduce"):
            kind = "reduce-scatter" if computation.startswith(SCATTER) else kind
            for array in instruction.results:
                found[kind, array.dtype].append(math.prod(array.dims))
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_kernels_are_gathered_in_bfloat16_and_their_gradients_scattered(dtype):
    moved = moved_by_step("v5e:16x16", data=16, fsdp=16, grad_sum_dtype=dtype)
    kernels = {WIDTH * WIDTH, WIDTH * HIDDEN}
    chosen, other = ("bf16", "f32") if dtype == "bfloat16" else ("f32", "bf16")
    assert kernels <= set(moved["all-gather", "bf16"])
    assert kernels.isdisjoint(moved["all-gather", "f32"])
    assert kernels <= set(moved["reduce-scatter", chosen])
    assert kernels.isdisjoint(moved["reduce-scatter", other])
    # Attention's four projections and the two of the MLP.
    assert sum(size in kernels for size in moved["reduce-scatter", chosen]) == 6
    # Only sums over data of what was scattered, embeddings and vectors.
    assert max(moved["all-reduce", "bf16"] + moved["all-reduce", "f32"]) < WIDTH * WIDTH


@pytest.mark.parametrize("parallel", [False, True])
def test_the_residual_stream_is_split_over_tensor(parallel):
    moved = moved_by_step("v5e:16x16", data=4, fsdp=8, tensor=8, parallel=parallel)
    stream = BATCH // 32 * TOKENS * WIDTH
    assert max(moved["all-reduce", "bf16"] + moved["all-reduce", "f32"]) < stream
    # The outputs of both branches, or of a parallel block their sum; and as many gradients.
    assert moved["reduce-scatter", "bf16"].count(stream) == (2 if parallel else 4)
    assert stream in moved["all-gather", "bf16"]
    assert max(moved["all-gather", "f32"]) < stream
