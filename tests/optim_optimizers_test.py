"""Optimizers against float64 versions of their papers, the update rule, and errors."""

import jax
import numpy as np
import optax
import pytest

from tests.optim_trees import flat, nested, random_scanned, scanned_shapes
from vit_jax.config import base_config
from vit_jax.errors import ConfigError
from vit_jax.optim import make_optimizer
from vit_jax.optim.optimizers import NAMES

STEPS = 4
LR, DECAY, B1, B2, EPS = 0.01, 0.3, 0.8, 0.95, 1e-3


def optim_config(**values):
    c = base_config().optim
    for key, value in values.items():
        c[key] = value
    return c


def half_then_full(step):
    return np.asarray([0.5, 0.6, 0.8, 1.0])[step] if isinstance(step, int) else 0.5 + 0.1 * step


def run(c, params, gradients, schedule=lambda step: 1.0):
    """Returns the parameters after every update, and the last optimizer state."""
    tx = make_optimizer(c, params, schedule=schedule)
    state = jax.jit(tx.init)(params)

    @jax.jit
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    trajectory = []
    for grads in gradients:
        params, state = step(grads, state, params)
        trajectory.append(flat(params))
    return trajectory, state


def small_tree(seed):
    rng = np.random.default_rng(seed)
    return {
        "body": {"kernel": np.float32(rng.normal(size=(4, 3))), "bias": np.zeros(3, np.float32)},
        "head": {"kernel": np.float32(rng.normal(size=(3, 2)))},
    }


# Adam, LAMB and Lion for one parameter in float64, as in their papers.


def adamw(p, grads):
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2
        p = p - LR * (m / (1 - B1**t) / (np.sqrt(v / (1 - B2**t)) + EPS) + DECAY * p)
    return p


def lamb(p, grads):
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2
        r = m / (1 - B1**t) / (np.sqrt(v / (1 - B2**t)) + EPS) + DECAY * p
        ratio = np.linalg.norm(p) / np.linalg.norm(r) if np.linalg.norm(p) > 0 else 1.0
        p = p - LR * ratio * r
    return p


def lion(p, grads):
    m = 0.0
    for g in grads:
        p = p - LR * (np.sign(B1 * m + (1 - B1) * g) + DECAY * p)
        m = B2 * m + (1 - B2) * g
    return p


def sgd(p, grads):
    m = 0.0
    for g in grads:
        m = 0.7 * m + g
        p = p - LR * (m + DECAY * p)
    return p


def nesterov(p, grads):
    m = 0.0
    for g in grads:
        m = 0.7 * m + g
        p = p - LR * (0.7 * m + g + DECAY * p)
    return p


@pytest.mark.medium
@pytest.mark.parametrize("paper", [adamw, lamb, lion, sgd, nesterov])
def test_optimizer_equals_its_paper_in_float64(paper):
    name = "sgd" if paper is nesterov else paper.__name__
    c = optim_config(
        name=name,
        lr=LR,
        b1=B1,
        b2=B2,
        eps=EPS,
        momentum=0.7,
        nesterov=paper is nesterov,
        weight_decay=DECAY,
        weight_decay_rules=((".*", 1.0),),
    )
    params, gradients = small_tree(0), [small_tree(i) for i in range(1, 1 + STEPS)]
    for grads in gradients:
        grads["body"]["bias"] += 0.1
    trajectory, _ = run(c, params, gradients)
    for path, start in flat(params).items():
        # Only kernels inside the network have LAMB's trust ratio; without it, LAMB is AdamW.
        rule = adamw if paper is lamb and path != "body/kernel" else paper
        want = rule(np.float64(start), [np.float64(flat(g)[path]) for g in gradients])
        np.testing.assert_allclose(trajectory[-1][path], want, rtol=2e-6, atol=2e-7, err_msg=path)


@pytest.mark.parametrize(("rows", "whole"), [(31, 2), (32, 1)])
def test_adafactor_factors_matrices_of_at_least_32_rows_and_columns(rows, whole):
    # As in big_vision. Momentum is never factored.
    c = optim_config(name="adafactor", weight_decay=0.0)
    params = {"head": {"kernel": jax.ShapeDtypeStruct((rows, 40), np.float32)}}
    state = jax.eval_shape(make_optimizer(c, params, schedule=lambda step: 1.0).init, params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert shapes.count((rows, 40)) == whole and ((rows,) in shapes) == (whole == 1)


@pytest.mark.medium
def test_lamb_updates_a_head_that_starts_at_zero():
    params, grads = small_tree(0), small_tree(1)
    params["head"]["kernel"] = params["head"]["kernel"] * 0
    trajectory, _ = run(optim_config(name="lamb", lr=LR), params, [grads])
    np.testing.assert_allclose(np.abs(trajectory[0]["head/kernel"]), LR, rtol=1e-3)


@pytest.mark.medium
def test_the_update_rule():
    """-schedule(t) * lr * (lr_mult * u + weight_decay * wd_mult * p), u being the gradient here."""
    c = optim_config(
        name="sgd",
        momentum=0.0,
        lr=LR,
        weight_decay=DECAY,
        weight_decay_rules=(("head/.*", 10.0), (".*/kernel", 1.0)),
        lr_rules=(("head/.*", 3.0),),
    )
    params, gradients = small_tree(0), [small_tree(1), small_tree(2)]
    trajectory, _ = run(c, params, gradients, schedule=half_then_full)
    rules = {"head/kernel": (3.0, 10.0), "body/kernel": (1.0, 1.0), "body/bias": (1.0, 0.0)}
    for path, (lr_mult, wd_mult) in rules.items():
        p = np.float64(flat(params)[path])
        for step, grads in enumerate(gradients):
            u = np.float64(flat(grads)[path])
            p = p - half_then_full(step) * LR * (lr_mult * u + DECAY * wd_mult * p)
            np.testing.assert_allclose(trajectory[step][path], p, rtol=1e-6, atol=1e-8)


@pytest.mark.medium
def test_clipping_ignores_frozen_parameters():
    params, grads = small_tree(0), small_tree(1)
    grads["head"]["kernel"] *= 1e6
    c = optim_config(name="sgd", momentum=0.0, lr=1.0, clip_norm=0.5, freeze=("head/.*",))
    tx = make_optimizer(c, params, schedule=lambda step: 1.0)
    updates, _ = jax.jit(lambda grads, p: tx.update(grads, tx.init(p), p))(grads, params)
    assert not updates["head"]["kernel"].any()
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(updates["body"])))
    assert norm == pytest.approx(0.5, rel=1e-6)


@pytest.mark.medium
@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_have_no_state_and_do_not_change(name):
    shapes = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32),
        scanned_shapes(),
        is_leaf=lambda x: isinstance(x, tuple),
    )
    c = optim_config(name=name, weight_decay=0.1, freeze=("(?!head/).*",))
    tx = make_optimizer(c, shapes, schedule=lambda step: 1.0)
    state = jax.eval_shape(tx.init, shapes)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert not [path for path in paths if "encoder" in jax.tree_util.keystr(path)]
    assert [path for path in paths if "head" in jax.tree_util.keystr(path)]

    params = random_scanned(0)
    updates, _ = jax.jit(lambda grads, p: tx.update(grads, tx.init(p), p))(
        random_scanned(1), params
    )
    for path, update in flat(updates).items():
        assert update.any() == path.startswith("head/"), path


@pytest.mark.medium
@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_decreases_the_loss(name):
    """The loss |p - target|^2 / 2; made from shapes only, compiled, with momentum in bfloat16."""
    kernels = ("encoder/blocks/mlp/fc1/kernel", "head/kernel")
    target, params = ({k: flat(random_scanned(i))[k] for k in kernels} for i in (0, 1))
    params = nested(params)
    c = optim_config(name=name, lr=0.03, momentum_dtype="bfloat16", clip_norm=1e9)
    tx = make_optimizer(c, jax.eval_shape(lambda: params), schedule=lambda step: 1.0)

    @jax.jit
    def descend(params, state):
        grads = jax.tree.map(lambda p, t: p - t, params, nested(target))
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def distance(params):
        return np.sqrt(sum(((p - target[path]) ** 2).sum() for path, p in flat(params).items()))

    state, start = jax.jit(tx.init)(params), distance(params)
    for _ in range(20):
        params, state = descend(params, state)
    assert distance(params) < 0.95 * start
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    assert any(leaf.dtype == "bfloat16" for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "adam"}, 'Did you mean "adamw"'),
        ({"momentum_dtype": "bf16"}, "Accepted: float32, bfloat16"),
        ({"freeze": ("hed/.*",)}, r"optim.freeze: 'hed/\.\*' .*nearest.*: head/"),
        ({"freeze": (".*",)}, "nothing is left to train"),
        ({"lr_rules": (("head/.*", 0.0),)}, "freeze parameters by optim.freeze"),
        ({"lr_rules": (("(head", 1.0),)}, "not a regular expression"),
        ({"weight_decay_rules": ((".*/kernel", 1.0), ("head/kernel", 9.0))}, "earlier rule"),
        ({"layer_decay": 1.5}, "in \\(0, 1\\]"),
    ],
)
def test_invalid_values_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        make_optimizer(optim_config(**values), random_scanned(0), schedule=lambda step: 1.0)


def test_layer_decay_needs_layers():
    with pytest.raises(ConfigError, match="this model has none"):
        make_optimizer(optim_config(layer_decay=0.7), small_tree(0), schedule=lambda step: 1.0)
