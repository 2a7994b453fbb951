"""Peak FLOP/s of the devices that ViTs are trained on."""

# Dense bfloat16 FLOP/s per device, without sparsity; a multiply-add counts as two. The keys are
# values of `device.device_kind`; TPUs have an older and a newer name.
# Sources: NVIDIA's data sheets of the A100 and of the SXM H100 and H200; Google Cloud's TPU pages.
_PEAK_BF16 = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,  # The SXM board; the PCIe and NVL boards are slower.
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak dense bfloat16 FLOP/s of one device, also for runs in another dtype.

    Names must match exactly: a slice of a GPU ("NVIDIA H200 MIG 1g.18gb") or a slower board with a
    similar name is not in the table, because a wrong utilisation is worse than none.

    Args:
      device_kind: `jax.devices()[0].device_kind`.

    Returns:
      FLOP/s, or None if the peak is unknown.
    """
    return _PEAK_BF16.get(device_kind)
