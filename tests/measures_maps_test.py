"""Attention maps and explanations of images against slow formulas, for every family."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from tests.conftest import slow
from tests.measured_models import (
    FAMILIES,
    NO_ATTENTION,
    ONE_FAMILY,
    expected,
    family,
    fixture,
    inputs,
    small,
)
from vit_jax import analysis, create
from vit_jax.analysis.measures.encoder import measured
from vit_jax.analysis.measures.explanation_maps import METHODS, explanation_maps
from vit_jax.analysis.measures.result import NotApplicableError
from vit_jax.errors import ConfigError

pytestmark = pytest.mark.medium


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def weights(name):
    """The reference's attention [layer][b, heads, n, n]; our own where it gives none."""
    return expected(name, "attn") or list(
        family(name)(inputs(name), capture="attention")[1]["attention"]
    )


def row_of(matrix, config):
    """The row of what the head reads of a matrix [n, n]."""
    patches = sum(matrix[config.num_prefix :]) / (config.grid[0] * config.grid[1])
    if config.pool == "token_gap":
        return (matrix[0] + patches) / 2
    if config.pool == "token":
        return (matrix[0] + matrix[1]) / 2 if config.distilled else matrix[0]
    return patches


def probe_of(name):
    """A probe's weights [b, heads, n]: the reference's, or ours."""
    entry = fixture(name)
    arrays = np.load(entry["folder"] / entry["expected"])
    if "attnpool" in arrays:
        return arrays["attnpool"].reshape(2, -1, arrays["attnpool"].shape[-1])
    return np.asarray(family(name)(inputs(name), capture="pool_attention")[1]["pool_attention"])[
        :, :, 0
    ]


def slow_rollout(layers, config):
    """The product over layers of (attention + identity) / 2, of one image's [heads, n, n]."""
    product = np.eye(config.num_tokens)
    for attention in layers:
        mean = sum(np.asarray(attention, np.float64)) / config.num_heads
        product = (0.5 * mean + 0.5 * np.eye(config.num_tokens)) @ product
    return product


def slow_relevance(layers, gradients, config):
    """The product over layers of identity + mean of max(0, gradient * attention), head by head."""
    relevance = np.eye(config.num_tokens)
    for attention, gradient in zip(layers, gradients, strict=True):
        positive = np.zeros_like(relevance)
        for head in range(config.num_heads):
            product = gradient[head] * np.asarray(attention[head], np.float64)
            positive += np.maximum(product, 0) / config.num_heads
        relevance = relevance + positive @ relevance
    return relevance


def slow_cam(features, gradient):
    """Channels of [positions, channels] weighted by their mean gradients, before max(0, .)."""
    cam = np.zeros(len(features))
    for channel in range(features.shape[1]):
        alpha = sum(gradient[:, channel].astype(np.float64)) / len(gradient)
        cam += alpha * features[:, channel].astype(np.float64)
    return cam


def on_grid(row, config):
    return np.asarray(row)[config.num_prefix :].reshape(config.grid)


def maps_of(pretrained, images, methods, targets=None):
    model = measured(pretrained)
    targets = np.zeros(len(images), int) if targets is None else np.asarray(targets)
    return jax.device_get(
        explanation_maps(model.model, model.variables, images, targets, tuple(methods))
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_maps_are_rows_of_the_references_attention(name):
    pretrained, config = family(name), family(name).config
    result = analysis.attention_maps(pretrained, inputs(name))
    for layer, attention in enumerate(weights(name)):
        for head, matrix in enumerate(np.asarray(attention[0], np.float64)):
            row = row_of(matrix, config)
            np.testing.assert_allclose(
                result.attention[layer, head], on_grid(row, config), rtol=2e-5, atol=1e-6
            )
            np.testing.assert_allclose(
                result.prefix_share[layer, head],
                row[: config.num_prefix].sum(),
                rtol=2e-5,
                atol=1e-6,
            )
    if config.pool.startswith("map"):
        np.testing.assert_allclose(
            result.probe.reshape(config.num_heads, -1), probe_of(name)[0], atol=1e-6
        )


def test_the_query_is_the_token_that_was_asked_for():
    model = small(image_size=(32, 48), distilled=True, registers=2)
    images = np.random.default_rng(0).normal(size=(1, 32, 48, 3)).astype(np.float32)
    attention = np.asarray(model(images, capture="attention")[1]["attention"])[:, 0]
    for query, token in {
        "distillation": 1, "register1": 3, (1, 2): 9,
    }.items():  # fmt: skip
        result = analysis.attention_maps(model, images, query=query)
        np.testing.assert_allclose(
            result.attention, attention[:, :, token, 4:].reshape(1, 2, 2, 3), rtol=1e-5
        )
    assert result.patch == (16, 32, 16, 16) and "row 2, column 3" in result.query
    for query, text in {
        "register2": 'Did you mean "register1"', (2, 0): "2 rows and 3 columns",
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=text):
            analysis.attention_maps(model, images, query=query)
    with pytest.raises(ConfigError, match="no prefix tokens"):
        analysis.attention_maps(small(pool="gap", image_size=(32, 48)), images, query="class")
    with pytest.raises(ConfigError, match="layer is 1: the model has 1 layers"):
        analysis.attention_maps(model, images, layer=1)


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_and_rollout_equal_the_slow_formula(name):
    pretrained, config = family(name), family(name).config
    maps = maps_of(pretrained, inputs(name), ("attention", "rollout"))
    for image in range(2):
        layers = [attention[image] for attention in weights(name)]
        product = slow_rollout(layers, config)
        mean = sum(np.asarray(layers[-1], np.float64)) / config.num_heads
        np.testing.assert_allclose(product.sum(axis=1), 1, rtol=1e-5)
        if config.pool.startswith("map"):
            probe = probe_of(name)[image].mean(axis=0).astype(np.float64)
            want = {"attention": probe, "rollout": probe @ product}
        else:
            want = {"attention": row_of(mean, config), "rollout": row_of(product, config)}
        for method, row in want.items():
            np.testing.assert_allclose(
                maps[method][image], on_grid(row, config), rtol=1e-5, atol=1e-6, err_msg=method
            )


@functools.cache
def gradient_program(name):
    """The gradients at all attention weights and block outputs at once, by one backward pass."""
    model = measured(family(name))
    config, capture = model.config, ("blocks",)
    batch, tokens = 2, config.num_tokens
    blocks = {"blocks": np.zeros((config.depth, batch, tokens, config.width), np.float32)}
    zeros = {"encoder": {"blocks": blocks}}
    if name != "vt_npz/mixer":
        capture = ("blocks", "embed", "attention", "pool_attention")
        shape = (config.depth, batch, config.num_heads, tokens, tokens)
        blocks["attn"] = {"attention": np.zeros(shape, np.float32)}
        if config.pool == "map":
            shape = (batch, config.num_heads, 1, tokens)
            zeros["map_head"] = {"attn": {"attention": np.zeros(shape, np.float32)}}

    def logits(perturbations, targets):
        variables = {**model.variables, "perturbations": perturbations}
        out, intermediates = model.model.apply(variables, inputs(name), capture=capture)
        return (out * np.eye(config.num_classes)[list(targets)]).sum(), intermediates

    return jax.jit(jax.grad(logits, has_aux=True), static_argnums=1), zeros


@pytest.mark.parametrize("name", [*ONE_FAMILY, slow("vt_npz/mixer")])
def test_relevance_and_grad_cam_equal_the_slow_formula(name):
    config, targets = family(name).config, (3, 1)
    if not config.num_classes:
        pytest.skip("no head")
    is_vit = name != "vt_npz/mixer"
    maps = maps_of(family(name), inputs(name), METHODS[2 if is_vit else 3 :], targets)
    program, zeros = gradient_program(name)
    gradients, intermediates = jax.device_get(program(zeros, targets))
    of_blocks = gradients["encoder"]["blocks"]
    for image in range(2):
        prefix = config.num_prefix if is_vit else 0
        cam = slow_cam(
            intermediates["blocks"][-2, image, prefix:], of_blocks["blocks"][-2, image, prefix:]
        )
        want = np.maximum(cam, 0).reshape(config.grid)
        scale = np.abs(cam).max()
        np.testing.assert_allclose(maps["grad_cam"][image], want, atol=1e-5 * scale)
        if not is_vit:
            continue
        relevance = slow_relevance(
            intermediates["attention"][:, image], of_blocks["attn"]["attention"][:, image], config
        )
        row = row_of(relevance, config)
        if config.pool == "map":
            product = (
                gradients["map_head"]["attn"]["attention"][image, :, 0]
                * intermediates["pool_attention"][image, :, 0]
            )
            row = np.maximum(product, 0).mean(axis=0).astype(np.float64) @ relevance
        want = on_grid(row, config)
        np.testing.assert_allclose(
            maps["relevance"][image], want, rtol=1e-5, atol=1e-6 * np.abs(want).max()
        )


@pytest.mark.slow
def test_relevance_and_grad_cam_equal_those_of_finite_differences():
    """Each attention weight, and each number that enters the last block, moved by itself."""
    model = measured(small(depth=2, width=8, mlp_dim=16, image_size=(16, 32), num_classes=3))
    config, step = model.config, 1e-2
    image = np.random.default_rng(0).normal(size=(1, 16, 32, 3)).astype(np.float32)
    _, values = model.model.apply(model.variables, image, capture=("attention", "blocks"))
    attention = np.asarray(values["attention"], np.float64)[:, 0]

    @jax.jit
    def logits(perturbations):
        variables = {**model.variables, "perturbations": {"encoder": {"blocks": perturbations}}}
        count = jax.tree.leaves(perturbations)[0].shape[1]
        return model.model.apply(variables, np.repeat(image, count, axis=0))[0][:, 1]

    def differences(shape, wrap):
        size = np.prod(shape)
        moves = np.moveaxis((np.eye(size) * step).reshape(size, *shape), 0, 1)
        up, down = (np.asarray(logits(wrap(s * moves)), np.float64) for s in (1, -1))
        return ((up - down) / (2 * step)).reshape(shape)

    gradients = differences(attention.shape, lambda moves: {"attn": {"attention": moves}})
    relevance = np.eye(config.num_tokens)
    for layer in range(2):
        positive = np.maximum(gradients[layer] * attention[layer], 0).mean(axis=0)
        relevance = relevance + positive @ relevance
    blocks = np.asarray(values["blocks"], np.float64)[:, 0]
    gradient = differences(blocks.shape, lambda moves: {"blocks": moves})[0, 1:]
    cam = np.maximum(blocks[0, 1:] @ gradient.mean(axis=0), 0)

    maps = explanation_maps(
        model.model, model.variables, image, np.asarray([1]), ("relevance", "grad_cam")
    )
    np.testing.assert_allclose(maps["relevance"][0, 0], relevance[0, 1:], rtol=1e-2)
    assert relevance[0, 1:].min() > 1e-3
    np.testing.assert_allclose(maps["grad_cam"][0, 0], cam, atol=2e-2 * cam.max())


def test_grad_cam_of_a_resnet_is_its_linear_head_at_each_position():
    pretrained, images = family("bv_npz/bit_v1"), inputs("bv_npz/bit_v1")
    features = np.asarray(pretrained(images, capture="feature_map")[1]["feature_map"], np.float64)
    maps = maps_of(pretrained, images, ("grad_cam",), (4, 2))["grad_cam"]
    for image, target in enumerate((4, 2)):
        weights = np.asarray(pretrained.params["head"]["kernel"], np.float64)[:, target]
        want = np.maximum(features[image] @ weights, 0) / features[image, ..., 0].size
        np.testing.assert_allclose(maps[image], want, rtol=1e-4, atol=1e-6)


def test_uniform_attention_has_a_uniform_rollout_that_sums_to_1():
    model = small(pool="gap", depth=3, image_size=(32, 48))
    attention = model.params["encoder"]["blocks"]["attn"]
    for name in ("query", "key"):
        assert attention[name]["kernel"].any()
    zeroed = {name: jax.tree.map(np.zeros_like, attention[name]) for name in ("query", "key")}
    blocks = {**model.params["encoder"]["blocks"], "attn": {**attention, **zeroed}}
    params = {**model.params, "encoder": {**model.params["encoder"], "blocks": blocks}}
    images = np.random.default_rng(0).normal(size=(1, 32, 48, 3)).astype(np.float32)
    uniform = maps_of(dataclasses.replace(model, params=params), images, ("rollout",))["rollout"]
    np.testing.assert_allclose(uniform, 1 / 6, rtol=1e-6)
    other = maps_of(model, images, ("rollout",))["rollout"]
    assert np.ptp(other) > 1e-3
    np.testing.assert_allclose(other.sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("name", NO_ATTENTION)
def test_what_does_not_apply_is_named(name):
    with pytest.raises(NotApplicableError, match="it has no attention"):
        analysis.attention_maps(family(name), inputs(name))
    with pytest.raises(NotApplicableError, match=r"rollout: a \w+ has no attention"):
        analysis.explanations(family(name), inputs(name), methods=("rollout",))
    result = analysis.explanations(family(name), inputs(name), target=2)
    assert result.methods == ("grad_cam",) and result.target == 2
    assert any("relevance does not apply" in note for note in result.notes)


def test_a_model_without_head_has_maps_of_attention_alone():
    name = "hf_dinov3_vit/gated"
    result = analysis.explanations(family(name), inputs(name))
    assert result.methods == ("attention", "rollout") and not result.areas
    assert "grad_cam does not apply: the model has no head" in repr(result)
    with pytest.raises(NotApplicableError, match="relevance: the model has no head"):
        analysis.explanations(family(name), inputs(name), methods=("relevance",))
    with pytest.raises(ConfigError, match="only attention and rollout apply, which do not depend"):
        analysis.explanations(family(name), inputs(name), target="cockroach")
    with pytest.raises(NotApplicableError, match="no class whose probability"):
        analysis.faithfulness(family(name), inputs(name))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"methods": ("roll_out",)}, 'Did you mean "rollout"'),
        ({"methods": ()}, "methods is empty"),
        ({"target": "tensh"}, 'no class "tensh". .*"tench, Tinca tinca", "'),
        ({"target": 9}, "the model has 9 classes"),
    ],
)
def test_wrong_arguments_are_named(arguments, text):
    with pytest.raises(ConfigError, match=text):
        analysis.explanations(family("hf_deit/distilled"), inputs("hf_deit/distilled"), **arguments)


@pytest.mark.slow  # Three figures in two formats.
def test_files_tables_and_figures(tmp_path):
    model = create("mu/16", image_size=(32, 48), num_classes=3)
    maps = analysis.attention_maps(model, "digits:test", layer=-1, query=(1, 2))
    assert [path.suffix for path in maps.save(tmp_path)] == [".png", ".svg", ".json", ".npz"]
    result = analysis.explanations(model, "digits:test", methods=("rollout", "grad_cam"), target=1)
    result.save(tmp_path)
    table = result.to_dataframe()
    assert list(table.columns) == ["method", "row", "column", "map"]
    assert list(table["method"][::6]) == ["rollout", "grad_cam"]
    stored = json.loads((tmp_path / "explanations.json").read_text())
    assert stored["arrays"]["map"]["values"] == result.maps.tolist()
    # The head of a new model is zeros.
    assert result.notes == (
        "grad_cam has the same value at all patches: it says nothing about this image",
    )
