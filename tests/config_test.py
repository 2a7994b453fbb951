"""Configs: overrides, arguments, checks, and conversion to JSON and back."""

import json

import pytest
from ml_collections import ConfigDict

from tests.small_run import small_config
from vit_jax.config import (
    base_config,
    classification_eval,
    freeze,
    parse_args,
)
from vit_jax.errors import ConfigError
from vit_jax.rundir import workdir as workdirs
from vit_jax.training.periods import Periods


def test_the_base_config_takes_no_new_keys():
    c = base_config()
    with pytest.raises(AttributeError, match='Did you mean "batch_size"'):
        c.batchsize = 3
    with pytest.raises(AttributeError):
        c.optim.rate = 3
    with pytest.raises(TypeError):
        c.batch_size = "many"


def test_json_and_back(tmp_path):
    config = small_config(total_epochs=1.5, total_steps=None, mix__mixup_alpha=0.2)
    workdirs.claim(tmp_path, config, {})
    assert workdirs.read_config(tmp_path) == config
    plain = json.loads((tmp_path / "config.json").read_text())
    assert plain["data"]["train_transforms"][1] == {"op": "random_crop", "padding": 1}
    assert plain["total_steps"] is None and plain["total_epochs"] == 1.5


def test_missing_keys_of_an_older_runs_config_get_their_defaults(tmp_path):
    plain = workdirs.config_to_json(small_config())
    del plain["optim"]["sam_rho"], plain["log"]
    config = workdirs.config_from_json(plain)
    assert config.optim.sam_rho == 0.0 and config.log == base_config().log
    plain["optim"]["wieght_decay"] = 1.0
    with pytest.raises(ConfigError, match="wieght_decay"):
        workdirs.config_from_json(plain)


def test_differences_are_shown_key_by_key():
    old = workdirs.config_to_json(small_config())
    new = workdirs.config_to_json(small_config(optim__lr=1.0, model__image_size=(16,)))
    assert workdirs.config_diff(old, new) == [
        "  model.image_size: [8] -> [16]",
        "  optim.lr: 0.003 -> 1.0",
    ]


def test_arguments_have_their_defaults_types():
    args = parse_args("variant=L/16,reg=true,epochs=3", variant="B/16", reg=False, epochs=300.0)
    assert args.to_dict() == {"variant": "L/16", "reg": True, "epochs": 3.0}
    assert parse_args(None, x=1).x == 1 == parse_args("", x=1).x


def test_evals_are_replaced_as_a_whole():
    c = base_config()
    c.evals = ConfigDict({"a": classification_eval(split="x")})
    assert freeze(c).evals.a.split == "x"


@pytest.mark.parametrize(
    ("save", "evaluate", "total", "compared"),
    [
        (10, 10, 100, True),
        (10, 30, 100, True),
        (30, 40, 100, False),  # Not before step 120.
        (10, 0, 100, False),
        (1000, 40, 100, True),  # Saved only at the end: there is nothing to compare.
    ],
)
def test_the_best_checkpoint_needs_several_to_choose_from(save, evaluate, total, compared):
    config = small_config(
        checkpoint__best_metric="test/top1", checkpoint__every_steps=save,
        evals__test__every_steps=evaluate,
    )  # fmt: skip
    if compared:
        Periods.of(config, total_steps=total, num_examples=100)
    else:
        with pytest.raises(ConfigError, match="no step before the last"):
            Periods.of(config, total_steps=total, num_examples=100)
    without = small_config(evals__test__every_steps=0)
    Periods.of(without, total_steps=total, num_examples=100)


def test_saves_and_evaluations_are_due_in_any_unit():
    """Of 250 images in batches of 10, 50 updates: an epoch is 25."""
    config = small_config(
        batch_size=10, checkpoint__every_steps=None, checkpoint__every_percent=0.1,
        evals__test__every_steps=None, evals__test__every_epochs=1.0,
    )  # fmt: skip
    periods = Periods.of(config, total_steps=50, num_examples=250)
    assert (periods.save, periods.evaluate) == (5, {"test": 25})
    for total, period in ((1, 1), (10, 1), (14, 2), (51, 6), (70, 7)):  # At most ten saves.
        assert Periods.of(config, total_steps=total, num_examples=250).save == period
    for changes, message in (
        ({"checkpoint__every_epochs": 1.0}, "checkpoint: every_steps and every_epochs are set"),
        ({"checkpoint__every_steps": None}, "not set how often the run saves"),
        ({"evals__test__every_percent": 0.5}, r"evals\.test: every_steps and every_percent"),
    ):
        with pytest.raises(ConfigError, match=message):
            Periods.of(small_config(**changes), total_steps=50, num_examples=250)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.__setattr__("optim", None), "optim is None: it must be a section of keys"),
        (lambda c: c.model.update({"depth": 1.0}), "model.depth is 1.0: it must be a whole number"),
        (lambda c: c.optim.update({"lr": float("nan")}), "optim.lr is nan: it must be finite"),
        (lambda c: c.update({"init_skip": ({1: 2},)}), r"init_skip\[0\] has the key 1"),
        (lambda c: c.optim.__delattr__("lr"), 'lacks the key "optim.lr"'),
    ],
)
def test_a_config_with_wrong_keys_or_types_is_not_frozen(change, message):
    c = base_config().unlock()
    with c.ignore_type():
        change(c)
    with pytest.raises(ConfigError, match=message):
        freeze(c)
