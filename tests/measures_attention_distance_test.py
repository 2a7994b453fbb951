"""Attention distance, entropy and prefix share against slow formulas, for every family."""

import json

import jax
import numpy as np
import pytest

from tests.measured_models import FAMILIES, NO_ATTENTION, expected, family, inputs, small
from vit_jax import analysis
from vit_jax.analysis.measures.attention_distance import QUANTITIES
from vit_jax.analysis.measures.bootstrap import MeanOverImages
from vit_jax.analysis.measures.result import NotApplicableError

pytestmark = pytest.mark.medium


def slow_formula(attention, config):
    """The quantities of one image's attention [heads, n, n], loop by loop in float64."""
    (rows, columns), (height, width) = config.grid, config.stride
    prefix, heads = config.num_prefix, len(attention)
    sums = {name: np.zeros(heads) for name in QUANTITIES}
    for head in range(heads):
        for q in range(rows * columns):
            weights = attention[head, prefix + q].astype(np.float64)
            total = published = 0.0
            for k in range(rows * columns):
                dy = (q // columns - k // columns) * height
                dx = (q % columns - k % columns) * width
                published += weights[prefix + k] * (dy**2 + dx**2) ** 0.5
                total += weights[prefix + k]
            sums["distance"][head] += published / total
            sums["distance_published"][head] += published
            sums["entropy"][head] -= sum(w * np.log(w) for w in weights if w > 0)
            sums["prefix_share"][head] += weights[:prefix].sum()
    return {name: values / (rows * columns) for name, values in sums.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_slow_formula_on_the_references_attention(name):
    pretrained = family(name)
    attention = expected(name, "attn")
    if not attention:  # The reference gives no weights: our own forward pass.
        with jax.default_matmul_precision("highest"):
            attention = list(pretrained(inputs(name), capture="attention")[1]["attention"])
    with jax.default_matmul_precision("highest"):
        result = analysis.attention_distance(pretrained, inputs(name), batch_size=1)
    for layer, weights in enumerate(np.asarray(attention)):
        images = [slow_formula(image, pretrained.config) for image in weights]
        for quantity in QUANTITIES:
            want = np.mean([image[quantity] for image in images], axis=0)
            np.testing.assert_allclose(
                result.mean[quantity][layer], want, rtol=1e-6, atol=1e-6, err_msg=quantity
            )


@pytest.mark.parametrize("name", NO_ATTENTION)
def test_a_model_without_attention_is_named(name):
    with pytest.raises(NotApplicableError, match="it has no attention"):
        analysis.attention_distance(family(name), inputs(name))


def test_files_table_and_figure(tmp_path):
    result = analysis.attention_distance(small(image_size=(32, 48)), "digits:test[:5]")
    assert result.num_images == 5 and "5 images" in repr(result)
    paths = result.save(tmp_path)
    assert [path.suffix for path in paths] == [".png", ".svg", ".json", ".npz"]
    table = result.to_dataframe()
    assert list(table.columns[:3]) == ["layer", "head", "distance"]
    assert set(table["layer"]) == {1} and set(table["head"]) == {1, 2}  # As in the figure.
    stored = json.loads((tmp_path / "attention_distance.json").read_text())
    assert stored["arrays"]["distance"]["values"] == result.mean["distance"].tolist()
    with np.load(tmp_path / "attention_distance.npz") as arrays:
        np.testing.assert_array_equal(arrays["entropy"], result.mean["entropy"])
        assert (arrays["distance_low"] <= arrays["distance"]).all()
        assert (arrays["distance"] <= arrays["distance_high"]).all()


def test_attention_on_patches_alone_makes_both_distances_equal():
    result = analysis.attention_distance(small(pool="gap", image_size=(32, 48)), "digits:test[:2]")
    assert not result.mean["prefix_share"].any()
    np.testing.assert_allclose(
        result.mean["distance"], result.mean["distance_published"], rtol=1e-6
    )


def test_a_bootstrap_interval_covers_the_mean():
    """95% intervals of 200 samples of 50 normal values: 89% to 99% contain the true mean."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        mean = MeanOverImages()
        values = rng.normal(size=(50, 1))
        mean.add(values[:20])
        mean.add(values[20:])
        np.testing.assert_allclose(mean.mean, values.mean(axis=0))
        low, high = mean.interval
        covered += int(low[0] < 0 < high[0])
    assert 178 <= covered <= 198
