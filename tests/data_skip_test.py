"""data.on_bad="skip": a bad example is left out of its batch exactly, and named."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import slow
from tests.data_pipeline_test import (
    Numbers,
    assert_same,
    evaluate,
    expected_batch,
    mesh_sharding,
    one_device,
    training,
)
from tests.data_sources_test import open_
from tests.mock_tfds import mock_tfds
from tests.small_run import small_config
from vit_jax.data import order
from vit_jax.data.mixing import mix
from vit_jax.errors import DataError
from vit_jax.models import ModelConfig, build, read_section
from vit_jax.optim import make_optimizer, make_schedule
from vit_jax.parallel import mesh as meshes
from vit_jax.parallel import processes
from vit_jax.training.state import make_init, run_keys, state_layout
from vit_jax.training.update import make_train_step

# The batches.


@pytest.mark.medium
@pytest.mark.parametrize(("workers", "sharding"), [(0, one_device), (1, one_device), (0, None)])
def test_a_bad_row_is_zero_and_nothing_else_changes(workers, sharding):
    size, batch_size, bad = 40, 16, (0, 7, 39)
    reports = []
    with training(
        Numbers(size, bad=bad), batch_size=batch_size, start_step=4, workers=workers,
        sharding=sharding() if sharding else mesh_sharding(8, 1),
        on_bad=lambda *report: reports.append(report),
    ) as batches:  # fmt: skip
        got = [jax.device_get(next(batches)) for _ in range(6)]
    want, expected_reports = [], []
    for step in range(4, 10):
        batch = expected_batch(step, size=size, batch_size=batch_size)
        ids = order.example_ids(step, batch_size=batch_size, num_examples=size, seed=3)
        for row in np.flatnonzero(np.isin(ids, bad)).tolist():
            message = f"numbers train[{ids[row]}]: it is broken."
            expected_reports.append((step, row, ids[row], message))
            for array in batch.values():
                array[row] = 0
        want.append(batch)
    assert_same(got, want)
    assert reports == expected_reports and len(reports) > 5


@pytest.mark.medium
def test_a_few_bad_ones_may_come_first_but_not_all():
    load = functools.partial(training, batch_size=16, on_bad=lambda *report: None)
    with load(Numbers(40, bad=range(39))) as batches:
        assert next(batches)["image"].shape == (16, 2, 3, 1)
    with pytest.raises(DataError, match=r"None of the first 40 examples can be used.*train\[0\]"):
        load(Numbers(40, bad=range(40)))


@pytest.mark.medium
@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_an_evaluation_does_not_count_them_on_any_mesh(shape):
    bad = {}
    sharding = mesh_sharding(*shape)
    got = evaluate(Numbers(20, bad=(0, 13)), sharding=sharding, on_bad=bad.__setitem__)
    assert_same(got, evaluate(Numbers(20, bad=(0, 13)), on_bad=lambda i, message: None))
    assert sum(int(batch["weight"].sum()) for batch in got) == 18
    assert bad == {i: f"numbers train[{i}]: it is broken." for i in (0, 13)}


# Other bad examples than files that cannot be read or decoded (data_decode_test).


def with_pixel(value, dtype=np.float32):
    def transform(example, rng):
        image = example["image"].astype(dtype)
        if example["image"][0, 0, 0] == 4:
            image = image.astype(np.float64) if value == "float64" else image
            image[1, 1, 0] = 0 if value == "float64" else value
        return {**example, "image": image}

    return transform


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "its pixels are not all finite after the transforms"),
        ("float64", r"image of shape \(2, 3, 1\) and float64 after .* others have .* float32"),
    ],
)
def test_pixels_that_no_model_should_see_are_named(value, message):
    with pytest.raises(DataError, match=rf"numbers train\[4\]: {message}"):
        evaluate(Numbers(20), transform=with_pixel(value))
    reports = {}
    evaluate(Numbers(20), transform=with_pixel(value), on_bad=reports.__setitem__)
    assert list(reports) == [4]


@pytest.mark.parametrize("label", [np.zeros(9), np.full(10, np.nan), np.full(10, 2.0), 3])
def test_labels_of_several_classes_are_checked(label):
    class Many(Numbers):
        multi_label = True

        def __getitem__(self, index):
            return {**super().__getitem__(index), "label": label if index == 4 else np.eye(10)[3]}

    with pytest.raises(DataError, match=r"train\[4\]: its label should be 10 numbers from 0 to 1"):
        evaluate(Many(20))


@pytest.mark.parametrize("labels", [[-1], [3, 20]])
def test_labels_of_a_tfds_data_set_are_checked(labels):
    with mock_tfds():
        source = open_(source="tfds", name="voc/2007", label_key="labels")
        record = source._records[0] | {"labels": np.array(labels)}
        source._records = [record]
        with pytest.raises(DataError, match=r"its labels are .*, but labels go from 0 to 19"):
            source[0]


# The update. Its second formulation takes one example at a time, and leaves the bad ones out of a
# plain mean in float64.

BATCH = 16
VARIANTS = {
    "linear, mixup": {"optim__accum_steps": 4, "mix__mixup_alpha": 0.5},
    "linear, cutmix": {"mix__mixup_alpha": 0.5, "mix__cutmix_alpha": 1.0},
    "sharp": {"optim__sam_rho": 0.05},
    "8 devices": {"mesh__data": 4, "mesh__tensor": 2, "mix__mixup_alpha": 0.5,
                  "optim__accum_steps": 2},
}  # fmt: skip


class Linear(nn.Module):
    """Instead of a ViT, which takes ten seconds to compile: a head on the pixels."""

    config: ModelConfig

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(self.config.num_classes, name="head")(images.reshape(len(images), -1)), {}


def model_of(variant):
    model_config = read_section(small_config(model__depth=1).model, num_classes=10)
    return Linear(model_config) if variant.startswith("linear") else build(model_config)


@functools.cache
def the_step(variant):
    """(config, parameters, step: (batch, step) -> (metrics, parameters after))."""
    config = small_config(
        model__depth=1,
        data__on_bad="skip", batch_size=BATCH, optim__name="sgd", optim__clip_norm=0.0,
        optim__weight_decay=0.0, optim__lr=0.1, optim__schedule__warmup_steps=None,
        optim__schedule__name="constant", loss__label_smoothing=0.1, **VARIANTS[variant],
    )  # fmt: skip
    model = model_of(variant)
    devices = jax.devices()[: 8 if "mesh__data" in VARIANTS[variant] else 1]
    mesh = meshes.make_mesh(config.mesh, devices=devices)
    with jax.set_mesh(mesh):
        schedule = make_schedule(
            config.optim.schedule, total_steps=9, batch_size=BATCH, num_examples=99
        )
        images = jax.ShapeDtypeStruct((BATCH, 8, 8, 1), jnp.float32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
        tx = make_optimizer(config.optim, shapes, schedule=schedule)
        init = make_init(config, model, tx)
        layout = state_layout(jax.eval_shape(init, jax.random.key(0)), mesh)
        state = jax.jit(init, out_shardings=layout)(jax.random.key(0))
        # A head that is not zero, so that every parameter has a gradient.
        head = state.params["head"]["kernel"]
        noise = 0.3 * np.random.default_rng(1).normal(size=head.shape).astype(np.float32)
        params = {**state.params, "head": {**state.params["head"], "kernel": noise}}
        params = jax.device_put(params, layout.params)
        jitted = jax.jit(make_train_step(config, model, tx, schedule))
        flag = processes.flag_array(False, mesh)

    def step(batch, number):
        with jax.set_mesh(mesh):
            batch = jax.device_put(batch, meshes.batch_sharding(mesh))
            at = state.replace(params=params, step=jnp.int32(number))
            after, metrics = jitted(at, batch, flag)
            return jax.device_get((metrics, after.params))

    return config, jax.device_get(params), step


@functools.cache
def per_example(variant):
    """A function (params, images, targets) -> each example's ((loss, logits), gradient)."""
    model = model_of(variant)

    def loss(params, image, target):
        logits = model.apply({"params": params}, image[None])[0][0]
        target = 0.9 * target + 0.1 * target.mean()  # Label smoothing.
        return -jnp.sum(target * jax.nn.log_softmax(logits)), logits

    return jax.jit(jax.vmap(jax.value_and_grad(loss, has_aux=True), in_axes=(None, 0, 0)))


jitted_mix = jax.jit(mix, static_argnames=("mixup_alpha", "cutmix_alpha"))


def second_formulation(variant, params, batch, number):
    """Metrics and parameters after the update, from the good examples one by one."""
    config = the_step(variant)[0]
    good = np.flatnonzero(batch["weight"])
    images = batch["image"].astype(np.float64)
    targets = np.eye(10)[batch["label"]]
    if config.mix.mixup_alpha or config.mix.cutmix_alpha:
        # The draw of this step, shown by a batch of images that are all 0 and all 1 in turn.
        key = jax.random.fold_in(run_keys(config.seed)[1], number)
        rng = jax.random.split(key)[0]
        ones = np.zeros((BATCH, *images.shape[1:]), np.float32)
        ones[1::2] = 1
        alphas = {key: config.mix[key] for key in ("mixup_alpha", "cutmix_alpha")}
        keep, share = jax.device_get(
            jitted_mix(rng, ones, ones[:, 0, 0, :], np.ones(BATCH, np.float32), **alphas)
        )
        keep, share = keep[1].astype(np.float64), float(share[1, 0])
        whole = images.copy(), targets.copy()
        for row in range(BATCH):
            if batch["weight"][row - 1]:
                images[row] = keep * whole[0][row] + (1 - keep) * whole[0][row - 1]
                targets[row] = share * whole[1][row] + (1 - share) * whole[1][row - 1]

    def mean_gradient(at):
        single = [np.asarray(array, np.float32) for array in (images, targets)]
        (losses, logits), grads = jax.device_get(per_example(variant)(at, *single))
        hits = logits.argmax(-1) == targets.argmax(-1)
        mean = lambda values: np.mean(values[good], axis=0, dtype=np.float64)  # noqa: E731
        return mean(losses), mean(hits), jax.tree.map(mean, grads)

    def norm_of(grads):
        return np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grads)))

    loss, top1, grads = mean_gradient(params)
    if config.optim.sam_rho:
        step = config.optim.sam_rho / norm_of(grads)
        uphill = jax.tree.map(lambda p, g: (p + step * g).astype(np.float32), params, grads)
        grads = mean_gradient(uphill)[2]
    after = jax.tree.map(lambda p, g: p - config.optim.lr * g, params, grads)
    norm = norm_of(grads)
    expected = {"train/loss": loss, "train/grad_norm": norm}
    if not (config.mix.mixup_alpha or config.mix.cutmix_alpha):
        expected["train/top1"] = top1
    return expected, after


@pytest.mark.parametrize(
    "variant",
    [pytest.param("linear, mixup", marks=pytest.mark.medium), *map(slow, list(VARIANTS)[1:])],
)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    bad=st.sets(st.integers(0, BATCH - 1), max_size=BATCH - 1),
    seed=st.integers(0, 99),
    number=st.integers(0, 50),
)
def test_an_update_is_that_of_its_good_examples_alone(variant, bad, seed, number):
    rng = np.random.default_rng(seed)
    batch = {
        "image": rng.uniform(-1, 1, (BATCH, 8, 8, 1)).astype(np.float32),
        "label": rng.integers(0, 10, BATCH).astype(np.int32),
        "weight": np.ones(BATCH, np.float32),
    }
    for array in batch.values():
        array[list(bad)] = 0
    _, params, step = the_step(variant)
    metrics, after = step(batch, number)
    expected, expected_after = second_formulation(variant, params, batch, number)
    assert metrics["train/skipped"] == len(bad)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=2e-5, abs=1e-7), name
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), after, expected_after
    )
