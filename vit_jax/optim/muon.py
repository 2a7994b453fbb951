"""Muon: momentum made orthogonal, for the matrices inside the network; Adam for all else."""

import math
import re

import jax
import optax
from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from vit_jax.errors import ConfigError
from vit_jax.optim import layers, paths

# (path, axes that the kernel sums over, axes that it gives), not counting the axis of scanned
# blocks. Several axes are one dimension of the matrix: a query kernel is D x (heads * head size).
_MATRICES = (
    (r".*/attn/(query|key|value)/kernel", (0,), (1, 2)),
    (r".*/attn/out/kernel", (0, 1), (2,)),
    (r".*/(mlp|token_mlp)/(fc1|gate|fc2)/kernel", (0,), (1,)),
    (r"pre_logits/kernel", (0,), (1,)),
)

# Of an orthogonal update's entries, once scaled: Adam's updates have about this root mean square,
# so both halves share one learning rate and one weight decay (Liu et al. 2025, arXiv 2502.16982).
_UPDATE_RMS = 0.2


def matrix_axes(path: str, ndim: int) -> MuonDimensionNumbers | None:
    """Which axes of a parameter are its matrix's rows and columns; None: it is Adam's.

    Embedding, class token, position embedding, probe, norms, biases and the head are Adam's. The
    leading axis of a scanned kernel is in neither: each block's matrix is made orthogonal alone.

    Raises:
      ConfigError: a kernel that should be a matrix has another number of axes.
    """
    shape = next((rest for pattern, *rest in _MATRICES if re.fullmatch(pattern, path)), None)
    if shape is None:
        return None
    first = int(layers.is_scanned(path))
    rows, columns = (tuple(first + axis for axis in axes) for axes in shape)
    if ndim != first + len(rows) + len(columns):
        raise ConfigError(
            f"Muon takes {path} for a kernel with {first + len(rows) + len(columns)} axes; it has "
            f"{ndim}. Add its shape to _MATRICES in vit_jax/optim/muon.py or use adamw."
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
    """Muon's direction (Jordan et al. 2024, github.com/KellerJordan/Muon), Adam's elsewhere.

    Args:
      params: parameters, or their shapes.
      momentum: decay of Muon's momentum; .95 in the original.
      nesterov: whether Muon looks one step ahead; True in the original.
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
        """The tree that Muon's part of the partition sees: fn(path, leaf), or nothing."""
        return paths.map_with_path(
            lambda path, leaf: fn(path, leaf) if axes[path] else optax.MaskedNode(), params
        )

    def rms(path, leaf):
        sides = [math.prod(leaf.shape[axis] for axis in side) for side in axes[path]]
        return _UPDATE_RMS * math.sqrt(max(sides))

    scales = for_matrices(rms)
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
