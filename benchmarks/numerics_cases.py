"""The operations that `benchmarks.numerics` compares, each with its NumPy reference."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import numpy_gradients as reference
from benchmarks import numpy_optimizers
from vit_jax.config import base_config
from vit_jax.models import VitConfig, build, param_shapes
from vit_jax.models.attention import dot_product_attention
from vit_jax.optim import loss_by_name, make_optimizer
from vit_jax.scaling.fitting import fit
from vit_jax.scaling.laws import law
from vit_jax.scaling.solver import Problem, solve

Arrays = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """An operation on given rows.

    Attributes:
      inputs: float32 arrays.
      compiled: functions of the inputs to jit: "forward" and, for most operations, "gradient".
      expected: the same in NumPy, in the precision of its inputs.
      jit: False: the function compiles its own programs.
    """

    inputs: Sequence[np.ndarray]
    compiled: Mapping[str, Callable[..., Arrays]]
    expected: Callable[..., Mapping[str, Arrays]]
    jit: bool = True


def _case(op: Callable, expected: Callable, cotangent: np.ndarray, *inputs: np.ndarray) -> Case:
    """Makes the case of an operation and its gradient by all inputs, for a cotangent."""

    def forward(cotangent, *inputs):
        return (op(*inputs),)

    def gradient(cotangent, *inputs):
        return jax.vjp(op, *inputs)[1](cotangent)

    def in_numpy(cotangent, *inputs):
        nodes = [reference.Node(x) for x in inputs]
        out = expected(*nodes)
        return {
            "forward": (out.value,),
            "gradient": tuple(reference.gradients(out, cotangent, nodes)),
        }

    return Case((cotangent, *inputs), {"forward": forward, "gradient": gradient}, in_numpy)


def _normal(rows: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((rows, seed)).standard_normal((rows, *shape), np.float32)


def _projected_squares(rows: int) -> Case:
    # A reduction of many rows times a small matrix: wrong in jaxlib 0.10.2 (jax issue 39103).
    matrix = _normal(3, 3)

    def op(x, matrix):
        return jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(x)

    def expected(x, matrix):
        return reference.square_sum(reference.einsum("ni,oi->no", x, matrix))

    return _case(op, expected, _normal(rows, seed=1), _normal(rows, 3), matrix)


def _dense(rows: int) -> Case:
    def op(x, kernel, bias):
        return nn.Dense(48).apply({"params": {"kernel": kernel, "bias": bias}}, x)

    weights = _normal(24, 48), _normal(48)
    return _case(op, reference.dense, _normal(rows, 48, seed=1), _normal(rows, 24), *weights)


def _mlp(rows: int) -> Case:
    def op(x, k1, b1, k2, b2):
        return nn.gelu(x @ k1 + b1, approximate=True) @ k2 + b2

    def expected(x, k1, b1, k2, b2):
        return reference.dense(reference.gelu_tanh(reference.dense(x, k1, b1)), k2, b2)

    weights = _normal(12, 24) / 4, _normal(24), _normal(24, 12, seed=2) / 4, _normal(12)
    return _case(op, expected, _normal(rows, 12, seed=1), _normal(rows, 12), *weights)


def _attention(rows: int) -> Case:
    tokens = [_normal(rows, 4, 2, 4, seed=seed) for seed in range(4)]
    return _case(lambda *qkv: dot_product_attention(*qkv)[0], reference.attention, *tokens)


def _softmax(rows: int) -> Case:
    x = 3 * _normal(rows, 10)
    return _case(jax.nn.softmax, reference.softmax, _normal(rows, 10, seed=1), x)


def _layer_norm(rows: int) -> Case:
    def op(x, scale, bias):
        norm = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False)
        return norm.apply({"params": {"scale": scale, "bias": bias}}, x)

    weights = _normal(48), _normal(48, seed=1)
    cotangent = _normal(rows, 48, seed=1)
    return _case(op, reference.layer_norm, cotangent, 1 + _normal(rows, 48), *weights)


def _token_mean(rows: int) -> Case:
    x, cotangent = 1 + _normal(rows, 16, 6), _normal(rows, 6, seed=1)
    return _case(lambda x: x.mean(1), lambda x: reference.mean(x, 1), cotangent, x)


def _class_token(rows: int) -> Case:
    # The bias's gradient sums over all tokens, and is zero for all but the first. jaxlib 0.10.0 and
    # 0.10.1 count each row once per token.
    def op(x, bias):
        return (x + bias)[:, 0]

    def expected(x, bias):
        return reference.first(reference.add(x, bias))

    return _case(op, expected, _normal(rows, 16, seed=1), _normal(rows, 5, 16), _normal(16))


def _patch_mean(rows: int) -> Case:
    def op(token, x, positions):
        tokens = jnp.tile(token, (len(x), 1, 1))
        return (jnp.concatenate([tokens, x], axis=1) + positions)[:, 1:].mean(1)

    def expected(token, x, positions):
        return reference.mean(
            reference.rest(reference.add(reference.prepend(token, x), positions)), 1
        )

    tokens = _normal(1, 1, 12), _normal(rows, 4, 12), _normal(1, 5, 12)
    return _case(op, expected, _normal(rows, 12, seed=1), *tokens)


def _batch_mean(rows: int) -> Case:
    x, cotangent = 1 + _normal(rows, 6), _normal(6, seed=1)
    return _case(lambda x: x.mean(0), lambda x: reference.mean(x, 0), cotangent, x)


def _gelu(approximate: bool) -> Callable[[int], Case]:
    expected = reference.gelu_tanh if approximate else reference.gelu_erf

    def case(rows: int) -> Case:
        x, cotangent = 2 * _normal(rows, 12), _normal(rows, 12, seed=1)
        return _case(lambda x: nn.gelu(x, approximate=approximate), expected, cotangent, x)

    return case


def _loss(name: str) -> Callable[[int], Case]:
    def case(rows: int) -> Case:
        labels = np.random.default_rng(rows).integers(0, 10, rows)
        targets = np.eye(10, dtype=np.float32)[labels]

        def op(logits):
            return loss_by_name(name)(logits, jnp.asarray(targets)).mean()

        def expected(logits):
            # In the precision of the logits; NumPy would promote both to float64.
            cast_targets = targets.astype(logits.value.dtype)
            return reference.mean(getattr(reference, name)(logits, cast_targets), 0)

        return _case(op, expected, np.float32(1), 3 * _normal(rows, 10))

    return case


def _vit(rows: int) -> Case:
    """Makes the case of a model's loss and its gradient by all parameters; rows are images."""
    model_config = VitConfig(
        image_size=(8, 8), patch_size=(4, 4), channels=1, num_classes=10, width=16, depth=2,
        mlp_dim=32, num_heads=2,
    )  # fmt: skip
    model, shapes = build(model_config), param_shapes(model_config)
    leaves, tree = jax.tree.flatten(shapes)
    params = [_normal(*leaf.shape, seed=i) / 4 for i, leaf in enumerate(leaves)]
    images = _normal(rows, 8, 8, 1)
    targets = np.eye(10, dtype=np.float32)[np.random.default_rng(rows).integers(0, 10, rows)]

    def forward(images, targets, *params):
        logits, _ = model.apply({"params": jax.tree.unflatten(tree, params)}, images)
        return (loss_by_name("softmax_xent")(logits, targets).mean(),)

    def gradient(images, targets, *params):
        return jax.grad(lambda params: forward(images, targets, *params)[0])(params)

    def expected(images, targets, *params):
        layers = [[reference.Node(layer) for layer in p] for p in params]
        nodes_of_params = [reference.Node(p) for p in params]
        nodes = jax.tree.unflatten(tree, nodes_of_params) | {"norm": {}}
        stacked = jax.tree.unflatten(tree, range(len(nodes_of_params)))["encoder"]["blocks"]
        nodes["blocks"] = [
            jax.tree.map(lambda i, layer=layer: layers[i][layer], stacked)
            for layer in range(model_config.depth)
        ]
        nodes["norm"] = nodes["encoder"]["norm"]
        loss = reference.vit(images, targets, nodes, patch=4)
        one = np.ones_like(loss.value)
        in_blocks = set(jax.tree.leaves(stacked))
        inputs = [node for i, node in enumerate(nodes_of_params) if i not in in_blocks]
        inputs += [node for i in in_blocks for node in layers[i]]
        cotangents = iter(reference.gradients(loss, one, inputs))
        grads = {i: next(cotangents) for i in range(len(nodes_of_params)) if i not in in_blocks}
        grads |= {i: np.stack([next(cotangents) for _ in layers[i]]) for i in in_blocks}
        return {
            "forward": (loss.value,),
            "gradient": tuple(grads[i] for i in range(len(nodes_of_params))),
        }

    compiled = {"forward": forward, "gradient": gradient}
    return Case((images, targets, *params), compiled, expected)


def _optimizer(name: str) -> Callable[[int], Case]:
    def case(rows: int) -> Case:
        width = 32
        c = base_config().optim
        c.name, c.lr, c.weight_decay = name, numpy_optimizers.LR, numpy_optimizers.DECAY
        c.b1, c.b2, c.eps = numpy_optimizers.B1, numpy_optimizers.B2, numpy_optimizers.EPS
        c.momentum = numpy_optimizers.MOMENTUM

        def tree(kernel):
            # Muon treats a parameter of this name as a matrix.
            return {"encoder": {"block_0": {"mlp": {"fc1": {"kernel": kernel}}}}}

        def compiled(kernel, *grads):
            params = tree(kernel)
            tx = make_optimizer(c, params, schedule=optax.constant_schedule(1.0))
            state = tx.init(params)
            for grad in grads:
                updates, state = tx.update(tree(grad), state, params)
                params = optax.apply_updates(params, updates)
            return tuple(jax.tree.leaves(params))

        def expected(kernel, *grads):
            return {"forward": (numpy_optimizers.updated(name, kernel, grads),)}

        # A kernel as small as the updates, so that it does not hide their errors.
        kernel, *grads = (_normal(rows, width, seed=seed) for seed in range(3))
        return Case((kernel * np.float32(c.lr), *grads), {"forward": compiled}, expected)

    return case


def _power_laws(rows: int) -> Case:
    """Makes the case of a batch of 16 fits by least squares of logs: straight lines."""
    count = 16
    logs = np.linspace(-3, 3, rows, dtype=np.float32)
    noise = _normal(rows, count).T / 10
    log_y = np.linspace(-1, -0.2, count, dtype=np.float32)[:, None] * logs + noise

    def compiled(logs, log_y):
        one, unbounded = np.ones((1, rows)), np.full((1, 2), 1e3)
        problem = Problem(
            logs=logs[None, None].astype(np.float64),
            log_y=log_y.astype(np.float64),
            weights=one,
            low=-unbounded,
            high=unbounded,
            delta=np.full(1, np.inf),
            scales=np.zeros(1),
        )
        return (solve(law("power"), problem, np.tile([0.1, -0.5], (count, 1))).theta,)

    def expected(logs, log_y):
        columns = np.stack([np.ones_like(logs), logs], -1)
        return {"forward": (np.linalg.lstsq(columns, log_y.T)[0].T,)}

    return Case((logs, log_y), {"forward": compiled}, expected, jit=False)


def _power_law_with_floor(rows: int) -> Case:
    """Makes the case of a whole fit to exact data, including its initial values."""
    true = np.array([3.0, -0.4, 0.1], np.float32)
    x = np.logspace(2, 6, rows, dtype=np.float32)

    def compiled(true, x):
        b, c, e = true.astype(np.float64)
        fitted = fit("power_floor", {"x": x.astype(np.float64)}, b * x.astype(np.float64) ** c + e)
        return (np.array([fitted.params[name] for name in "bce"]),)

    # The expected values are exact: NumPy's error is 0, and the bound of `BOUNDS` applies.
    return Case((true, x), {"forward": compiled}, lambda t, _: {"forward": (t,)}, jit=False)


CASES: dict[str, Callable[[int], Case]] = {
    "projected squares": _projected_squares,
    "dense": _dense,
    "mlp": _mlp,
    "attention": _attention,
    "softmax": _softmax,
    "layer norm": _layer_norm,
    "mean over tokens": _token_mean,
    "mean over batch": _batch_mean,
    "class token": _class_token,
    "mean over patches": _patch_mean,
    "gelu tanh": _gelu(True),
    "gelu erf": _gelu(False),
    "softmax_xent": _loss("softmax_xent"),
    "sigmoid_xent": _loss("sigmoid_xent"),
    "vit": _vit,
    **{name: _optimizer(name) for name in ("adamw", "sgd", "adafactor", "lion", "lamb", "muon")},
    "fits of a power law": _power_laws,
    "fit of a power law with a floor": _power_law_with_floor,
}
