"""Peak arithmetic of the devices that ViTs are trained on."""

# Dense bfloat16 FLOP/s per device, one multiply-add counted as two, without sparsity. The keys are
# what JAX calls the device (`device.device_kind`); TPUs go by two names, an older and a newer one.
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
    """Peak dense bfloat16 FLOP/s of one device, whatever the dtype that a run computes in.

    Names are matched exactly: a slice of a GPU ("NVIDIA H200 MIG 1g.18gb") or a slower board of
    the same name is not the device in the table, and a wrong utilisation is worse than none.

    Args:
      device_kind: `jax.devices()[0].device_kind`.

    Returns:
      FLOP/s, or None where the peak is not known.
    """
    return _PEAK_BF16.get(device_kind)
