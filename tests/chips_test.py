"""The table of chips, against JAX's own table of TPUs where it has one."""

import importlib

import pytest

from vit_jax.telemetry.chips import CHIPS, chip_of, peak_flops

# Where a page of Google and JAX's table differ by more than 5%: JAX's number over the page's.
DIFFERENT = {
    ("TPU v3", "bf16_flops"): 1.14,
    ("TPU v3", "bandwidth"): 0.92,
    ("TPU v5p", "bandwidth"): 0.89,
}
TPUS = [chip for chip in CHIPS if chip.name.startswith("TPU")]


@pytest.fixture(scope="module")
def tpu_info():
    """JAX's module; a private one, so that a later release may not have it."""
    try:
        module = importlib.import_module("jax._src.pallas.mosaic.tpu_info")
    except ImportError:
        pytest.skip("this JAX has no table of TPUs")
    needed = ("chip_version_from_device_kind", "get_tpu_info_for_chip")
    if not all(hasattr(module, name) for name in needed):
        pytest.skip("this JAX has another table of TPUs")
    return module


@pytest.mark.parametrize("chip", TPUS, ids=lambda chip: chip.name)
def test_tpus_are_those_of_jax(tpu_info, chip):
    for kind in chip.kinds:
        version = tpu_info.chip_version_from_device_kind(kind)
        cores = version.num_physical_tensor_cores_per_chip
        # JAX's numbers are of one core; a chip whose cores are joined is one device.
        info = tpu_info.get_tpu_info_for_chip(version, 1)
        assert cores == (2 if version.supports_megacore else chip.devices)
        for name, theirs, ours in (
            ("bf16_flops", info.bf16_ops_per_second, chip.bf16_flops),
            ("memory_bytes", info.hbm_capacity_bytes, chip.memory_bytes),
            ("bandwidth", info.mem_bw_bytes_per_second, chip.bandwidth),
        ):
            ratio = DIFFERENT.get((chip.name, name), 1.0)
            assert cores * theirs / ours == pytest.approx(ratio, rel=0.05), (kind, name)


def test_every_chip_has_a_source_and_is_found_by_its_kinds():
    kinds = [kind for chip in CHIPS for kind in chip.kinds]
    assert len(kinds) == len({*kinds})
    for chip in CHIPS:
        assert "20" in chip.source and chip.bf16_flops > 1e14 and chip.bandwidth > 5e11
        assert chip.bandwidth > chip.links > chip.network > 1e9
        share = chip.program_bytes * chip.devices / chip.memory_bytes
        assert not chip.program_bytes or 0.95 < share < 1.01
        for kind in chip.kinds:
            assert chip_of(kind) is chip and peak_flops(kind) == chip.bf16_flops / chip.devices
    assert chip_of("NVIDIA H200 MIG 1g.18gb") is None
