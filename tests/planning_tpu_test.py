"""Plans compiled for TPUs that are not here: fit, collectives and dtypes as recorded in goldens.

`python -m tests.planning_tpu_test` records them anew.
"""

import json
from importlib.metadata import version

import pytest

from tests.conftest import ROOT
from vit_jax import load_config
from vit_jax.errors import ConfigError
from vit_jax.planning.plan import make_plan
from vit_jax.planning.search import search
from vit_jax.planning.topology import devices, parse, prepare_environment

GOLDEN = ROOT / "tests" / "goldens" / "plans.json"
SIZES = {"num_classes": 1000, "num_examples": 1_281_167}
SMALL = {"model.depth": 4, "batch_size": 128}
# Name -> config, topology, slices, changes of the config.
SAMPLES = {
    "data parallel": ("vit_s16_i1k", "v5e:2x2", 1, {"batch_size": 256}),
    "fsdp": ("vit_i1k", "v6e:4x4", 1, {"mesh.fsdp": 4, "mesh.data": 4, **SMALL}),
    "tensor": (
        "vit_i21k", "v5p:2x2x2", 1,
        {"mesh.tensor": 4, "mesh.data": 2, "model.pool": "gap", **SMALL},
    ),
    "two slices": ("vit_i1k", "v5e:2x2", 2, {"mesh.fsdp": 4, **SMALL}),
}  # fmt: skip
TOPOLOGIES = ("v5e:16x16", "v5p:4x4x8", "v6e:16x16")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tpu_compiler")]


def plan_of(sample):
    config, topology, slices, changes = SAMPLES[sample]
    return make_plan(load_config(config, changes), parse(topology, slices=slices), **SIZES)


def record(plan) -> dict:
    """What a golden file has of a plan: what is sent, without small sums, and the memory in MiB."""
    return {
        "fits": plan.fits,
        "mib": round(plan.needed / 2**20),
        "collectives": sorted(
            [
                each.kind,
                "/".join(each.axes) + " between slices" * each.network,
                each.dtype,
                each.in_loop,
                each.executions,
            ]
            for each in plan.sends
            if each.bytes >= 2**18
        ),
    }


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_program_is_as_recorded(sample):
    golden = json.loads(GOLDEN.read_text())
    plan = plan_of(sample)
    assert plan.fits and plan.roofline.fastest < plan.roofline.slowest
    if golden["libtpu"] != (here := version("libtpu")):
        pytest.skip(f"recorded with libtpu {golden['libtpu']}, not {here}: another compiler")
    found, want = record(plan), golden["plans"][sample]
    assert found.pop("mib") == pytest.approx(want.pop("mib"), rel=0.02)
    assert found == want


def test_what_the_compiler_refuses():
    config = load_config("vit_i1k", {"model.variant": "L/16", "model.remat": "none"})
    plan = make_plan(config, parse("v5e:4x4"), **SIZES)
    assert not plan.fits and plan.needed > 2 * plan.available and plan.roofline is None
    assert "hbm" in plan.compiled.refusal.lower()


def test_a_search_compiles_unlike_meshes_and_the_config_as_it_is():
    config = load_config(
        "vit_i1k", {"mesh.data": 2, "mesh.fsdp": 2, "model.remat": "full", **SMALL}
    )
    lines = []
    best = search(config, parse("v5e:2x2"), **SIZES, show=lines.append)
    start = next(i for i, line in enumerate(lines) if line.startswith("Compiled"))
    rows = [line.split() for line in lines[start + 1 : -1]]
    assert rows[-1][:6] == ["128", "2", "2", "1", "1", "full"]
    rates = {(*row[1:4], row[5]): float(row[-1]) for row in rows}
    assert len(rates) == len(rows) > 2
    chosen = (*map(str, best.mesh.values()), best.config.model.remat)
    assert rates[chosen] == max(rates.values())


def test_topologies_of_libtpu():
    for name, slices in (("v5e:1x1", 1), ("v4:2x2x1", 1), ("v7:2x2x1", 1), ("v6e:2x4", 2)):
        topology = parse(name, slices=slices)
        assert len(devices(topology)) == topology.num_devices
        assert devices(topology)[0].device_kind in topology.chip.kinds
    with pytest.raises(ConfigError, match="v5p:1x1x8960: libtpu has no such slice"):
        devices(parse("v5p:1x1x8960"))


@pytest.mark.campaign
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("name", ["vit_i1k", "vit_i21k", "vit_s16_i1k", "vit_g_scaling"])
def test_every_config_for_pods_fits(name, topology):
    plan = make_plan(load_config(name), parse(topology), num_classes=21_843, num_examples=10**7)
    assert plan.fits, plan.compiled.refusal


if __name__ == "__main__":
    prepare_environment()
    plans = {sample: record(plan_of(sample)) for sample in SAMPLES}
    GOLDEN.write_text(json.dumps({"libtpu": version("libtpu"), "plans": plans}, indent=1) + "\n")
