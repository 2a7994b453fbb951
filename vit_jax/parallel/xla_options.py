"""Named sets of XLA's compile options for the train step, by platform: `config.compiler.options`.

They let a chip compute while it communicates, and have no effect on a single one. What they gain is
not measured. A set is complete: it is not added to another. An option may change the order of sums,
and so rounding.

Verified is that the compiler knows each name, which is all that `tests/xla_options_test.py` and a
compilation can show: those for GPUs by jaxlib 0.9.2, 0.10.2, 0.11 and 0.12 (on a CPU, since XLA
has one list for both), those for TPUs by libtpu 0.0.37, which has compiled a small sharded program
for v5e:2x2 and v6e:2x2 with each set. There "overlap" gives the same program as "none" on v5e.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jaxlib

from vit_jax.errors import ConfigError

Options = Mapping[str, bool | int | str]

# Names that jaxlib has from the beginning, up to this version.
_LAST_PIPELINED = (0, 11, 0)
_PIPELINED: Options = {
    # Starts a collective of the next iteration of a loop in this one.
    "xla_gpu_enable_pipelined_all_gather": True,
    "xla_gpu_enable_pipelined_all_reduce": True,
    "xla_gpu_enable_pipelined_reduce_scatter": True,
}
_GPU: Options = {
    "xla_gpu_enable_latency_hiding_scheduler": True,
    # Two buffers for the parameters of a scanned block: one is gathered while the other is used.
    "xla_gpu_enable_while_loop_double_buffering": True,
    # Bytes up to which collectives are combined. A block of ViT-G/14 has 77 MB in bfloat16.
    "xla_gpu_all_gather_combine_threshold_bytes": 2**27,
    "xla_gpu_all_reduce_combine_threshold_bytes": 2**27,
    "xla_gpu_reduce_scatter_combine_threshold_bytes": 2**27,
    **(_PIPELINED if jaxlib.version.__version_info__ <= _LAST_PIPELINED else {}),
}
_TPU: Options = {
    "xla_enable_async_all_gather": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    # All-reduces of gradients over replicas run beside the backward pass.
    "xla_tpu_enable_data_parallel_all_reduce_opt": True,
    "xla_tpu_data_parallel_opt_different_sized_ops": True,
}

SETS: Mapping[str, Mapping[str, Options]] = {
    "none": {},
    "overlap": {"gpu": _GPU, "tpu": _TPU},
    # Splits a product with a gathered or scattered operand into steps, and sends between them.
    "collective_matmul": {
        "gpu": {
            **_GPU,
            "xla_gpu_threshold_for_windowed_einsum_mib": 0,
            "xla_gpu_multi_streamed_windowed_einsum": True,
        },
        "tpu": {
            **_TPU,
            "xla_tpu_decompose_all_gather_einsum": True,
            "xla_tpu_decompose_einsum_reduce_scatter": True,
        },
    },
    # Collectives on the sparse cores, which v5p, v6e and v7x have beside their tensor cores.
    "sparse_core": {
        "tpu": {
            **_TPU,
            "xla_tpu_enable_async_collective_fusion_fuse_all_gather": False,
            "xla_tpu_enable_sparse_core_collective_offload_all_gather": True,
            "xla_tpu_enable_sparse_core_collective_offload_all_reduce": True,
            "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
            "xla_tpu_use_tc_device_shape_on_sc": True,
        }
    },
}


def compiler_options(name: str, platform: str) -> dict[str, Any]:
    """Returns the options of a set, for `compile(compiler_options=...)`.

    Args:
      name: a key of SETS.
      platform: of the devices of the program: "gpu", "tpu" or "cpu"; of those without options in
        the set the result is empty, so that a run may continue elsewhere.
    """
    return dict(SETS[name].get(platform, {}))


@contextmanager
def reported() -> Iterator[None]:
    """Turns the error of a compiler that lacks an option into a ConfigError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        raise ConfigError(
            f"{error} Another version of the compiler had it: set --config.compiler.options=none."
        ) from error
