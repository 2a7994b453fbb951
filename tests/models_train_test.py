"""ResNets, hybrids and Mixers are trained and evaluated by the same loop as ViTs."""

import numpy as np
import pytest

from tests.conftest import campaign
from tests.small_run import run
from vit_jax.inference.evaluate import evaluate

KINDS = {
    "ResNet v1": {
        "model__variant": "BiT-R26x0.5", "model__resnet__units": (1,), "model__depth": None,
        "model__resnet__version": "v1",
    },
    "ResNet v2": {
        "model__variant": "BiT-R26x0.5", "model__resnet__units": (1,), "model__depth": None,
    },
    "hybrid": {
        "model__variant": "R26+S/32", "model__resnet__units": (), "model__width": 32,
        "model__resnet__width_factor": 0.5, "model__mlp_dim": 64, "model__num_heads": 2,
    },
    "Mixer": {
        "model__variant": "Mixer-S/2", "model__width": 32, "model__mlp_dim": 64,
        "model__token_mlp_dim": 16, "model__stochastic_depth": 0.1,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ResNet v2", "Mixer", campaign("ResNet v1"), campaign("hybrid")])
def test_a_model_learns_digits(tmp_path, kind):
    lines = run(
        tmp_path, model__pool=None, batch_size=64, total_steps=100, optim__lr=1e-2,
        evals__test__every_steps=0, checkpoint__every_steps=100, **KINDS[kind],
    )  # fmt: skip
    losses = [line["train/loss"] for line in lines]
    assert losses[0] > 2  # A new head predicts all classes alike: log(10) is 2.3.
    assert np.mean(losses[-10:]) < 0.7 * losses[0]
    assert lines[-1]["test/top1"] > 0.5
    report = evaluate(tmp_path).report
    assert report.top1 == pytest.approx(lines[-1]["test/top1"]) and report.count == 50
