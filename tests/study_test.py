"""The numbers in the README follow from the table of our own study."""

import numpy as np
import pytest

from tests.conftest import ROOT
from vit_jax.scaling.question import Question
from vit_jax.scaling.study import study
from vit_jax.scaling.table import read_runs

TABLE = ROOT / "docs" / "study" / "runs.csv"


@pytest.fixture(scope="module")
def runs():
    return read_runs(TABLE)


def asked(runs, **question):
    return study(runs, Question(**question), runs=str(TABLE)).result


def ends(interval):
    return [interval["estimate"], interval["low"], interval["high"]]


def test_the_table(runs):
    assert set(runs["status"]) == {"finished"}
    test = runs["final"] & (runs["evaluation"] == "test")
    assert test.sum() == len(set(runs["run"])) == 210
    vits, resnets = (np.unique(runs["params"][runs["family"] == f]) for f in ("vit", "resnet"))
    assert (len(vits), vits[0], vits[-1]) == (5, 7562, 999_306)
    assert (len(resnets), resnets[0], resnets[-1]) == (3, 21_738, 498_922)
    assert list(np.unique(runs["examples"])) == [300, 1000, 3000, 10_000, 30_000, 60_000]
    assert list(np.unique(runs["examples_seen"])) == [25_600, 102_400, 409_600]
    seeds = {m: len(set(runs["seed"][runs["model"] == m])) for m in set(runs["model"])}
    assert sorted(m for m in seeds if seeds[m] == 3) == ["resnet-20k", "vit-40k", "vit-8k"]


@pytest.mark.slow
def test_by_images(runs):
    question = {"law": "power_floor", "columns": {"x": "examples"}, "chosen_by": "val"}
    result = asked(runs, group=("family",), where=("seed=0",), **question)
    (crossing,) = result["crossings"]
    assert crossing["group"] == "resnet" and "estimate" not in crossing
    assert crossing["times_x"]["high"] is None
    assert ends(crossing["times_x"])[:2] == pytest.approx([7.4, 2.2], rel=0.02)
    result = asked(runs, group=("model",), where=("model~*-?0k",), **question)
    (crossing,) = result["crossings"]
    assert (crossing["group"], crossing["over"]) == ("resnet-20k", "vit-40k")
    assert crossing["reason"].endswith("resnet-20k leads throughout.")
    assert ends(crossing["times_x"]) == pytest.approx([4.1, 2.4, 7.5], rel=0.02)


@pytest.mark.slow
def test_by_compute(runs):
    result = asked(runs, law="frontier", columns={"x": "total_train_flops"}, group=("family",))
    (crossing,) = result["crossings"]
    assert crossing["group"] == "resnet"
    assert ends(crossing) == pytest.approx([1.26e12, 0.86e12, 1.78e12], rel=0.02)
    parameters = {entry["group"]["family"]: entry["params"] for entry in result["groups"]}
    assert ends(parameters["vit"]["c"]) == pytest.approx([0.121, 0.116, 0.124], abs=0.0006)


@pytest.mark.slow
def test_by_parameters_and_images_seen(runs):
    result = asked(runs, law="chinchilla_repeat", group=("family",))
    parameters = {entry["group"]["family"]: entry["params"] for entry in result["groups"]}
    for family, parameter, published in (
        ("vit", "alpha", (0.42, 0.37, 0.50)),
        ("vit", "beta", (0.59, 0.53, 0.65)),
        ("resnet", "alpha", (0.42, 0.23, 0.82)),
        ("resnet", "beta", (0.41, 0.32, 0.52)),
    ):
        assert ends(parameters[family][parameter]) == pytest.approx(published, abs=0.006)
    assert parameters["vit"]["R_D"]["estimate"] == pytest.approx(160, rel=0.02)
    for held_back, published in (("params>=50%", 0.067), ("total_train_flops>=10%", 0.084)):
        (entry,) = asked(
            runs, law="chinchilla_repeat", where=("family=vit",), hold_back=(held_back,)
        )["groups"]
        assert entry["test"]["rows"] == 15
        assert entry["test"]["rmse_log"] == pytest.approx(published, abs=0.0006)
        assert not entry["extrapolation"]["supported"]
