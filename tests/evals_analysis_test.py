"""Evaluations of the type analysis: metrics of a run, columns of a table, and refusals."""

import math

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from tests.small_run import mesh_of, small_config
from vit_jax import analysis, load_pretrained
from vit_jax.analysis.measures.registry import OVER_TRAINING
from vit_jax.config import analysis_eval, classification_eval
from vit_jax.errors import ConfigError
from vit_jax.models import build, read_section
from vit_jax.parallel.rules import param_shardings
from vit_jax.rundir import workdir as workdirs
from vit_jax.scaling.fit import fit_law
from vit_jax.scaling.table import read_runs
from vit_jax.sweeps.table import collect
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.training.experiment import Experiment, open_training_data
from vit_jax.training.final_similarity import FinalSimilarity

pytestmark = pytest.mark.medium
EVALS = ConfigDict(
    {
        "attention": analysis_eval(
            split="test[:20]", measures=("attention_distance", "layer_similarity"), every_steps=6
        ),
        "test": classification_eval(split="test[:50]"),
    }
)


def experiment_of(config, mesh):
    return Experiment.of(config, open_training_data(config), mesh)


@pytest.fixture(scope="module")
def sweep(finished_run, tmp_path_factory):
    """A folder with a run that has both types of evaluations."""
    folder = tmp_path_factory.mktemp("sweep")
    finished_run(folder / "a", evals=EVALS, checkpoint__every_steps=6, checkpoint__keep_last=2)
    return folder


def test_the_last_values_are_those_of_analyze(sweep):
    lines = read_jsonl(sweep / "a" / "metrics.jsonl")
    measured = [line for line in lines if "attention/count" in line]
    assert [line["step"] for line in measured] == [6, 12]
    model = load_pretrained(sweep / "a")
    summary = analysis.attention_distance(model, "digits:test[:20]").summary()
    summary |= analysis.layer_similarity(model, "digits:test[:20]").summary()
    assert len(summary) == 5 and measured[-1]["attention/count"] == 20
    for name, value in summary.items():
        assert measured[-1][f"attention/{name}"] == pytest.approx(value, rel=1e-5)
        assert measured[0][f"attention/{name}"] != measured[-1][f"attention/{name}"]
    # The config with both types is read again as it was, and the run is evaluated on "test".
    assert workdirs.read_config(sweep / "a").evals.attention.measures == EVALS.attention.measures
    found = analysis.analyze(sweep / "a", num_images=None, only=["attention_distance"])
    assert "50 images from digits, test[:50]" in found.images


def test_each_state_is_compared_with_the_final_one(sweep):
    """The same numbers as of two checkpoints that are compared afterwards."""
    runs = read_runs(collect(sweep))
    rows = runs["evaluation"] == "attention"
    first, last = (load_pretrained(sweep / "a" / "checkpoints" / step) for step in ("6", "12"))
    cka = np.diag(analysis.layer_similarity(first, "digits:test[:20]", last).cka)
    for name, value in (("first_layer", cka[1]), ("last_layer", cka[-1]), ("mean", cka.mean())):
        column = runs[f"cka_final_state_{name}"]
        np.testing.assert_allclose(column[rows], [value, 1], rtol=1e-5)
        assert np.isnan(column[~rows]).all()


def test_a_state_of_other_images_is_not_compared(tmp_path, caplog):
    """Nor is one whose file is damaged: the end of a run does not depend on these files."""
    one, two = (
        experiment_of(
            small_config(
                evals=ConfigDict({"a": analysis_eval(split=split, measures=("layer_similarity",))})
            ),
            mesh_of(),
        )
        for split in ("test[:20]", "test[20:40]")
    )
    x = np.random.default_rng(0).normal(size=(2, 3, 20, 8))
    first, last = x @ x.swapaxes(-1, -2)
    FinalSimilarity(epath.Path(tmp_path), one).keep("a", 2, [first])
    FinalSimilarity(epath.Path(tmp_path), two).keep("a", 4, [first])
    folder = workdirs.similarity_file(tmp_path, "a").parent
    (folder / "6.npz").write_bytes(b"")
    (folder / "6 (copy).npz").write_bytes(b"")
    FinalSimilarity(epath.Path(tmp_path), two).keep("a", two.total_steps, [last])
    lines = read_jsonl(workdirs.similarity_file(tmp_path, "a"))
    assert [line["step"] for line in lines] == [4, two.total_steps]
    assert lines[0]["a/cka_final_state_mean"] < 0.9 and "2 earlier states are not" in caplog.text


def test_the_values_are_columns_that_a_law_is_fitted_to(sweep):
    runs = read_runs(collect(sweep))
    rows = runs["evaluation"] == "attention"
    column = runs["attention_distance_last_layer"]
    assert rows.sum() == 2 and np.isfinite(column[rows]).all()
    assert np.isnan(column[~rows]).all() and np.isnan(runs["loss"][rows]).all()
    # Such a table of six sizes; the values of this run, scaled, are what a power law gives.
    sizes = np.array([1, 2, 4, 8, 16, 32]) * 1000
    table = {name: np.repeat(values[rows][-1:], len(sizes)) for name, values in runs.items()}
    table |= {"params": sizes, "attention_distance_last_layer": column[rows][-1] * sizes**-0.1}
    study = fit_law(
        table,
        "power",
        y="attention_distance_last_layer",
        x="params",
        where=["evaluation=attention"],
    )
    assert study.params()["c"].estimate == pytest.approx(-0.1, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"model__lora_rank": 2, "model__scan": False}])
def test_a_sharded_model_has_the_same_values(fields):
    """Parameters and batches on eight devices, as the train loop has them."""
    entry = analysis_eval(split="test[:20]", measures=OVER_TRAINING, every_steps=6)
    evals = ConfigDict({"attention": entry})
    config = small_config(evals=evals, model__num_heads=4, **fields)
    model_config = read_section(config.model, num_classes=10)

    def values(mesh):
        with jax.set_mesh(mesh):
            experiment = experiment_of(config, mesh)
            params = jax.jit(build(model_config).init)(
                jax.random.key(0), np.zeros((8, 8, 8, 1), np.float32)
            )["params"]
            params = jax.device_put(params, param_shardings(params, mesh))
            with jax.transfer_guard("disallow"):
                return experiment.evals["attention"].run(params)

    alone, sharded = values(mesh_of()), values(mesh_of(2, 2, 2))
    assert alone.keys() == sharded.keys() and alone["count"] == 20
    for name, value in alone.items():
        assert math.isfinite(value) and sharded[name] == pytest.approx(value, rel=1e-5)


RESNET = {
    "model__variant": "BiT-R26x0.5", "model__resnet__units": (1,), "model__depth": None,
    "model__pool": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("measures", "fields", "text"),
    [
        (("atention_distance",), {}, 'Did you mean "attention_distance"'),
        ((), {}, "config.evals.attention.measures is empty"),
        (
            ("attention_distance",),
            RESNET,
            'measures: "attention_distance" does not apply: .* is a Resnet: it has no attention',
        ),
    ],
)
def test_a_measure_that_the_model_has_not_is_refused_at_the_start(measures, fields, text):
    entry = analysis_eval(split="test[:20]", measures=measures)
    config = small_config(evals=ConfigDict({"attention": entry}), **fields)
    with pytest.raises(ConfigError, match=text):
        experiment_of(config, mesh_of())


@pytest.mark.parametrize("name", OVER_TRAINING)
def test_every_measure_over_training_can_be_checked_before_there_are_parameters(name):
    config = small_config(
        evals=ConfigDict({"a": analysis_eval(split="test[:20]", measures=(name,))})
    )
    assert experiment_of(config, mesh_of()).evals["a"].num_examples == 20
