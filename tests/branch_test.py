"""One long run has every duration in it: a branch cooled down from its trunk is the shorter run."""

import numpy as np
import pytest

from tests.conftest import campaign, slow
from tests.same_run import checkpoint, steps_of
from tests.small_run import run
from vit_jax.config import base_config, validate
from vit_jax.errors import ConfigError

SCHEDULES = {
    "constant": {"optim__schedule__name": "constant"},
    "rsqrt": {"optim__schedule__name": "rsqrt", "optim__schedule__timescale_steps": 3},
}


@pytest.mark.parametrize("name", [campaign("constant"), slow("rsqrt")])
def test_a_branch_equals_the_run_of_its_length_to_the_bit(tmp_path, name):
    same = SCHEDULES[name] | {"optim__ema_decay": 0.9, "model__depth": 1}
    same |= {"checkpoint__every_steps": 100, "checkpoint__keep_last": 1}
    cooldown = "optim__schedule__cooldown_steps"
    trunk, branch, alone = (tmp_path / part for part in ("trunk", "branch", "alone"))
    run(trunk, total_steps=16, **{cooldown: 5}, checkpoint__keep_steps=(6, 9), **same)
    assert steps_of(trunk) == [6, 9, 16]  # What is kept stays, whatever comes after.

    short = {"total_steps": 9, cooldown: 3, **same}
    lines = run(branch, resume=str(trunk / "checkpoints" / "6"), **short)
    whole = run(alone, **short)
    assert [line for line in whole if line["step"] > 6] == lines

    (of_branch, _), (of_alone, _) = checkpoint(branch, 9), checkpoint(alone, 9)
    assert of_branch.keys() == of_alone.keys()
    for path, array in of_alone.items():
        np.testing.assert_array_equal(of_branch[path], array, err_msg=path)
    # Not so the trunk, whose learning rate did not fall yet.
    of_trunk, _ = checkpoint(trunk, 9)
    assert any(not np.array_equal(of_trunk[path], array) for path, array in of_alone.items())


@pytest.mark.parametrize("steps", [("3",), (0,), (2.0,)])
def test_a_step_to_keep_is_a_number_of_updates(steps):
    config = base_config()
    config.checkpoint.keep_steps = steps
    with pytest.raises(ConfigError, match=r"checkpoint\.keep_steps has .*numbers of updates"):
        validate(config)


def test_examples_are_chosen_in_one_way():
    config = base_config()
    config.data.shots, config.data.examples = 3, 30
    with pytest.raises(ConfigError, match=r"data\.shots and data\.examples are both set"):
        validate(config)
