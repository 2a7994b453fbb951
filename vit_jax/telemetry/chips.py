"""The accelerators that ViTs are trained on: peak, memory and bandwidth, with their sources.

NVIDIA's numbers were compared with pages that quote the data sheets, not with the sheets (2026),
and the bandwidth of the A100 80 GB PCIe with none. Those of TPUs were compared with Google's pages,
except the bandwidth of TPU7x, and a test compares all of them with JAX's own table.
"""

import dataclasses

GB, GIB = 10**9, 2**30

_A100 = "NVIDIA A100 Tensor Core GPU data sheet, 2021"
_H100 = "NVIDIA H100 Tensor Core GPU data sheet, 2023; half of its figures with sparsity"
_TPU = "docs.cloud.google.com/tpu/docs/"


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a data sheet says of one chip.

    Attributes:
      name: of the chip.
      kinds: values of JAX's `device.device_kind`; TPUs have an older and a newer name.
      bf16_flops: dense bfloat16 FLOP/s, without sparsity; a multiply-add counts as two.
      memory_bytes: of its HBM.
      bandwidth: of its HBM, bytes per second.
      source: data sheet or page, and its year.
      devices: JAX's devices on one chip.
    """

    name: str
    kinds: tuple[str, ...]
    bf16_flops: float
    memory_bytes: int
    bandwidth: float
    source: str
    devices: int = 1


CHIPS = (
    Chip("A100 40 GB SXM", ("NVIDIA A100-SXM4-40GB",), 312e12, 40 * GB, 1555e9,
         "NVIDIA A100 Tensor Core GPU data sheet, 2020"),
    Chip("A100 40 GB PCIe", ("NVIDIA A100-PCIE-40GB",), 312e12, 40 * GB, 1555e9,
         "NVIDIA A100 Tensor Core GPU data sheet, 2020"),
    Chip("A100 80 GB SXM", ("NVIDIA A100-SXM4-80GB",), 312e12, 80 * GB, 2039e9, _A100),
    Chip("A100 80 GB PCIe", ("NVIDIA A100 80GB PCIe",), 312e12, 80 * GB, 1935e9, _A100),
    Chip("H100 SXM", ("NVIDIA H100 80GB HBM3",), 989e12, 80 * GB, 3350e9, _H100),
    Chip("H100 PCIe", ("NVIDIA H100 PCIe",), 756e12, 80 * GB, 2000e9, _H100),
    Chip("H200 SXM", ("NVIDIA H200",), 989e12, 141 * GB, 4800e9,
         "NVIDIA H200 Tensor Core GPU data sheet, 2024; half of its figures with sparsity"),
    Chip("B200", ("NVIDIA B200",), 2250e12, 180 * GB, 8000e9,
         "NVIDIA DGX B200 data sheet, 2024, an eighth; half of its figures with sparsity"),
    Chip("TPU v3", ("TPU v3",), 123e12, 32 * GIB, 900e9, f"{_TPU}v3, 2026", devices=2),
    Chip("TPU v4", ("TPU v4",), 275e12, 32 * GIB, 1200e9, f"{_TPU}v4, 2026"),
    # Their pages write GB; the compilers for v5e and v6e offer 15.75 and 31.25 GiB.
    Chip("TPU v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, f"{_TPU}v5e, 2026"),
    Chip("TPU v5p", ("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2765e9, f"{_TPU}v5p, 2026"),
    Chip("TPU v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1638e9, f"{_TPU}v6e, 2026"),
    Chip("TPU7x", ("TPU7x",), 2307e12, 192 * GIB, 7380e9, f"{_TPU}tpu7x, 2026", devices=2),
)  # fmt: skip

_BY_KIND = {kind: chip for chip in CHIPS for kind in chip.kinds}


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip of a device.

    Names must match exactly: a slice of a GPU ("NVIDIA H200 MIG 1g.18gb") or a slower board with a
    similar name is not in the table, because a wrong utilisation is worse than none.

    Args:
      device_kind: `jax.devices()[0].device_kind`.

    Returns:
      The chip, or None if it is not in the table.
    """
    return _BY_KIND.get(device_kind)


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak dense bfloat16 FLOP/s of one device, also for runs in another dtype.

    Args:
      device_kind: `jax.devices()[0].device_kind`.

    Returns:
      FLOP/s, or None if the peak is unknown: see `chip_of`.
    """
    chip = chip_of(device_kind)
    return None if chip is None else chip.bf16_flops / chip.devices


def memory_bytes(device_kind: str) -> int | None:
    """Returns the memory of one device by its data sheet, of which a program gets a little less.

    Args:
      device_kind: `jax.devices()[0].device_kind`.

    Returns:
      Bytes, or None if the chip is unknown: see `chip_of`.
    """
    chip = chip_of(device_kind)
    return None if chip is None else chip.memory_bytes // chip.devices
