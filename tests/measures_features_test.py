"""PCA of patch features, similarity of patches, nearest images: against slow formulas."""

import collections

import jax
import numpy as np
import pytest
from PIL import Image

from tests.conftest import slow
from tests.measured_models import (
    FAMILIES,
    NO_ATTENTION,
    expected,
    family,
    fixture,
    inputs,
    small,
)
from vit_jax import analysis
from vit_jax.analysis.measures.encoder import measured
from vit_jax.analysis.measures.images import open_images
from vit_jax.analysis.measures.patch_tokens import patch_tokens
from vit_jax.analysis.measures.result import NotApplicableError
from vit_jax.errors import ConfigError

pytestmark = pytest.mark.medium
ALL = (*FAMILIES, *NO_ATTENTION)


def features_of(pretrained, images, layer=None):
    model = measured(pretrained)
    tokens = patch_tokens(model.model, model.variables, images, layer)
    return np.asarray(tokens, np.float64)


def slow_components(patches):
    """Center, vectors and shares of the variance, by the singular values of the patches."""
    center = patches.mean(axis=0)
    _, values, vectors = np.linalg.svd(patches - center, full_matrices=False)
    vectors = vectors[:3]
    for vector in vectors:
        if vector[np.abs(vector).argmax()] < 0:
            vector *= -1
    return center, vectors, values[:3] ** 2 / (values**2).sum()


def slow_foreground(first_component):
    """The patches on the side with fewer border patches, patch by patch."""
    borders = collections.Counter()
    images, rows, columns = first_component.shape
    for image in range(images):
        for row in range(rows):
            for column in range(columns):
                if row in (0, rows - 1) or column in (0, columns - 1):
                    borders[first_component[image, row, column] > 0] += 1
    return (first_component > 0) == (borders[True] <= borders[False])


@pytest.mark.parametrize("name", ALL)
def test_patch_features_are_the_references(name):
    """At the end of the model, and of its second block."""
    entry, images = fixture(name), inputs(name)
    config = family(name).config
    arrays = np.load(entry["folder"] / entry["expected"])
    prefix = getattr(config, "num_prefix", 0)
    blocks = dict(list(enumerate(expected(name, "block")))[1:2])
    blocks |= dict.fromkeys([None], arrays["tokens"]) if "tokens" in arrays else {}
    assert blocks or name == "bv_npz/bit_v1"
    with jax.default_matmul_precision("highest"):
        for layer, theirs in blocks.items():
            ours = features_of(family(name), images, layer)
            ours = ours.reshape(len(ours), -1, ours.shape[-1])
            np.testing.assert_allclose(ours, theirs[:, prefix:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("foreground", [True, slow(False)])
@pytest.mark.parametrize("name", ALL)
def test_pca_equals_the_slow_formula(name, foreground):
    pretrained, images = family(name), inputs(name)
    features = features_of(pretrained, images)
    flat = features.reshape(-1, features.shape[-1])
    result = analysis.feature_pca(pretrained, images, foreground=foreground, batch_size=1)
    center, vectors, explained = slow_components(flat)
    chosen = np.ones(features.shape[:3], bool)
    separating = (features - center) @ vectors[0]
    np.testing.assert_allclose(result.separating, separating, rtol=1e-5, atol=1e-5)
    if foreground:
        chosen = slow_foreground(separating)
        center, vectors, explained = slow_components(features[chosen])
    np.testing.assert_array_equal(result.foreground, chosen)
    assert result.foreground_share == pytest.approx(chosen.mean())
    scores = (features[chosen] - center) @ vectors.T
    np.testing.assert_allclose(result.explained, explained, rtol=1e-6)
    # Beyond the rank of few patches there are no directions to compare.
    rank = min(3, int(chosen.sum()) - 1)
    np.testing.assert_allclose(
        result.scores[chosen][:, :rank], scores[:, :rank], rtol=1e-5, atol=1e-5
    )
    assert np.isnan(result.scores[~chosen]).all() and np.isnan(result.colours[~chosen]).all()
    low, high = np.percentile(scores, (1, 99), axis=0)
    colours = np.clip((scores - low) / (high - low), 0, 1)
    np.testing.assert_allclose(result.colours[chosen][:, :rank], colours[:, :rank], atol=1e-4)


def test_components_are_of_all_images_and_a_few_are_shown():
    model = small(image_size=(32, 48), num_classes=0)
    images = np.random.default_rng(0).normal(size=(21, 32, 48, 3)).astype(np.float32)
    options = {"layer": 0, "foreground": False, "num_shown": 2}
    result = analysis.feature_pca(model, images, batch_size=8, **options)
    features = features_of(model, images, layer=0)
    center, vectors, explained = slow_components(features.reshape(-1, features.shape[-1]))
    np.testing.assert_allclose(result.explained, explained, rtol=1e-5)
    np.testing.assert_allclose(
        result.scores, (features[:2] - center) @ vectors.T, rtol=1e-4, atol=1e-4
    )
    assert result.num_images == 21 and result.pictures.shape == (2, 32, 48, 3)
    assert result.features == "output of block 1 of 1"


def test_images_without_a_foreground_are_shown_whole():
    """Of two patches, one is foreground, which has no components."""
    model = small(image_size=(16, 32))
    result = analysis.feature_pca(model, np.zeros((1, 16, 32, 3), np.float32), foreground=True)
    assert result.foreground.all() and "too few patches" in result.notes[0]
    assert np.isfinite(result.colours).all()


def slow_cosines(features, patch):
    """Cosines of a patch of the first image and each patch of [image, row, column, width]."""
    a, similarity = features[0][patch], np.zeros(features.shape[:3])
    for image, row, column in np.ndindex(similarity.shape):
        b = features[image, row, column]
        similarity[image, row, column] = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    return similarity


@pytest.mark.parametrize("name", ALL)
def test_similarity_equals_the_slow_formula(name):
    pretrained, images = family(name), inputs(name)
    features = features_of(pretrained, images)
    rows, columns = features.shape[1:3]
    queries = [(0, 0), (rows - 1, 0)]
    result = analysis.patch_similarity(pretrained, images, patch=queries)
    for query, patch in enumerate(queries):
        want = slow_cosines(features, patch)
        np.testing.assert_allclose(result.similarity[query], want, atol=1e-6)
    centre = analysis.patch_similarity(pretrained, images, num_images=1)
    assert centre.patches == ((rows // 2, columns // 2),)
    assert centre.similarity.shape == (1, 1, rows, columns)


def slow_neighbours(features, query, k):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit[query]
    cosines[query] = -np.inf
    nearest = sorted(range(len(features)), key=lambda i: -cosines[i])[:k]
    return nearest, cosines[nearest]


def test_nearest_images_of_labelled_data():
    model = small(image_size=32)
    result = analysis.nearest_images(model, "digits:test[:60]", num_queries=4, k=3, batch_size=25)
    batch = next(open_images(model, "digits:test[:60]").batches(60))
    features = np.asarray(model(batch.images)[1]["pre_logits"], np.float64)
    hits = collections.Counter()
    for image in range(60):
        nearest, cosines = slow_neighbours(features, image, 3)
        labels = [int(batch.labels[i]) for i in nearest]
        counts = collections.Counter(labels)
        winner = max(labels, key=lambda label: counts[label])  # The nearest of the most frequent.
        hits[1] += labels[0] == batch.labels[image]
        hits[3] += winner == batch.labels[image]
        if image in result.queries:
            row = list(result.queries).index(image)
            assert result.neighbours[row].tolist() == nearest
            np.testing.assert_allclose(result.similarity[row], cosines, atol=1e-6)
            assert result.labels[row].tolist() == [batch.labels[image], *labels]
            shown = np.asarray(batch.images)[[image, *nearest]]
            np.testing.assert_array_equal(result.pictures[row], model.preprocess.restored(shown))
    assert result.queries.tolist() == [0, 20, 39, 59]
    for k, (share, low, high) in result.agreement.items():
        assert share == hits[k] / 60 and low < share < high
    assert list(result.agreement) == [1, 3]


def test_neighbours_among_files_of_which_some_are_broken(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (7, 32, 32, 3), np.uint8)
    pixels[6] = pixels[1]  # The nearest of image 1 is its copy.
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_text("broken")
    model = small(image_size=32)
    result = analysis.nearest_images(model, tmp_path, num_queries=6, k=99, batch_size=1)
    assert result.num_images == 6 and result.neighbours.shape == (6, 5)
    assert result.neighbours[1, 0] == 5 and result.similarity[1, 0] == pytest.approx(1)
    np.testing.assert_array_equal(result.pictures[1, 1], pixels[6])
    table = result.to_dataframe()
    assert list(table.columns) == ["query", "rank", "neighbour", "similarity"]
    assert list(table["rank"][:6]) == [1, 2, 3, 4, 5, 1]
    assert table["query"][5].endswith("1.png") and table["neighbour"][5].endswith("6.png")
    assert result.labels is None and not result.agreement


@pytest.mark.parametrize("name", ["feature_pca", "patch_similarity", "nearest_images"])
def test_files_and_figures(name, tmp_path):
    result = getattr(analysis, name)(small(image_size=(32, 48)), "digits:test[:3]")
    assert result.name == name and len(result.save(tmp_path)) == 4
    with np.load(tmp_path / f"{name}.npz") as arrays:
        for key, array in result.arrays().items():
            np.testing.assert_array_equal(arrays[key], array.values)
            assert array.values.ndim == len(array.axes)
    assert len(result.to_dataframe())


def test_mistakes_are_named():
    model, image = small(image_size=32), np.zeros((32, 32, 3), np.uint8)
    resnet, pictures = family("bv_npz/bit_v1"), inputs("bv_npz/bit_v1")
    for error, call, text in (
        (ConfigError, lambda: analysis.feature_pca(model, image, num_shown=0), "num_shown is 0"),
        (ConfigError, lambda: analysis.feature_pca(model, image, layer=1), "the blocks 0 to 0"),
        (NotApplicableError, lambda: analysis.feature_pca(resnet, pictures, layer=0), "Resnet"),
        (ConfigError, lambda: analysis.patch_similarity(model, image, patch=(2, 0)),
         r"from \(0, 0\) to \(1, 1\)"),
        (ConfigError, lambda: analysis.patch_similarity(model, image, num_images=0), "is 0"),
        (ConfigError, lambda: analysis.nearest_images(model, [image] * 2, k=0), "k is 0"),
        (NotApplicableError, lambda: analysis.nearest_images(model, image), "at least two"),
    ):  # fmt: skip
        with pytest.raises(error, match=text):
            call()
