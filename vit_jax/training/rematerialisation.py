"""Chooses what the backward pass recomputes, by the memory of the devices: `model.remat="auto"`.

The choice is a function of the config, the mesh and the memory of a device, made before anything is
compiled: the first of `POLICIES` whose estimate (`vit_jax.training.memory`) leaves a margin. Losses
do not depend on it but for rounding, so a run may continue with another one on other devices.

XLA's count for TPU v5e (arguments and temporaries; compiled ahead of time without a TPU and with
`JAX_EXEC_TIME_OPTIMIZATION_EFFORT=-1.0`, jax 0.9.2, libtpu 0.0.37; bfloat16, 224 pixels), as a
share of the estimate without the batches ahead:

                                              none   named  dots_no_batch  full
    B/16, 64 images, AdamW                    1.18   1.19   1.18           1.15
    L/16, 32 images, AdamW                    1.17   1.14   1.12           1.02
    L/16, 64 images, AdamW, data 2, fsdp 4    1.18   1.15   -              1.03
    g/14, 32 images, Adafactor, fsdp 8        1.29   1.29   -              1.15
    Mixer-B/16, 64 images, AdamW              1.02    .97   -              1.03
    L/16, 32 images, AdamW, accumulating 4    -      -      -              1.12

and for v5p: G/14, 32 images, data 16, fsdp 8, tensor 4, named 1.05; 22B, 64 images, data 8, fsdp 8,
tensor 8, full 1.24. docs/planning.md has more with tensor.

The most that is alive at once, without the gaps between arrays, is .78 to 1.13 of the estimate. Not
measured on a GPU.
"""

from typing import Any

from jax.sharding import AbstractMesh, Mesh
from ml_collections import FrozenConfigDict

from vit_jax.models import ModelConfig, with_remat
from vit_jax.telemetry.chips import GIB, memory_bytes
from vit_jax.telemetry.notes import note
from vit_jax.training.memory import bytes_per_device

AUTO = "auto"  # The value of config.model.remat.

# From the least recomputation to the most. "dots" is none of them: it keeps the attention matrix,
# and with it as much as "none".
POLICIES = ("none", "named", "dots_no_batch", "full")

# An estimate fits if it is at most this share of a device's memory. The rest is for what XLA
# allocates beyond the estimate, and for what cannot be allocated in one piece.
SHARE = 0.75


def resolve(
    config: FrozenConfigDict, model_config: ModelConfig, mesh: Mesh
) -> tuple[ModelConfig, str]:
    """Returns the model with a policy in the place of "auto", and how it was chosen.

    Args:
      config: the config of the run.
      model_config: the config of its model; returned unchanged unless its `remat` is "auto".
      mesh: the mesh of the run's devices.

    Returns:
      The model's config, and a few words such as "auto: 31.2 of 56.2 GiB, 75% of a device's memory;
      none would take 96.3"; "" if there was nothing to choose by.
    """
    return resolve_for(config, model_config, mesh, available_bytes(mesh.local_devices[0]))


def resolve_for(
    config: FrozenConfigDict,
    model_config: ModelConfig,
    mesh: Mesh | AbstractMesh,
    available: int | None,
) -> tuple[ModelConfig, str]:
    """Returns the same as `resolve`, for devices with `available` bytes of memory."""
    if getattr(model_config, "remat", None) != AUTO:
        return model_config, ""
    policy, reason = choose(config, model_config, mesh, available)
    return with_remat(model_config, policy), reason


def available_bytes(device: Any) -> int | None:
    """Returns the memory that programs have on a `jax.Device`; None: it is unknown, or a CPU's.

    That of a TPU is known from its kind alone: a plan made without the TPU is that of the run.
    """
    known = memory_bytes(device.device_kind)
    if device.platform == "tpu" and known:
        return known
    if device.platform == "cpu":
        return None
    statistics = device.memory_stats() or {}  # None: the back end has no such statistics.
    return statistics.get("bytes_limit") or known


def choose(
    config: FrozenConfigDict,
    model_config: ModelConfig,
    mesh: Mesh | AbstractMesh,
    available: int | None,
) -> tuple[str, str]:
    """Returns the policy for devices with `available` bytes of memory, and how it was chosen.

    Without a known memory it is "none". If no policy fits it is "full", and a note says what to
    lower.

    Args:
      config: the config of the run.
      model_config: the config of its model, which has a `remat`.
      mesh: the mesh of the run's devices.
      available: memory of one device in bytes; None: unknown.
    """
    if available is None or config.cache_features:  # Then no gradient passes through the blocks.
        return "none", ""
    sizes, budget = estimates(config, model_config, mesh, available), SHARE * available
    *_, policy = sizes
    if sizes[policy] > budget:
        note(
            f"The run is estimated to take {_gib(sizes[policy])} GiB of each device's memory "
            f"of {_gib(available)} GiB, although the backward pass recomputes everything "
            f"(model.remat={policy}): it may run out of memory. Lower batch_size, raise "
            "optim.accum_steps, or split the parameters over more devices by mesh.fsdp."
        )
    least = f"; none would take {_gib(sizes['none'])}" if policy != "none" else ""
    return policy, (
        f"{AUTO}: {_gib(sizes[policy])} of {_gib(budget)} GiB, {SHARE:.0%} of a device's memory"
        f"{least}"
    )


def estimates(
    config: FrozenConfigDict, model_config: ModelConfig, mesh: Mesh | AbstractMesh, available: int
) -> dict[str, int]:
    """Returns the estimated bytes of each policy up to the first that fits, or of all if none does.

    The arguments are those of `choose`.
    """
    sizes: dict[str, int] = {}
    for policy in POLICIES:
        sizes[policy] = bytes_per_device(config, with_remat(model_config, policy), mesh)
        if sizes[policy] <= SHARE * available:
            break
    return sizes


def _gib(count: int | float) -> str:
    return f"{count / GIB:.1f}"
