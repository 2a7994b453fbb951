"""The accelerators that ViTs are trained on: peak, memory and bandwidths, with their sources.

NVIDIA's numbers were compared with pages that quote the data sheets, not with the sheets (2026),
and the bandwidth of the A100 80 GB PCIe with none. Those of TPUs were compared with Google's pages,
except those of TPU v3 and v4 that are marked and the bandwidth of TPU7x; a test compares peak,
memory and bandwidth with JAX's own table. What the TPU compilers offer to programs was read from
their refusals (libtpu 0.0.37).
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
      links: bytes per second of all its links to other chips of its slice or node (ICI, NVLink),
        in both directions together.
      ports: number of these links: two for each axis of a TPU's torus; 1: a switch.
      network: bytes per second of its share of the data centre's network, in one direction; of GPUs
        that of NVIDIA's own nodes.
      program_bytes: memory that the compiler offers to a program on one device; 0: unknown.
    """

    name: str
    kinds: tuple[str, ...]
    bf16_flops: float
    memory_bytes: int
    bandwidth: float
    source: str
    devices: int = 1
    links: float = 0.0
    ports: int = 1
    network: float = 0.0
    program_bytes: int = 0


CHIPS = (
    Chip("A100 40 GB SXM", ("NVIDIA A100-SXM4-40GB",), 312e12, 40 * GB, 1555e9,
         "NVIDIA A100 Tensor Core GPU data sheet, 2020", links=600e9, network=25e9),
    Chip("A100 40 GB PCIe", ("NVIDIA A100-PCIE-40GB",), 312e12, 40 * GB, 1555e9,
         "NVIDIA A100 Tensor Core GPU data sheet, 2020", links=64e9, network=25e9),
    Chip("A100 80 GB SXM", ("NVIDIA A100-SXM4-80GB",), 312e12, 80 * GB, 2039e9, _A100,
         links=600e9, network=25e9),
    Chip("A100 80 GB PCIe", ("NVIDIA A100 80GB PCIe",), 312e12, 80 * GB, 1935e9, _A100,
         links=64e9, network=25e9),
    Chip("H100 SXM", ("NVIDIA H100 80GB HBM3",), 989e12, 80 * GB, 3350e9, _H100,
         links=900e9, network=50e9),
    Chip("H100 PCIe", ("NVIDIA H100 PCIe",), 756e12, 80 * GB, 2000e9, _H100,
         links=128e9, network=50e9),
    Chip("H200 SXM", ("NVIDIA H200",), 989e12, 141 * GB, 4800e9,
         "NVIDIA H200 Tensor Core GPU data sheet, 2024; half of its figures with sparsity",
         links=900e9, network=50e9),
    Chip("B200", ("NVIDIA B200",), 2250e12, 180 * GB, 8000e9,
         "NVIDIA DGX B200 data sheet, 2024, an eighth; half of its figures with sparsity",
         links=1800e9, network=50e9),
    # Links of TPU v3 and v4: How to Scale Your Model (Austin et al. 2025), chapter 2. Their network
    # was found on no page: that of v5e.
    Chip("TPU v3", ("TPU v3",), 123e12, 32 * GIB, 900e9, f"{_TPU}v3, 2026", devices=2,
         links=800e9, ports=4, network=3.1e9, program_bytes=int(15.48 * GIB)),
    Chip("TPU v4", ("TPU v4",), 275e12, 32 * GIB, 1200e9, f"{_TPU}v4, 2026",
         links=540e9, ports=6, network=3.1e9, program_bytes=int(30.75 * GIB)),
    Chip("TPU v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, f"{_TPU}v5e, 2026",
         links=400e9, ports=4, network=3.1e9, program_bytes=int(15.75 * GIB)),
    Chip("TPU v5p", ("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2765e9, f"{_TPU}v5p, 2026",
         links=1200e9, ports=6, network=6.25e9, program_bytes=int(95.74 * GIB)),
    Chip("TPU v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1638e9, f"{_TPU}v6e, 2026",
         links=800e9, ports=4, network=12.5e9, program_bytes=int(31.25 * GIB)),
    Chip("TPU7x", ("TPU7x",), 2307e12, 192 * GIB, 7380e9, f"{_TPU}tpu7x, 2026", devices=2,
         links=1200e9, ports=6, network=12.5e9, program_bytes=int(94.75 * GIB)),
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
    """Returns the memory that a program has on one device, or that of its data sheet.

    Args:
      device_kind: `jax.devices()[0].device_kind`.

    Returns:
      Bytes, or None if the chip is unknown: see `chip_of`.
    """
    chip = chip_of(device_kind)
    return None if chip is None else chip.program_bytes or chip.memory_bytes // chip.devices
