"""Small parameter trees with scanned and unrolled encoders, for the tests of optimizers."""

import jax
import numpy as np

DEPTH, WIDTH, HEADS, HEAD_SIZE, HIDDEN, CLASSES = 2, 36, 2, 33, 40, 5


def scanned_shapes():
    """Returns shapes of a ViT with a scanned encoder, wide enough for Adafactor to factor them."""
    d, h, s, m = WIDTH, HEADS, HEAD_SIZE, HIDDEN
    norm = {"scale": (DEPTH, d), "bias": (DEPTH, d)}
    projection = {"kernel": (DEPTH, d, h, s), "bias": (DEPTH, h, s)}
    return {
        "embedding": {"kernel": (2, 2, 3, d), "bias": (d,)},
        "cls": (1, 1, d),
        "pos_embedding": (1, 5, d),
        "encoder": {
            "blocks": {
                "norm1": norm,
                "attn": {
                    "query": projection,
                    "key": projection,
                    "value": projection,
                    "out": {"kernel": (DEPTH, h, s, d), "bias": (DEPTH, d)},
                },
                "norm2": norm,
                "mlp": {
                    "fc1": {"kernel": (DEPTH, d, m), "bias": (DEPTH, m)},
                    "fc2": {"kernel": (DEPTH, m, d), "bias": (DEPTH, d)},
                },
            },
            "norm": {"scale": (d,), "bias": (d,)},
        },
        "head": {"kernel": (d, CLASSES), "bias": (CLASSES,)},
    }


def is_shape(x):
    return isinstance(x, tuple)


def random_scanned(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: np.float32(scale * rng.normal(size=shape)), scanned_shapes(), is_leaf=is_shape
    )


def unscanned(params):
    """Converts to unrolled blocks: encoder/block_0/..., encoder/block_1/..."""
    blocks = params["encoder"]["blocks"]
    single = {f"block_{i}": jax.tree.map(lambda x, i=i: x[i], blocks) for i in range(DEPTH)}
    return params | {"encoder": single | {"norm": params["encoder"]["norm"]}}


def flat(tree):
    """Returns {"encoder/norm/scale": array, ...}."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def nested(arrays):
    """Inverts `flat`."""
    tree = {}
    for path, value in arrays.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
