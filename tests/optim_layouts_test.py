"""Scanned and unrolled encoders get the same updates; layer decay; Muon's matrices."""

import re

import jax
import numpy as np
import pytest

from tests.conftest import campaign, slow
from tests.optim_trees import DEPTH, flat, nested, random_scanned, unscanned
from vit_jax.config import base_config
from vit_jax.errors import ConfigError
from vit_jax.models import param_shapes, read_section
from vit_jax.optim import make_optimizer
from vit_jax.optim.layers import layer_decay_multipliers
from vit_jax.optim.muon import matrix_axes
from vit_jax.optim.optimizers import NAMES


def updates_of(c, params, gradients):
    tx = make_optimizer(c, params, schedule=lambda step: 1.0)
    state, update = jax.jit(tx.init)(params), jax.jit(tx.update)
    for grads in gradients:
        updates, state = update(grads, state, params)
    return updates


# One parameter of each kind that the rules distinguish: halves the size of the program.
EACH_KIND = re.compile(
    "embedding/kernel|pos_embedding|encoder/norm/scale|head/kernel|"
    "encoder/blocks/(attn/(query|out)/kernel|norm2/.*|mlp/fc1/kernel)"
)


def one_of_each_kind(params):
    return nested({path: leaf for path, leaf in flat(params).items() if EACH_KIND.fullmatch(path)})


@pytest.mark.medium
@pytest.mark.parametrize(
    "name", [slow(name) if name in ("lion", "sgd") else name for name in NAMES]
)
def test_scanned_and_unrolled_blocks_get_the_same_updates(name):
    c = base_config().optim
    c.name, c.weight_decay, c.layer_decay, c.clip_norm, c.clip_rms = name, 0.1, 0.7, 1.0, 0.9
    c.weight_decay_rules = (("head/.*", 3.0), (".*/kernel", 1.0))
    c.lr_rules = ((".*/mlp/.*", 2.0),)
    c.freeze = ("pos_embedding", ".*/norm2/bias")
    params, gradients = random_scanned(0), [random_scanned(i) for i in (1, 2, 3)]
    # Gradients of very different sizes reveal a norm that is taken over all blocks at once.
    gradients = [
        jax.tree_util.tree_map_with_path(
            lambda path, g: (
                g * 10.0 ** np.arange(DEPTH).reshape(DEPTH, *[1] * (g.ndim - 1))
                if "blocks" in jax.tree_util.keystr(path)
                else g
            ),
            grads,
        )
        for grads in gradients
    ]
    gradients = [jax.tree.map(np.float32, grads) for grads in gradients]
    params, *gradients = map(one_of_each_kind, (params, *gradients))
    together = unscanned(updates_of(c, params, gradients))
    apart = updates_of(c, unscanned(params), [unscanned(grads) for grads in gradients])
    assert flat(together).keys() == flat(apart).keys()
    together = flat(together)
    for path, update in flat(apart).items():
        tol = 2e-5 * np.abs(update).max()
        np.testing.assert_allclose(together[path], update, rtol=0, atol=tol, err_msg=path)


def test_layer_decay_equals_that_of_beit_and_mae():
    params = random_scanned(0)
    got = flat(layer_decay_multipliers(unscanned(params), decay=0.5))
    assert got["embedding/kernel"] == got["cls"] == got["pos_embedding"] == 0.5**3
    assert got["encoder/block_0/attn/query/kernel"] == 0.5**2
    assert got["encoder/block_1/mlp/fc1/bias"] == 0.5
    assert got["encoder/norm/scale"] == got["head/kernel"] == got["head/bias"] == 1

    scanned = flat(layer_decay_multipliers(params, decay=0.5))
    fc1 = scanned["encoder/blocks/mlp/fc1/kernel"]
    assert fc1.shape == (DEPTH, 1, 1)
    np.testing.assert_array_equal(fc1.ravel(), [0.5**2, 0.5])


@pytest.mark.medium
def test_layer_decay_also_scales_weight_decay():
    c = base_config().optim
    c.name, c.lr, c.momentum, c.weight_decay, c.layer_decay = "sgd", 1.0, 0.0, 0.1, 0.5
    params, grads = random_scanned(0), random_scanned(1)
    update = updates_of(c, params, [grads])["embedding"]["kernel"]
    want = -(0.5**3) * (grads["embedding"]["kernel"] + 0.1 * params["embedding"]["kernel"])
    np.testing.assert_allclose(update, want, rtol=1e-5)


def matrix(path, update):
    """Reshapes one block's kernel to the matrix [inputs, outputs] that it is in the network."""
    if "/out/" in path:
        return update.reshape(-1, update.shape[-1])
    return update.reshape(update.shape[0], -1)


@pytest.mark.medium
@pytest.mark.parametrize("layout", [lambda tree: tree, unscanned], ids=["scanned", "unscanned"])
def test_muon_orthogonalises_every_matrix_of_every_block(layout):
    c = base_config().optim
    c.name, c.lr, c.momentum, c.nesterov = "muon", 1.0, 0.95, True
    updates = layout(updates_of(c, random_scanned(0), [random_scanned(1)]))
    updates = unscanned(updates) if "blocks" in updates["encoder"] else updates
    seen = 0
    for path, update in flat(updates).items():
        if "block_" in path and path.endswith("kernel"):
            a = -matrix(path, update)
            a = a / (0.2 * np.sqrt(max(a.shape)))
            # Muon's five quintic steps bring singular values into this range only, by design.
            values = np.linalg.svd(a, compute_uv=False)
            assert values.min() > 0.5 and values.max() < 1.3, path
            seen += 1
    assert seen == 6 * DEPTH


@pytest.mark.medium
def test_muon_follows_the_polar_factor_of_each_blocks_gradient():
    """The first update is close to U V^T of the gradient U S V^T; a wrong reshape changes that."""
    c = base_config().optim
    c.name, c.lr, c.nesterov = "muon", 1.0, True
    grads = random_scanned(1)
    updates = flat(unscanned(updates_of(c, random_scanned(0), [grads])))
    for path, g in flat(unscanned(grads)).items():
        if "block_" in path and path.endswith("kernel"):
            u, _, vt = np.linalg.svd(matrix(path, g), full_matrices=False)
            a = -matrix(path, updates[path])
            cosine = (a * (u @ vt)).sum() / np.linalg.norm(a) / np.linalg.norm(u @ vt)
            assert cosine > 0.97, path


@pytest.mark.medium
def test_adam_updates_what_muon_does_not():
    c = base_config().optim
    c.name, c.lr = "muon", 1.0
    params, gradients = random_scanned(0), [random_scanned(1), random_scanned(2)]
    muon = flat(updates_of(c, params, gradients))
    c.name = "adamw"
    adam = flat(updates_of(c, params, gradients))
    same = {path for path in muon if np.allclose(muon[path], adam[path], rtol=1e-5, atol=1e-7)}
    kernels = {path for path in muon if "/blocks/" in path and path.endswith("kernel")}
    assert len(kernels) == 6 and same == muon.keys() - kernels


def test_muons_axes():
    assert matrix_axes("encoder/blocks/attn/query/kernel", 4) == ((1,), (2, 3))
    assert matrix_axes("encoder/block_11/attn/query/kernel", 3) == ((0,), (1, 2))
    assert matrix_axes("map_head/attn/out/kernel", 3) == ((0, 1), (2,))
    assert matrix_axes("encoder/blocks/mlp/fc2/kernel", 3) == ((1,), (2,))
    assert matrix_axes("pre_logits/kernel", 2) == ((0,), (1,))
    for path in ("embedding/kernel", "head/kernel", "map_head/probe", "pos_embedding", "cls"):
        assert matrix_axes(path, 3) is None
    with pytest.raises(ConfigError, match="with 4 axes; it has 3"):
        matrix_axes("encoder/blocks/attn/query/kernel", 3)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("variant", "scan"),
    [("Ti/16", False), ("22B/14", True), campaign("Ti/16", True), campaign("22B/14", False)],
)
def test_the_rules_match_the_parameters_of_real_models(variant, scan):
    """Muon updates all kernels between embedding and head; layer decay follows the depth."""
    model = base_config().model
    model.variant, model.pool, model.num_classes, model.scan = variant, "map", 10, scan
    model.depth, model.rep_size = 2, -1
    shapes = param_shapes(read_section(model, num_classes=10))
    depths = layer_decay_multipliers(shapes, decay=0.5)
    first, last, stacked = 0.5**3, 1.0, [0.5**2, 0.5]
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        top, decay = name.split("/")[0], np.ravel(flat(depths)[name])
        inner = top in ("encoder", "map_head", "pre_logits") and name.endswith("/kernel")
        assert (matrix_axes(name, len(leaf.shape)) is not None) == inner, name
        if top in ("embedding", "pos_embedding"):
            assert decay == first, name
        elif "/block_" in name:
            assert decay == stacked[int(name.split("/")[1].removeprefix("block_"))], name
        elif "/blocks/" in name:
            assert decay.tolist() == stacked, name
        else:
            assert top in ("encoder", "map_head", "pre_logits", "head") and decay == last, name
    for optimizer in NAMES:
        c = base_config().optim
        c.name, c.layer_decay = optimizer, 0.5
        tx = make_optimizer(c, shapes, schedule=lambda step: 1.0)
        state = jax.eval_shape(tx.init, shapes)
        updates, after = jax.eval_shape(tx.update, shapes, state, shapes)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert jax.tree.map(lambda u: u.shape, updates) == jax.tree.map(lambda p: p.shape, shapes)
