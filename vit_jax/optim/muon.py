"""Muon: orthogonalised momentum for the matrices inside the network, Adam for all others."""

import math
import re

import jax
import optax
from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from vit_jax.errors import ConfigError
from vit_jax.optim import layers, paths

# (path, input axes of the kernel, output axes), not counting the axis of scanned blocks. Several
# axes form one dimension of the matrix: a query kernel is width x (heads * head width).
_MATRICES = (
    (r".*/attn/(query|key|value)/kernel", (0,), (1, 2)),
    (r".*/attn/out/kernel", (0, 1), (2,)),
    (r".*/(mlp|token_mlp)/(fc1|gate|fc2)/kernel", (0,), (1,)),
    (r"pre_logits/kernel", (0,), (1,)),
)

# Root mean square that orthogonal updates are scaled to. Adam's updates have about the same, so
# both share one learning rate and one weight decay (Liu et al. 2025, arXiv 2502.16982).
_UPDATE_RMS = 0.2


def matrix_axes(path: str, ndim: int) -> MuonDimensionNumbers | None:
    """Returns the axes of a parameter that Muon takes as rows and columns; None: Adam updates it.

    Adam updates embedding, class token, position embedding, probe, norms, biases and the head. The
    leading axis of a scanned kernel is in neither group: each block is orthogonalised separately.

    Raises:
      ConfigError: a kernel that should be a matrix has another number of axes.
    """
    matrix = next((axes for pattern, *axes in _MATRICES if re.fullmatch(pattern, path)), None)
    if matrix is None:
        return None
    first = int(layers.is_scanned(path))
    rows, columns = (tuple(first + axis for axis in axes) for axes in matrix)
    expected = first + len(rows) + len(columns)
    if ndim != expected:
        raise ConfigError(
            f"Muon expects {path} to be a kernel with {expected} axes; it has {ndim}. Add its "
            "shape to _MATRICES in vit_jax/optim/muon.py or use adamw."
        )
    return MuonDimensionNumbers(reduction_axis=rows, output_axis=columns)


def scale_by_muon_and_adam(
    params: PyTree,
    *,
    momentum: float,
    nesterov: bool,
    b1: float,
    b2: float,
    eps: float,
    momentum_dtype: str,
) -> optax.GradientTransformation:
    """Returns Muon's direction for matrices, Adam's for all other parameters.

    Jordan et al. 2024, github.com/KellerJordan/Muon.

    Args:
      params: parameters, or their shapes.
      momentum: decay of Muon's momentum; .95 in the original.
      nesterov: whether Muon's momentum is Nesterov's; True in the original.
      b1: decay of Adam's first moment.
      b2: decay of Adam's second moment.
      eps: Adam's epsilon.
      momentum_dtype: of the first moments, float32 or bfloat16.
    """
    axes = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = paths.path_name(key_path)
        axes[path] = matrix_axes(path, len(leaf.shape))
    labels = paths.map_with_path(lambda path, _: "muon" if axes[path] else "adam", params)

    def for_matrices(fn):
        """Returns the tree of fn(path, leaf), with a `MaskedNode` for Adam's parameters."""
        return paths.map_with_path(
            lambda path, leaf: fn(path, leaf) if axes[path] else optax.MaskedNode(), params
        )

    def scale(path, leaf):
        sides = [math.prod(leaf.shape[axis] for axis in side) for side in axes[path]]
        return _UPDATE_RMS * math.sqrt(max(sides))

    scales = for_matrices(scale)
    muon = optax.chain(
        scale_by_muon(
            beta=momentum,
            nesterov=nesterov,
            mu_dtype=momentum_dtype,
            weight_dimension_numbers=for_matrices(lambda path, _: axes[path]),
        ),
        optax.stateless(lambda u, _: jax.tree.map(lambda x, scale: x * scale, u, scales)),
    )
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=momentum_dtype)
    return optax.partition({"muon": muon, "adam": adam}, labels)
