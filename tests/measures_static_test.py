"""Measures of parameters alone: filters of the embedding, and similarity of positions."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.measured_models import FAMILIES, NO_ATTENTION, family, small
from vit_jax import analysis
from vit_jax.analysis.measures.embedding_filters import filter_images
from vit_jax.analysis.measures.position_similarity import cosine_similarity
from vit_jax.analysis.measures.position_structure import describe_similarity, embedding_variance
from vit_jax.analysis.measures.result import NotApplicableError
from vit_jax.config.model import ResnetConfig
from vit_jax.errors import ConfigError
from vit_jax.models.positions import rotation
from vit_jax.models.resize import matrix

pytestmark = pytest.mark.medium


# ---------------------------------------------------------------------------------------- filters


def reference_filters(pretrained):
    """The first layer's kernel in float64, [filters, entries], standardised filter by filter."""
    config, params = pretrained.config, pretrained.params
    stem = config if isinstance(config, ResnetConfig) else getattr(config, "stem", None)
    if stem is None:
        kernel = np.asarray(params["embedding"]["kernel"], np.float64)
        return kernel.reshape(-1, config.width).T
    root = params["root"] if stem is config else params["stem"]["root"]
    kernel = np.asarray(root["conv"]["kernel"], np.float64)
    filters = []
    for i in range(kernel.shape[-1]):
        filter_ = kernel[..., i].ravel() - kernel[..., i].mean()
        variance = (filter_**2).mean()
        in_std = stem.std_eps_in == "std"
        filters.append(
            filter_ / (variance**0.5 + stem.std_eps if in_std else (variance + stem.std_eps) ** 0.5)
        )
    return np.stack(filters)


@pytest.mark.parametrize("name", (*FAMILIES, *NO_ATTENTION))
def test_components_are_the_eigenvectors_of_the_covariance(name):
    pretrained = family(name)
    result = analysis.embedding_filters(pretrained, num_components=5)
    filters = reference_filters(pretrained)
    np.testing.assert_allclose(result.filters.reshape(filters.shape), filters, atol=1e-6)
    count = len(filters)
    # Of the measured float32 filters: nearly equal eigenvalues amplify what float64 would change.
    filters = result.filters.reshape(count, -1)
    centred = filters - sum(filters) / count
    values, vectors = np.linalg.eigh(centred.T @ centred / (count - 1))
    order = np.argsort(-values)
    shares = values[order] / np.trace(centred.T @ centred / (count - 1))
    np.testing.assert_allclose(result.explained, shares[: len(result.explained)], atol=1e-10)
    assert len(result.explained) == min(count - 1, filters.shape[1])
    for component, vector in zip(result.components, vectors.T[order], strict=False):
        vector = vector * np.sign(vector[np.abs(vector).argmax()])
        np.testing.assert_allclose(component.ravel(), vector, atol=1e-6)
    removed = 1 - (centred**2).sum() / (filters**2).sum()
    np.testing.assert_allclose(result.mean_share, removed, atol=1e-12)


def test_components_do_not_depend_on_the_order_or_scale_of_the_filters():
    pretrained = small()
    kernel = pretrained.params["embedding"]["kernel"]
    changed = -3 * kernel[..., np.random.default_rng(0).permutation(kernel.shape[-1])]
    params = {**pretrained.params, "embedding": {"kernel": changed}}
    first = analysis.embedding_filters(pretrained)
    second = analysis.embedding_filters(dataclasses.replace(pretrained, params=params))
    np.testing.assert_allclose(first.components, second.components, atol=1e-6)
    np.testing.assert_allclose(first.explained, second.explained, atol=1e-6)


def test_a_component_is_drawn_around_grey():
    entries = np.array([[2.0, -1.0], [0.0, 4.0]])
    want = [[0.75, 0.375], [0.5, 1.0]]
    grey = filter_images(entries[None, ..., None])
    np.testing.assert_array_equal(grey, [want])
    rgb = filter_images(np.stack([entries, -entries, 0 * entries], axis=-1)[None])
    np.testing.assert_array_equal(rgb[0, ..., 0], want)
    np.testing.assert_array_equal(rgb[0, ..., 1], 1 - np.array(want))
    np.testing.assert_array_equal(rgb[0, ..., 2], 0.5)
    two = filter_images(np.stack([entries, 0 * entries], axis=-1)[None])  # Norm over channels.
    np.testing.assert_array_equal(two, [[[0.5, 0.25], [0.0, 1.0]]])


def test_filters_are_saved_and_drawn(tmp_path):
    pretrained = family("vt_npz/hybrid_token")
    result = analysis.embedding_filters(pretrained, num_components=3)
    assert [path.suffix for path in result.save(tmp_path)] == [".png", ".svg", ".json", ".npz"]
    with np.load(tmp_path / "embedding_filters.npz") as arrays:
        assert arrays["filters"].shape == (32, 7, 7, 3)
        assert arrays["components"].shape == (3, 7, 7, 3)
    table = result.to_dataframe()
    assert list(table.columns) == ["component", "explained", "cumulative"]
    assert table.cumulative.iloc[-1] == pytest.approx(1)
    every = analysis.embedding_filters(pretrained, num_components=1000)
    assert len(every.components) == len(every.explained)
    with pytest.raises(ConfigError, match="at least 1"):
        analysis.embedding_filters(pretrained, num_components=0)


# -------------------------------------------------------------------------------------- positions


def slow_similarity(pretrained, part):
    """The similarities of all pairs of patches, pair by pair in float64: [patches, patches]."""
    config = pretrained.config
    patches = config.grid[0] * config.grid[1]
    if part == "rotary":
        # The matrix of each position's rotation: what it makes of each basis vector.
        width = config.width // config.num_heads
        basis = jnp.tile(jnp.eye(width)[:, None, None], (1, patches, 1, 1))
        rotations = np.asarray(rotation(config)(basis), np.float64)[:, :, 0].transpose(1, 2, 0)
        return np.array([[np.trace(a.T @ b) / width for b in rotations] for a in rotations])
    # What the forward pass adds: the tokens without the patch embedding and the prefix tokens.
    params = jax.tree.map(jnp.zeros_like, pretrained.params)
    if part == "learned":
        params["pos_embedding"] = pretrained.params["pos_embedding"]
    model = dataclasses.replace(pretrained, params=params)
    images = np.zeros((1, *config.image_size, config.channels), np.float32)
    tokens = np.asarray(model(images, capture="embed")[1]["embed"][0], np.float64)
    vectors = tokens[config.num_prefix :]
    return np.array([
        [a @ b / (a @ a) ** 0.5 / (b @ b) ** 0.5 for b in vectors] for a in vectors
    ])  # fmt: skip


def slow_structure(similarity, grid):
    """Profiles and numbers, pair by pair."""
    positions = list(itertools.product(range(grid[0]), range(grid[1])))
    profiles = {"same_row": {}, "same_column": {}, "other": {}}
    pairs, differences, design, adjacent = [], {}, [], []
    for i, (y, x) in enumerate(positions):
        others = []
        for j, (y2, x2) in enumerate(positions):
            dy, dx = y2 - y, x2 - x
            distance = round((dy**2 + dx**2) ** 0.5)
            names = ["same_row"] * (dy == 0) + ["same_column"] * (dx == 0) or ["other"]
            for name in names:
                profiles[name].setdefault(distance, []).append(similarity[i, j])
            if i != j:
                others.append((similarity[i, j], abs(dy) + abs(dx) == 1))
                differences.setdefault((dy, dx), []).append(similarity[i, j])
                pairs.append(similarity[i, j])
                design.append(np.concatenate([np.eye(grid[0])[abs(dy)], np.eye(grid[1])[abs(dx)]]))
        adjacent.append(max(others)[1])
    pairs, design = np.array(pairs), np.array(design)
    total = ((pairs - pairs.mean()) ** 2).sum()
    within = sum(((np.array(v) - np.mean(v)) ** 2).sum() for v in differences.values())
    fitted = design @ np.linalg.pinv(design) @ pairs
    return profiles, {
        "difference_r2": 1 - within / total,
        "additive_r2": 1 - ((pairs - fitted) ** 2).sum() / total,
        "neighbour_accuracy": np.mean(adjacent),
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_similarity_equals_the_slow_formula(name):
    pretrained = family(name)
    config = pretrained.config
    result = analysis.position_similarity(pretrained)
    posemb, rope = (value != "none" for value in (config.posemb, config.rope))
    assert list(result.parts) == [config.posemb] * posemb + ["rotary"] * rope
    for part, structure in result.parts.items():
        similarity = structure.similarity.reshape(config.grid[0] * config.grid[1], -1)
        np.testing.assert_allclose(similarity, slow_similarity(pretrained, part), atol=1e-6)


def test_structure_equals_the_slow_formula():
    rng, grid = np.random.default_rng(0), (3, 5)
    vectors = rng.normal(size=(*grid, 8)) + rng.normal(size=(3, 1, 8))
    similarity = cosine_similarity(vectors.reshape(15, 8))
    structure = describe_similarity(similarity.reshape(*grid, *grid))
    profiles, numbers = slow_structure(similarity, grid)
    for name, profile in structure.profiles.items():
        want = {distance: np.mean(values) for distance, values in profiles[name].items()}
        shown = {d: value for d, value in enumerate(profile) if np.isfinite(value)}
        assert shown == pytest.approx(want)
    chance = np.mean([abs(a - b) + abs(c - d) == 1 for a, c in np.ndindex(grid)
                      for b, d in np.ndindex(grid) if (a, c) != (b, d)])  # fmt: skip
    assert structure.numbers == pytest.approx({**numbers, "neighbour_chance": chance})


@pytest.mark.parametrize(
    "fields",
    [
        {"posemb": "sincos2d"},
        {"posemb": "none", "rope": "dinov3"},
        {"posemb": "none", "rope": "axial_ij", "rope_grid": (4, 4)},
        {"posemb": "none", "rope": "axial_xy"},
    ],
    ids=lambda fields: fields.get("rope", "sincos2d"),
)
def test_computed_positions_know_differences_alone(fields):
    """The similarity is f(row difference) + g(column difference), before and after a resize."""
    result = analysis.position_similarity(small(image_size=(48, 80), **fields), image_size=(96, 64))
    for structure in (*result.parts.values(), *result.resized.values()):
        similarity, (rows, columns) = structure.similarity, structure.grid
        np.testing.assert_allclose(
            similarity[1:, 1:, 1:, 1:],
            similarity[: rows - 1, : columns - 1, : rows - 1, : columns - 1],
            atol=1e-6,
        )
        assert structure.numbers["difference_r2"] == pytest.approx(1, abs=1e-6)
        assert structure.numbers["additive_r2"] == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(np.einsum("yxyx->yx", similarity), 1, atol=1e-6)


def test_rotary_similarity_is_the_mean_over_contents():
    """Of random contents, rotated as queries and keys are: within four standard errors."""
    pretrained = small(posemb="none", rope="dinov3", image_size=(32, 48))
    config = pretrained.config
    width, patches = config.width // config.num_heads, config.grid[0] * config.grid[1]
    content = np.random.default_rng(0).normal(size=(5_000, 1, 1, width)).astype(np.float32)
    rotated = rotation(config)(jnp.tile(content, (1, patches, 1, 1)))[:, :, 0]
    products = np.asarray(jnp.einsum("bid,bjd->bij", rotated, rotated))
    products = products / np.square(content).sum(axis=(1, 2, 3))[:, None, None]
    error = products.std(axis=0) / len(products) ** 0.5
    measured = analysis.position_similarity(pretrained).parts["rotary"].similarity
    difference = np.abs(products.mean(axis=0) - measured.reshape(patches, patches))
    assert (difference <= 4 * error + 1e-6).all()


def test_a_resized_embedding_is_that_of_the_model_at_this_size():
    pretrained = small(image_size=(32, 48), posemb_resize="bicubic", registers=2)
    result = analysis.position_similarity(pretrained, image_size=(64, 80))
    table = np.asarray(pretrained.params["pos_embedding"], np.float64)[0, 1:].reshape(2, 3, -1)
    resized = np.einsum("yh,xw,hwd->yxd", matrix("bicubic", 2, 4), matrix("bicubic", 3, 5), table)
    want = cosine_similarity(resized.reshape(20, -1)).reshape(4, 5, 4, 5)
    np.testing.assert_allclose(result.resized["learned"].similarity, want, atol=1e-6)
    # The correlation over the common grid, the first one, pair by pair.
    down, across = matrix("bilinear", 4, 2), matrix("bilinear", 5, 3)
    common = np.einsum("ai,bj,ck,dl,ijkl->abcd", down, across, down, across, want)
    pairs = ~np.eye(6, dtype=bool)
    before = result.parts["learned"].similarity.reshape(6, 6)[pairs]
    expected = np.corrcoef(before, common.reshape(6, 6)[pairs])[0, 1]
    assert result.correlation["learned"] == pytest.approx(expected, abs=1e-5)
    same = analysis.position_similarity(pretrained, image_size=(32, 48))
    assert same.correlation["learned"] == pytest.approx(1)


def test_variance_of_rows_columns_and_interaction():
    rng = np.random.default_rng(0)
    row, column = rng.normal(size=(4, 1, 8)), rng.normal(size=(1, 6, 8))
    shares = embedding_variance(row + column + 5)
    variances = [value.var(axis=(0, 1)).sum() for value in (row, column)]
    assert shares["row"] == pytest.approx(variances[0] / sum(variances))
    assert shares["column"] == pytest.approx(variances[1] / sum(variances))
    assert shares["interaction"] == pytest.approx(0, abs=1e-12)
    noise = embedding_variance(rng.normal(size=(4, 6, 8)))
    assert noise["interaction"] > 0.4 and sum(noise.values()) == pytest.approx(1)


def test_both_parts_of_a_model_are_saved_and_drawn(tmp_path):
    pretrained = small(image_size=(64, 256), rope="axial_ij", registers=1)
    result = analysis.position_similarity(pretrained, image_size=(96, 64))
    assert list(result.parts) == list(result.resized) == ["learned", "rotary"]
    assert len(result.save(tmp_path)) == 4
    table = result.to_dataframe()
    assert list(table.columns[:2]) == ["distance", "learned_same_row"]
    assert len(table) == 16  # The distance of opposite corners is sqrt(3^2 + 15^2).
    with np.load(tmp_path / "position_similarity.npz") as arrays:
        assert arrays["learned_resized_similarity"].shape == (6, 4, 6, 4)
    with pytest.raises(ConfigError, match="not a multiple"):
        analysis.position_similarity(pretrained, image_size=50)


def test_a_single_patch_has_no_structure():
    result = analysis.position_similarity(small(image_size=16))
    assert np.isnan(list(result.parts["learned"].numbers.values())).all()
    assert result.to_json()["arrays"]["learned_additive_r2"]["values"] is None
    result.plot()


def test_models_without_position_embeddings_are_named():
    with pytest.raises(NotApplicableError, match="weights for each position"):
        analysis.position_similarity(family("vt_npz/mixer"))
    with pytest.raises(NotApplicableError, match="is a Resnet"):
        analysis.position_similarity(family("bv_npz/bit_v1"))
    with pytest.raises(NotApplicableError, match="are none"):
        analysis.position_similarity(small(posemb="none"))
