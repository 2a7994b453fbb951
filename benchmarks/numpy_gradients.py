"""The operations of a ViT and their gradients in NumPy, in the precision of their inputs.

The reference of `benchmarks.numerics`: it does not use JAX, so XLA is not compared with itself.
Reverse-mode differentiation: each array keeps the arrays that it was computed from and, for each of
them, the vector-Jacobian product.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import special


class Node:
    """A NumPy array in a computation graph."""

    def __init__(self, value: np.ndarray, *parents: tuple["Node", Callable]):
        """Stores a value; `parents` are (node, function from this cotangent to the node's)."""
        self.value, self.parents = value, parents


def gradients(out: Node, cotangent: np.ndarray, inputs: Sequence[Node]) -> list[np.ndarray]:
    """Returns the cotangents of the inputs, given that of the output."""
    order, seen = [], set()

    def visit(node):
        if id(node) not in seen:
            seen.add(id(node))
            for parent, _ in node.parents:
                visit(parent)
            order.append(node)

    visit(out)
    cotangents = {id(out): cotangent}
    for node in reversed(order):
        for parent, pull in node.parents:
            total = cotangents.get(id(parent), 0)
            cotangents[id(parent)] = total + pull(cotangents[id(node)])
    return [cotangents[id(node)] for node in inputs]


def _summed_to(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sums a cotangent over the axes along which an array of this shape was broadcast."""
    g = g.sum(tuple(range(g.ndim - len(shape))))
    broadcast = tuple(i for i, side in enumerate(shape) if side == 1 and g.shape[i] > 1)
    return g.sum(broadcast, keepdims=True) if broadcast else g


def add(a: Node, b: Node) -> Node:
    """Adds, with broadcasting."""
    return Node(
        a.value + b.value,
        (a, lambda g: _summed_to(g, a.value.shape)),
        (b, lambda g: _summed_to(g, b.value.shape)),
    )


def multiply(a: Node, b: Node) -> Node:
    """Multiplies, with broadcasting."""
    return Node(
        a.value * b.value,
        (a, lambda g: _summed_to(g * b.value, a.value.shape)),
        (b, lambda g: _summed_to(g * a.value, b.value.shape)),
    )


def einsum(subscripts: str, a: Node, b: Node) -> Node:
    """Computes an einsum; each subscript must occur in two of the operands and the result."""
    (left, right), out = subscripts.split("->")[0].split(","), subscripts.split("->")[1]

    def product(*args):
        return np.einsum(*args, optimize=True)

    return Node(
        product(subscripts, a.value, b.value),
        (a, lambda g: product(f"{out},{right}->{left}", g, b.value)),
        (b, lambda g: product(f"{left},{out}->{right}", a.value, g)),
    )


def dense(x: Node, kernel: Node, bias: Node) -> Node:
    """Computes x times kernel over the last axis, plus bias."""
    axes = "ab"[: x.value.ndim - 1]
    return add(einsum(f"{axes}i,io->{axes}o", x, kernel), bias)


def reshape(x: Node, *shape: int) -> Node:
    """Reshapes an array."""
    return Node(x.value.reshape(shape), (x, lambda g: g.reshape(x.value.shape)))


def mean(x: Node, axis: int) -> Node:
    """Computes the mean over one axis."""
    count = x.value.shape[axis]
    return Node(
        x.value.mean(axis),
        (x, lambda g: np.broadcast_to(np.expand_dims(g, axis) / count, x.value.shape)),
    )


def first(x: Node) -> Node:
    """Returns the first token, x[:, 0]."""

    def pull(g):
        cotangent = np.zeros_like(x.value)
        cotangent[:, 0] = g
        return cotangent

    return Node(x.value[:, 0], (x, pull))


def rest(x: Node) -> Node:
    """Returns all tokens except the first, x[:, 1:]."""
    return Node(x.value[:, 1:], (x, lambda g: np.pad(g, ((0, 0), (1, 0), (0, 0)))))


def prepend(token: Node, x: Node) -> Node:
    """Prepends a token [1, 1, width] to the tokens of every example."""
    front = np.broadcast_to(token.value, (len(x.value), 1, x.value.shape[2]))
    return Node(
        np.concatenate([front, x.value], axis=1),
        (token, lambda g: g[:, :1].sum(0, keepdims=True)),
        (x, lambda g: g[:, 1:]),
    )


def square_sum(x: Node) -> Node:
    """Computes the sum of squares over the last axis."""
    return Node((x.value**2).sum(-1), (x, lambda g: 2 * x.value * g[..., None]))


def softmax(x: Node) -> Node:
    """Computes the softmax over the last axis."""
    powers = np.exp(x.value - x.value.max(-1, keepdims=True))
    y = powers / powers.sum(-1, keepdims=True)
    return Node(y, (x, lambda g: y * (g - (g * y).sum(-1, keepdims=True))))


def attention(query: Node, key: Node, value: Node) -> Node:
    """Computes softmax(q k' / sqrt d) v of arrays [b, n, heads, d]."""
    scale = Node(np.asarray(query.value.shape[-1] ** -0.5, query.value.dtype))
    logits = einsum("bqhd,bkhd->bhqk", multiply(query, scale), key)
    return einsum("bhqk,bkhd->bqhd", softmax(logits), value)


def layer_norm(x: Node, scale: Node, bias: Node, *, eps: float = 1e-6) -> Node:
    """Computes LayerNorm over the last axis."""
    centred = x.value - x.value.mean(-1, keepdims=True)
    inverse = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    unit = centred * inverse

    def pull(g):
        along = (g * unit).mean(-1, keepdims=True)
        return inverse * (g - g.mean(-1, keepdims=True) - unit * along)

    return add(multiply(Node(unit, (x, pull)), scale), bias)


def gelu_erf(x: Node) -> Node:
    """Computes GELU: x times the normal distribution function."""
    v = x.value
    cdf = special.erfc(-v * np.sqrt(0.5).astype(v.dtype)) / 2
    density = np.exp(-(v**2) / 2) / np.sqrt(2 * np.pi).astype(v.dtype)
    return Node(v * cdf, (x, lambda g: g * (cdf + v * density)))


def gelu_tanh(x: Node) -> Node:
    """Computes the tanh approximation of GELU."""
    v, slope = x.value, np.sqrt(2 / np.pi).astype(x.value.dtype)
    t = np.tanh(slope * (v + v.dtype.type(0.044715) * v**3))
    inner = slope * (1 + v.dtype.type(3 * 0.044715) * v**2)
    return Node(v * (1 + t) / 2, (x, lambda g: g * ((1 + t) / 2 + v * (1 - t**2) * inner / 2)))


def softmax_xent(x: Node, targets: np.ndarray) -> Node:
    """Computes the cross-entropy of each example; targets sum to one."""
    shifted = x.value - x.value.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return Node(-(targets * logs).sum(-1), (x, lambda g: g[:, None] * (np.exp(logs) - targets)))


def sigmoid_xent(x: Node, targets: np.ndarray) -> Node:
    """Computes the sum over classes of binary cross-entropies, for each example."""
    v = x.value
    losses = np.maximum(v, 0) - v * targets + np.log1p(np.exp(-np.abs(v)))
    return Node(losses.sum(-1), (x, lambda g: g[:, None] * (special.expit(v) - targets)))


def vit(images: np.ndarray, targets: np.ndarray, params: dict, *, patch: int) -> Node:
    """Computes the mean loss of a pre-norm ViT with class token and scanned blocks.

    Args:
      images: [b, side, side, channels].
      targets: [b, classes].
      params: nodes in the tree of the model's parameters, with "blocks" as a list of trees.
      patch: side of a patch in pixels.
    """
    b, side, _, channels = images.shape
    grid = side // patch
    x = images.reshape(b, grid, patch, grid, patch, channels).swapaxes(2, 3)
    kernel = params["embedding"]["kernel"]
    width = kernel.value.shape[-1]
    x = dense(
        Node(x.reshape(b, grid * grid, -1)), reshape(kernel, -1, width), params["embedding"]["bias"]
    )
    x = add(prepend(params["cls"], x), params["pos_embedding"])
    n = grid * grid + 1
    for block in params["blocks"]:
        attn, mlp = block["attn"], block["mlp"]
        y = layer_norm(x, block["norm1"]["scale"], block["norm1"]["bias"])
        query, key, value = (
            reshape(
                dense(y, reshape(p["kernel"], width, width), reshape(p["bias"], width)),
                *(b, n, *p["bias"].value.shape),
            )
            for p in (attn["query"], attn["key"], attn["value"])
        )
        y = reshape(attention(query, key, value), b, n, width)
        x = add(x, dense(y, reshape(attn["out"]["kernel"], width, width), attn["out"]["bias"]))
        y = layer_norm(x, block["norm2"]["scale"], block["norm2"]["bias"])
        y = gelu_tanh(dense(y, mlp["fc1"]["kernel"], mlp["fc1"]["bias"]))
        x = add(x, dense(y, mlp["fc2"]["kernel"], mlp["fc2"]["bias"]))
    x = layer_norm(x, params["norm"]["scale"], params["norm"]["bias"])
    logits = dense(first(x), params["head"]["kernel"], params["head"]["bias"])
    return mean(softmax_xent(logits, targets), 0)
