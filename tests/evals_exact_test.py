"""An evaluation counts exactly N examples, for every N, batch size and mesh: the same numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from tests.conftest import campaign, slow
from tests.small_run import small_config
from vit_jax.data.sources import open_source
from vit_jax.evals import Classification
from vit_jax.evals.evaluator import Evaluator
from vit_jax.models import Vit, read_section
from vit_jax.parallel.mesh import make_mesh
from vit_jax.parallel.rules import param_shardings
from vit_jax.training.evaluations import build_evals, open_splits

MESHES = [(1, 1, 1), (2, 2, 2), (3, 1, 1), (1, 5, 1)]
KERNEL = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)


def mesh_of(sizes):
    mesh = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    return make_mesh(ConfigDict(mesh), devices=jax.devices()[: math.prod(sizes)])


def linear(params, images):
    return images.reshape(len(images), -1) @ params


@pytest.fixture(scope="module")
def metrics():
    """One for each mesh: what is compiled is kept."""
    return {
        sizes: Classification(linear, num_classes=10, loss_name="softmax_xent") for sizes in MESHES
    }


def expected(count):
    """The definition, in float64: of the first test digits, one by one."""
    config = small_config()
    source = open_source(config.data, split=f"test[:{count}]")
    images = np.stack([source[i]["image"] for i in range(count)]).reshape(count, -1)
    labels = np.array([source[i]["label"] for i in range(count)])
    logits = (images.astype(np.float32) / np.float32(127.5) - 1) @ KERNEL.astype(np.float64)
    order = np.argsort(-logits, axis=-1)
    largest = logits.max(axis=-1)
    log_sum = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=-1))
    return {
        "count": count,
        "top1": (order[:, 0] == labels).mean(),
        "top5": (order[:, :5] == labels[:, None]).any(axis=-1).mean(),
        "loss": (log_sum - logits[np.arange(count), labels]).mean(),
    }


@pytest.mark.medium
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 48),
    mesh=st.sampled_from(MESHES),
)
def test_exactly_n_examples(metrics, count, batch_size, mesh):
    check(metrics[mesh], count, batch_size, mesh)


def check(metric, count, batch_size, mesh):
    config, want = small_config(), expected(count)
    source = open_source(config.data, split=f"test[:{count}]")
    assert len(source) == count
    grid = mesh_of(mesh)
    evaluator = Evaluator(config, read_section(config.model, num_classes=10), grid)
    weights = []

    def watched(batches):
        for batch in batches:
            weights.append(jax.device_get(batch["weight"]))
            yield batch

    with (
        jax.set_mesh(grid),
        evaluator.batches(source, batch_size=batch_size) as batches,
    ):
        kernel = jax.device_put(KERNEL, jax.NamedSharding(grid, jax.P()))
        got = metric.evaluate(kernel, watched(batches))
    # Each example once, in order, and then the padding.
    parts = mesh[0] * mesh[1]
    assert all(len(weight) % parts == 0 for weight in weights)
    np.testing.assert_array_equal(
        np.concatenate(weights), np.arange(sum(map(len, weights))) < count
    )
    assert sum(map(len, weights)) - count < len(weights[0])
    assert {name: got[name] for name in ("count", "top1", "top5")} == {
        name: want[name] for name in ("count", "top1", "top5")
    }
    assert got["loss"] == pytest.approx(want["loss"], rel=1e-6)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "mesh", [slow((2, 2, 2)), slow((4, 1, 2)), *map(campaign, ((8, 1, 1), (1, 8, 1)))]
)
def test_a_vit_measures_the_same_on_every_mesh(mesh):
    """The evaluations of a run, as the train loop has them, with a model that is split."""

    def measured(sizes, batch_size):
        config = small_config(
            batch_size=batch_size,
            model__num_heads=8,
            evals=ConfigDict(
                {
                    f"first{n}": {
                        "type": "classification",
                        "split": f"test[:{n}]",
                        "every_steps": 0,
                    }
                    for n in (1, 7, 8, 37)
                }
            ),
        )
        cfg, grid = read_section(config.model, num_classes=10), mesh_of(sizes)
        with jax.set_mesh(grid):
            params = Vit(cfg).init(jax.random.key(0), jnp.zeros((8, 8, 8, 1)))["params"]
            head = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
            params = {**params, "head": {**params["head"], "kernel": head}}
            params = jax.device_put(params, param_shardings(params, grid))
            periods = dict.fromkeys(config.evals, 0)
            splits = open_splits(config, class_names=list("0123456789"))
            evals = build_evals(Evaluator(config, cfg, grid), sources=splits, every_steps=periods)
            with jax.transfer_guard("disallow"):
                return {name: entry.run(params) for name, entry in evals.items()}

    alone = measured((1, 1, 1), 16)
    for batch_size in (8, 24):
        for name, values in measured(mesh, batch_size).items():
            assert values["count"] == int(name.removeprefix("first"))
            for exact in ("count", "top1", "top5"):
                assert values[exact] == alone[name][exact], (name, batch_size, exact)
            assert values["loss"] == pytest.approx(alone[name]["loss"], rel=1e-6)
            assert values["ece"] == pytest.approx(alone[name]["ece"], rel=1e-5)
