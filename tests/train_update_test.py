"""The keys of a run, and what an update measures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.small_run import small_config
from vit_jax.models import build, read_section
from vit_jax.training.state import make_init, run_keys
from vit_jax.training.update import make_train_step

pytestmark = pytest.mark.medium

BATCH = 16


def test_no_key_is_used_twice():
    def all_keys(seed):
        init, updates = run_keys(seed)
        steps = jax.vmap(functools.partial(jax.random.fold_in, updates))(jnp.arange(200))
        # An update splits its key, for mixing and for the model.
        mixing, model = jax.vmap(jax.random.split, out_axes=1)(steps)
        root = jax.random.key(seed)
        return jnp.stack([root, init, updates, *mixing, *model])

    data = np.concatenate([jax.random.key_data(all_keys(seed)) for seed in range(2)])
    assert len(np.unique(data, axis=0)) == len(data)


def test_the_keys_of_a_seed_are_always_the_same():
    for one, other in zip(run_keys(3), run_keys(3), strict=True):
        assert jnp.array_equal(jax.random.key_data(one), jax.random.key_data(other))


def step_shapes(**changes):
    """The shapes that the train step of a config gives: (state, metrics)."""
    config = small_config(**changes)
    model = build(read_section(config.model, num_classes=10))
    tx = optax.sgd(0.1)
    state = jax.eval_shape(make_init(config, model, tx), jax.random.key(0))
    batch = {
        "image": jnp.zeros((BATCH, 8, 8, 1)),
        "label": jnp.zeros(BATCH, int),
        "weight": jnp.ones(BATCH),
    }
    step = make_train_step(config, model, tx, optax.constant_schedule(1.0))
    return jax.eval_shape(step, state, batch, jnp.zeros(1, bool))


@pytest.mark.parametrize(
    ("changes", "measured"),
    [
        ({}, True),
        ({"optim__accum_steps": 2, "data__on_bad": "skip"}, True),
        ({"mix__mixup_alpha": 0.2}, False),
        ({"mix__cutmix_alpha": 1.0, "optim__accum_steps": 2}, False),
        ({"mix__mixup_alpha": 0.2, "mix__cutmix_alpha": 1.0, "data__on_bad": "skip"}, False),
    ],
)
def test_accuracy_is_measured_only_on_images_of_one_class(changes, measured):
    _, metrics = step_shapes(**changes)
    assert ("train/top1" in metrics) == measured
    assert {"train/loss", "train/lr", "train/grad_norm", "stop"} <= metrics.keys()
