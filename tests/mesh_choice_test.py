"""`config.mesh.auto`: the smallest fsdp whose state fits in a device's memory."""

import json
import re

import jax
import pytest
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from tests.small_run import small_config
from vit_jax.errors import ConfigError
from vit_jax.models import read_section
from vit_jax.parallel.constraints import AXES
from vit_jax.training import mesh_choice
from vit_jax.training.memory import bytes_per_device
from vit_jax.training.mesh_choice import choose
from vit_jax.training.rematerialisation import SHARE
from vit_jax.training.run import train

CONFIG = small_config(batch_size=256, model__remat="none", model__depth=1)
MODEL = read_section(CONFIG.model, num_classes=10)


def available(*sizes, config=CONFIG, num_classes=10):
    """The memory with which a mesh of these sizes just fits."""
    model = read_section(config.model, num_classes=num_classes)
    return int(bytes_per_device(config, model, AbstractMesh(sizes, AXES)) / SHARE) + 1


def sizes(memory, *, config=CONFIG, model=MODEL, **kwargs):
    return tuple(choose(config, model, 8, memory, **kwargs)[0].values())


@pytest.mark.medium
def test_the_smallest_fsdp_that_fits_is_taken():
    for mesh in ((8, 1, 1), (4, 2, 1), (2, 4, 1)):
        assert sizes(available(*mesh)) == mesh
    memory = available(4, 2, 1)
    reason = choose(CONFIG, MODEL, 8, memory)[1]
    assert re.fullmatch(r"auto: fsdp 2 takes \S+ of \S+ GiB, 75% of a device's memory", reason)
    # Over all devices only if nothing else fits, or least.
    assert sizes(available(1, 8, 1)) == sizes(1000) == (1, 8, 1)
    assert sizes(None) == (8, 1, 1)


@pytest.mark.medium
def test_tensor_and_slices_hold():
    config = small_config(
        batch_size=256, model__remat="none", mesh__tensor=2, mesh__fsdp=4, model__num_heads=8
    )
    model = read_section(config.model, num_classes=10)
    assert sizes(available(2, 2, 2, config=config), config=config, model=model) == (2, 2, 2)
    # Two slices of four devices.
    assert sizes(1000, slices=2) == (2, 4, 1)
    with pytest.raises(ConfigError, match=r"mesh.tensor=2 does not divide 1 devices"):
        choose(config, model, 8, None, slices=8)
    with pytest.raises(ConfigError, match=r"batch_size 12 .*multiple of 8"):
        choose(small_config(batch_size=12), MODEL, 8, None)


@pytest.mark.medium
def test_little_recomputation_comes_before_a_larger_fsdp_and_that_before_much():
    config = small_config(batch_size=4096, model__depth=1)
    model = read_section(config.model, num_classes=10)
    named = small_config(batch_size=4096, model__depth=1, model__remat="named")
    full = small_config(batch_size=4096, model__depth=1, model__remat="full")
    assert sizes(available(8, 1, 1, config=named), config=config, model=model) == (8, 1, 1)
    assert sizes(available(2, 4, 1, config=named), config=config, model=model) == (2, 4, 1)
    assert sizes(available(8, 1, 1, config=full), config=config, model=model) == (8, 1, 1)


def test_a_wrong_config_is_not_a_mesh_that_does_not_divide():
    config = small_config(batch_size=256, model__remat="none", optim__name="adamm")
    with pytest.raises(ConfigError, match="adamm"):
        choose(config, MODEL, 8, 10**9)


@pytest.mark.slow
def test_a_run_prints_and_records_the_chosen_mesh(tmp_path, capsys, monkeypatch):
    config = small_config(
        total_steps=3, evals=ConfigDict(), mesh__auto=True, optim__name="sgd", model__remat="none"
    )
    # With the ten classes of the data, a head of one class would fit unsplit.
    memory = available(4, 1, 1, config=config, num_classes=1)
    monkeypatch.setattr(mesh_choice, "available_bytes", lambda device: memory)
    assert train(config, tmp_path, devices=jax.devices()[:4]) == 0
    assert "(data 2 x fsdp 2 x tensor 1; auto: fsdp 2 takes" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run.json").read_text())
    assert summary["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
