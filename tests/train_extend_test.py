"""Runs that are continued up to a larger length: what they equal, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_run import run, small_config, train_on_one
from tests.train_run_test import arrays, assert_same_bits
from vit_jax.errors import ConfigError
from vit_jax.optim import make_schedule
from vit_jax.rundir import extension
from vit_jax.telemetry.jsonlines import read_jsonl

CONSTANT = {"optim__schedule__name": "constant"}
SHORT = {"total_steps": 8}


@pytest.fixture(scope="module")
def trained(finished_run, tmp_path_factory):
    """Trains the runs that are extended, and the longer one, once and outside of a test's time."""
    for i, changes in enumerate((CONSTANT, SHORT, SHORT | CONSTANT)):
        finished_run(tmp_path_factory.mktemp("trained") / str(i), **changes)


def schedule_config(total_steps, **keys):
    changes = {f"optim__schedule__{key}": value for key, value in keys.items()}
    return small_config(total_steps=total_steps, **changes)


@pytest.mark.parametrize(
    ("keys", "changes"),
    [
        ({"name": "constant"}, False),
        ({"name": "rsqrt", "timescale_steps": 10}, False),
        ({"name": "rsqrt", "timescale_percent": 0.1}, True),
        ({"name": "constant", "warmup_steps": None, "warmup_epochs": 0.1}, False),
        ({"name": "constant", "warmup_steps": None, "warmup_percent": 0.1}, True),
        ({"name": "constant", "cooldown_steps": 5}, True),
        ({"name": "cosine"}, True),
        ({"name": "linear"}, True),
    ],
)
def test_whether_the_learning_rate_depends_on_the_length(keys, changes):
    """What is said about a run of 40 steps that is extended to 80, and the learning rates."""
    old, new = (schedule_config(total, **keys) for total in (40, 80))
    rates = [
        make_schedule(
            config.optim.schedule,
            total_steps=config.total_steps,
            batch_size=config.batch_size,
            num_examples=1000,
        )(jnp.arange(40))
        for config in (old, new)
    ]
    assert np.array_equal(*rates) != changes
    text = extension.describe(old, new, num_examples=1000, step=40)
    assert text.startswith("extend  from 40 to 80 steps, at step 40: ")
    assert text.endswith("equal to a run that had 80 steps from its start") != changes


@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_without_dependence_on_the_length_it_equals_a_longer_run_to_the_bit(
    tmp_path, finished_run, capsys
):
    whole = finished_run(tmp_path / "whole", **CONSTANT)
    finished_run(tmp_path / "run", **SHORT, **CONSTANT)
    config = small_config(**CONSTANT)
    with pytest.raises(ConfigError, match=r"total_steps: 8 -> 12\n.*the same command with --ext"):
        train_on_one(config, tmp_path / "run")
    assert train_on_one(config, tmp_path / "run", extend=True) == 0
    assert "equal to a run that had 12 steps from its start\n" in capsys.readouterr().out
    assert_same_bits(arrays(tmp_path / "run", 12), arrays(tmp_path / "whole", 12))
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    # At the old end there was an evaluation.
    old_end = next(line for line in lines if line["step"] == 8)
    assert "test/top1" in old_end
    assert [line for line in lines if line["step"] != 8] == [x for x in whole if x["step"] != 8]
    # The same command, given again as after a kill, changes nothing.
    assert train_on_one(config, tmp_path / "run", extend=True) == 0
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl") == lines


@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_with_another_schedule_it_equals_a_run_from_its_state_to_the_bit(
    tmp_path, finished_run, capsys
):
    finished_run(tmp_path / "run", **SHORT)
    lines = run(tmp_path / "resumed", resume=str(tmp_path / "run"))
    assert train_on_one(small_config(), tmp_path / "run", extend=True) == 0
    # 3e-3 times (1 + cos(pi 5/6)) / 2 in the last update, then times (1 + cos(pi 6/10)) / 2.
    message = "goes from 0.000201 to 0.00104. A run that had 12 steps from its start would differ"
    assert message in capsys.readouterr().out
    assert_same_bits(arrays(tmp_path / "run", 12), arrays(tmp_path / "resumed", 12))
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")[-len(lines) :] == lines


@pytest.mark.medium
def test_only_a_larger_length_is_accepted(tmp_path, finished_run):
    finished_run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json*")}
    with pytest.raises(ConfigError, match="the run has 12 steps, and would have 8: raise"):
        train_on_one(small_config(total_steps=8), tmp_path, extend=True)
    changes = {"total_steps": 16, "optim__lr": 1e-4}
    with pytest.raises(ConfigError, match=r"optim.lr: .*\n.*\n--extend accepts a larger length"):
        train_on_one(small_config(**changes), tmp_path, extend=True)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.json*")} == before
