"""Schedules against the reference's, their shapes, and durations in every unit."""

import jax
import numpy as np
import pytest

from vit_jax.config import base_config
from vit_jax.errors import ConfigError
from vit_jax.optim import make_schedule, resolve_duration, total_steps


def config(**values):
    c = base_config().optim.schedule
    for key, value in values.items():
        c[key] = value
    return c


def curve(steps, *, total, batch_size=1, num_examples=1, **values):
    schedule = make_schedule(
        config(**values), total_steps=total, batch_size=batch_size, num_examples=num_examples
    )
    return np.asarray(jax.jit(jax.vmap(schedule))(np.asarray(steps)))


# Case of the reference: (factor on our values, run, our config). big_vision's sched2 (a quadratic
# schedule) and sched5 (steps) have no counterpart here.
GOLDEN = {
    "sched0": (1.0, {"total": 100}, {"name": "cosine", "warmup_steps": 10}),
    "sched1": (1.0, {"total": 100}, {"name": "linear", "warmup_steps": 5, "end": 0.01}),
    "sched3": (
        1.0,
        {"total": 200},
        {"name": "rsqrt", "timescale_steps": 30, "warmup_steps": 20, "cooldown_steps": 50},
    ),
    # big_vision's shift s is the timescale t + s and the learning rate over sqrt(1 + s / t).
    "sched4": (
        (1 + 40 / 10) ** -0.5,
        {"total": 200},
        {"name": "rsqrt", "timescale_steps": 10 + 40, "warmup_steps": 5},
    ),
    "sched6": (
        0.003,
        {"total": 100, "batch_size": 32, "num_examples": 640},
        {"name": "cosine", "warmup_epochs": 1.5},
    ),
    "sched7": (
        1.0,
        {"total": 100},
        {"name": "cosine", "warmup_percent": 0.2, "cooldown_percent": 0.1},
    ),
    # scale_with_batchsize is a learning rate times batch size / 256.
    "sched8": (0.1 * 512 / 256, {"total": 100}, {"name": "cosine"}),
    "sched9": (0.03, {"total": 100}, {"name": "cosine", "warmup_steps": 10}),
    # vision_transformer's linear_end is a learning rate, ours a fraction of the peak.
    "sched10": (0.03, {"total": 100}, {"name": "linear", "warmup_steps": 10, "end": 1e-5 / 0.03}),
}


@pytest.mark.medium
@pytest.mark.parametrize("case", GOLDEN)
def test_schedule_equals_the_reference(training_golden, case):
    entry, _, _, arrays = training_golden("schedules")
    factor, run, values = GOLDEN[case]
    assert entry["cases"][case]["kwargs"]["total_steps"] == run["total"]
    got = factor * curve(arrays[f"{case}/step"], **run, **values)
    tol = entry["expected_arrays"][f"{case}/value"]["tol"]
    np.testing.assert_allclose(got, arrays[f"{case}/value"], rtol=0, atol=tol)


@pytest.mark.medium
def test_constant_with_cooldown_is_a_trapezium():
    got = curve(range(20), total=20, name="constant", warmup_steps=4, cooldown_steps=5)
    want = [0, 0.25, 0.5, 0.75] + [1.0] * 12 + [0.8, 0.6, 0.4, 0.2]
    np.testing.assert_allclose(got, want, atol=1e-7)


@pytest.mark.medium
def test_cosine_ends_at_its_end_value():
    got = curve([0, 50, 100, 150], total=100, name="cosine", end=0.2)
    np.testing.assert_allclose(got, [1.0, 0.6, 0.2, 0.2], atol=1e-6)


@pytest.mark.medium
@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "rsqrt"])
def test_every_schedule_warms_up_from_zero_and_stays_in_the_unit_interval(name):
    timescale = {"timescale_steps": 7} if name == "rsqrt" else {}
    got = curve(range(60), total=50, name=name, warmup_steps=10, cooldown_steps=10, **timescale)
    assert got.dtype == np.float32
    assert got[0] == 0 and got[10] == 1 and got[50] == 0
    assert (got >= 0).all() and (got <= 1).all()
    assert (np.diff(got[:11]) > 0).all() and (np.diff(got[10:]) <= 0).all()


@pytest.mark.medium
def test_no_warmup_starts_at_the_peak():
    assert curve([0], total=5, name="linear")[0] == 1


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({}, None),
        ({"warmup_steps": 17}, 17),
        ({"warmup_epochs": 1.5}, 30),
        ({"warmup_examples": 1000.0}, 31),  # 31.25
        ({"warmup_percent": 0.125}, 50),
        ({"warmup_percent": 0.001}, 1),  # .4 steps
        ({"warmup_percent": 0.0}, 0),
        ({"warmup_percent": 1.0}, 400),
        ({"warmup_epochs": 0.001}, 1),  # As in the reference: at least one step unless it is 0.
        ({"warmup_epochs": 0.0}, 0),
    ],
)
def test_a_duration_in_every_unit(values, steps):
    run = {"total_steps": 400, "batch_size": 32, "num_examples": 640}
    assert resolve_duration(config(**values), "warmup", **run) == steps


@pytest.mark.parametrize(
    ("total", "share", "steps"), [(1, 0.9, 0), (2, 0.9, 1), (2, 0.1, 1), (3, 0.9, 2)]
)
def test_a_fraction_of_the_shortest_runs_leaves_one_step(total, share, steps):
    run = {"total_steps": total, "batch_size": 32, "num_examples": 640}
    assert resolve_duration(config(warmup_percent=share), "warmup", **run) == steps


def test_a_run_may_be_all_cooldown():
    np.testing.assert_allclose(
        curve(range(6), total=5, name="constant", cooldown_steps=5), np.arange(5, -1, -1) / 5
    )


@pytest.mark.parametrize(
    ("values", "steps"),
    [({"total_steps": 7}, 7), ({"total_epochs": 2.5}, 50), ({"total_examples": 3200.0}, 100)],
)
def test_the_length_of_a_run_in_every_unit(values, steps):
    c = base_config()
    c.batch_size = 32
    for key, value in values.items():
        c[key] = value
    assert total_steps(c, 640) == steps


def test_a_run_without_or_with_two_lengths_is_refused():
    c = base_config()
    with pytest.raises(ConfigError, match="total_steps, total_epochs, total_examples"):
        total_steps(c, 640)
    c.total_steps, c.total_epochs = 7, 1.0
    with pytest.raises(ConfigError, match="total_steps and total_epochs are set"):
        total_steps(c, 640)
    c.total_steps, c.total_epochs = 0, None
    with pytest.raises(ConfigError, match="has 0 steps"):
        total_steps(c, 640)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "cosin"}, 'Did you mean "cosine"'),
        ({"warmup_steps": 3, "warmup_percent": 0.1}, "warmup_steps and warmup_percent are set"),
        ({"warmup_percent": 5.0}, "0.1 is a tenth"),
        ({"cooldown_steps": -1}, "must not be negative"),
        ({"warmup_steps": 60, "cooldown_steps": 41}, "do not fit into a run of 100 steps"),
        ({"name": "rsqrt"}, "optim.schedule.timescale_steps"),
    ],
)
def test_invalid_values_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        curve([0], total=100, **values)


@pytest.mark.medium
def test_an_endless_timescale_is_a_constant():
    c = base_config().optim.schedule
    c.name, c.timescale_steps = "rsqrt", 2**40  # Larger than JAX's 32-bit integers.
    schedule = make_schedule(c, total_steps=10, batch_size=1, num_examples=1)
    assert float(schedule(9)) == 1.0
