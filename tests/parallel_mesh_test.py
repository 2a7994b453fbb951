"""Meshes of TPU pods, whose devices are described, not present."""

import dataclasses
import itertools

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import vit_g_scaling
from vit_jax.errors import ConfigError
from vit_jax.parallel.mesh import make_mesh

V5E, V6E, V5P = "TPU v5 lite", "TPU v6 lite", "TPU v5"


@dataclasses.dataclass(frozen=True)
class Device:
    """What a `jax.Device` of a TPU says of its place."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int
    device_kind: str
    core_on_chip: int = 0
    process_index: int = 0
    platform: str = "tpu"


def pod(kind, *shape, slices=1):
    x, y, z = (*shape, 1)[:3]
    places = itertools.product(range(slices), range(z), range(y), range(x))
    return [Device(i, (c, b, a), s, kind) for i, (s, a, b, c) in enumerate(places)]


def mesh_of(devices, **sizes):
    return make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1} | sizes), devices=devices)


@pytest.mark.parametrize(
    "devices",
    [
        pytest.param(pod(V5E, 16, 16), id="v5e:16x16"),
        pytest.param(pod(V6E, 16, 16), id="v6e:16x16"),
        pytest.param(pod(V5P, 8, 8, 8), id="v5p:8x8x8"),
        pytest.param(pod(V5P, 4, 4, 4, slices=2), id="2 slices of v5p:4x4x4"),
        pytest.param(pod(V6E, 16, 16, slices=4), id="4 slices of v6e:16x16"),
    ],
)
def test_every_power_of_two_fits_and_stays_in_a_slice(devices):
    slices = len({device.slice_index for device in devices})
    side = max(device.coords[0] for device in devices) + 1
    powers = [2**i for i in range(10)]
    for fsdp, tensor in itertools.product(powers, powers[:5]):
        if len(devices) // slices % (fsdp * tensor):
            continue
        array = mesh_of(devices, fsdp=fsdp, tensor=tensor).devices
        assert array.shape[1:] == (fsdp, tensor)
        assert {device.id for device in array.flat} == set(range(len(devices)))
        of_slice = np.vectorize(lambda device: device.slice_index)(array)
        assert (of_slice == of_slice[:, :1, :1]).all()
        assert (np.diff(of_slice[:, 0, 0]) >= 0).all()
        # Along tensor, the next device is the next in the torus, but for the return from the end of
        # a row to the next one.
        places = np.array([device.coords for device in array.flat]).reshape(*array.shape, 3)
        steps = np.abs(np.diff(places, axis=2))
        steps = np.minimum(steps, side - steps).sum(axis=-1)
        assert steps.size == 0 or np.median(steps) == 1


def test_vit_g_starts_on_v6e():
    config = vit_g_scaling.get_config()
    mesh = make_mesh(config.mesh, devices=pod(V6E, 16, 16))
    assert dict(mesh.shape) == {"data": 32, "fsdp": 8, "tensor": 1}


def test_sizes_that_cannot_be_arranged_are_refused_with_those_that_can():
    two = pod(V6E, 4, 4, slices=2)
    with pytest.raises(ConfigError, match=r"2 slices.* mesh.data must be a multiple of 2") as error:
        mesh_of(two, data=1, fsdp=-1)
    assert "mesh.tensor=1 with mesh.fsdp=1 or 2 or 4 or 8 or 16; mesh.tensor=2" in str(error.value)
    with pytest.raises(ConfigError, match=r"different numbers of devices \(16, 8\).*whole slices"):
        mesh_of(two[:24])
    with pytest.raises(ConfigError, match=r"24 devices .* any sizes: .*whole slices"):
        mesh_of(pod(V5P, 4, 4, 4)[5:29])
