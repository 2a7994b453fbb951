"""The linear probe on cached features is the run with a frozen body, and leaves the whole model."""

import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.small_run import mesh_of, run, small_config, train_on_one
from vit_jax.checkpoints.load import load_run
from vit_jax.config import classification_eval
from vit_jax.errors import ConfigError
from vit_jax.inference.evaluate import evaluate
from vit_jax.models import param_shapes, read_section
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.training import cached_features as probe
from vit_jax.training.run import train

PLAIN = small_config().data.eval_transforms
PROBE = {
    "optim__freeze": ("(?!head/).*",),
    "data__train_transforms": PLAIN,
    "evals": ConfigDict(
        {
            "test": classification_eval(split="test[:50]", every_steps=6),
            "val": classification_eval(split="train[:40]"),
        }
    ),
}


def assert_same_run(lines, others, rtol=2e-5):
    assert [line.keys() for line in lines] == [line.keys() for line in others]
    for line, other in zip(lines, others, strict=True):
        for key, value in line.items():
            assert value == pytest.approx(other[key], rel=rtol, abs=1e-6), (line["step"], key)


@pytest.mark.slow
def test_it_equals_the_run_with_a_frozen_body(tmp_path):
    run(tmp_path / "first", total_steps=3)
    changes = {**PROBE, "init_from": str(tmp_path / "first"), "optim__ema_decay": 0.9}
    slow = run(tmp_path / "slow", **changes)
    fast = run(tmp_path / "fast", **changes, cache_features=True)
    assert fast[0]["train/loss"] > fast[-1]["train/loss"]
    assert_same_run(fast, slow)

    mesh = mesh_of()
    first, ours, theirs = (
        load_run(tmp_path / name, mesh=mesh).params for name in ("first", "fast", "slow")
    )
    for part in ours.keys() - {"head"}:
        jax.tree.map(np.testing.assert_array_equal, ours[part], first[part])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)
    # It is a whole model: the images themselves are evaluated.
    report = evaluate(tmp_path / "fast").report
    assert report.top1 == fast[-1]["test/top1"]
    assert report.loss == pytest.approx(fast[-1]["test/loss"], rel=1e-5)


@pytest.mark.slow
def test_on_any_mesh_and_after_a_stop(tmp_path):
    run(tmp_path / "one", **PROBE, cache_features=True)
    config = small_config(**PROBE, cache_features=True, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    assert train(config, tmp_path / "eight") == 0
    lines = read_jsonl(tmp_path / "one" / "metrics.jsonl")
    assert_same_run(read_jsonl(tmp_path / "eight" / "metrics.jsonl"), lines)
    shutil.rmtree(tmp_path / "one" / "checkpoints" / "12")  # As if it was stopped after step 8.
    assert run(tmp_path / "one", **PROBE, cache_features=True) == lines


@pytest.mark.medium
def test_a_run_that_cannot_be_cached_is_refused(tmp_path):
    config = small_config(**PROBE | {"optim__freeze": ()}, cache_features=True)
    message = r"parameters outside the head are trained, such as \['cls'\]"
    with pytest.raises(ConfigError, match=message):
        train_on_one(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data__train_transforms": small_config().data.train_transforms},
            "differ from data.eval_tra",
        ),
        ({"mix__mixup_alpha": 0.2}, "mixup or CutMix is on"),
        ({"model__dropout": 0.1}, "the body has dropout"),
        ({"data__on_bad": "skip"}, 'on_bad is not "error"'),
        ({"model__distilled": True, "optim__freeze": ("(?!head/).*",)}, "has two heads"),
    ],
)
def test_settings_that_cannot_be_cached_are_named(changes, message):
    config = small_config(**PROBE | changes)
    cfg = read_section(config.model, num_classes=10)
    with pytest.raises(ConfigError, match=message):
        probe._check(config, cfg, param_shapes(cfg))
