"""Resizes position embeddings to another grid, and patch embeddings to another patch size.

Publishers resize with different kernels, but each kernel is a linear map along each axis: a matrix.
So a position embedding is resized by two small matrix products, which work for any sharding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# name -> (parameter a of the cubic kernel, or None for linear; whether corners are aligned;
#          whether antialiased; offset of the new length in the scale)
#
# bilinear_corners   google-research/vision_transformer and big_vision (scipy.ndimage.zoom, order 1)
# bilinear           timm for .npz files (torch, no antialiasing)
# bicubic_corners    torchvision
# bicubic            Hugging Face's ViT, DeiT, MAE, MSN, I-JEPA, SigLIP, DINOv2
# bicubic_antialias  timm; DINOv2 with registers
# bicubic_offset     DINOv2 without registers: the scale is that of a new grid larger by 0.1 patches
KERNELS = {
    "bilinear_corners": (None, True, False, 0.0),
    "bilinear": (None, False, False, 0.0),
    "bicubic_corners": (-0.75, True, False, 0.0),
    "bicubic": (-0.75, False, False, 0.0),
    "bicubic_antialias": (-0.5, False, True, 0.0),
    "bicubic_offset": (-0.75, False, False, 0.1),
}


@functools.lru_cache(maxsize=64)
def matrix(kernel: str, old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Returns the matrix that resizes `old` points to `new` ones; every row sums to 1.

    Args:
      kernel: one of KERNELS.
      old: number of input points.
      new: number of output points.
    """
    a, corners, antialias, offset = KERNELS[kernel]
    if old == new and not offset:
        return np.eye(old)
    i = np.arange(new)[:, None]
    if corners:
        centre, stretch = i * ((old - 1) / max(new - 1, 1)), 1.0
    else:
        scale = old / (new + offset)
        centre, stretch = (i + 0.5) * scale - 0.5, max(scale, 1.0) if antialias else 1.0
    support = (1 if a is None else 2) * stretch
    first = int(np.floor(centre.min() - support)) - 1
    taps = np.arange(first, int(np.ceil(centre.max() + support)) + 2)
    distance = np.abs(taps - centre) / stretch
    weights = np.maximum(1 - distance, 0.0) if a is None else _cubic(distance, a)
    if antialias:
        # Weights outside the image are dropped and the rest renormalised. Without antialiasing the
        # border pixel gets them.
        weights = np.where((taps >= 0) & (taps < old), weights, 0.0)
        weights = weights / weights.sum(axis=1, keepdims=True)
    pixel_of_tap = np.zeros((len(taps), old))
    pixel_of_tap[np.arange(len(taps)), taps.clip(0, old - 1)] = 1
    return weights @ pixel_of_tap


def _cubic(x: Float[np.ndarray, "n k"], a: float) -> Float[np.ndarray, "n k"]:
    """Keys' cubic convolution kernel, of |x|."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resize_posemb(
    posemb: Float[Array, "1 old width"],
    *,
    old: tuple[int, int],
    new: tuple[int, int],
    prefix: int,
    kernel: str,
) -> Float[Array, "1 new width"]:
    """Resizes a learned position embedding to another grid; prefix tokens keep their rows.

    Args:
      posemb: rows of prefix tokens, then those of the patches in row-major order.
      old: rows and columns of the grid that `posemb` is for.
      new: rows and columns of the new grid.
      prefix: number of rows of prefix tokens.
      kernel: one of KERNELS.
    """
    if old == new:  # Unchanged even if the kernel has an offset, as in DINOv2's code.
        return posemb
    first, patches = posemb[:, :prefix], posemb[:, prefix:]
    patches = patches.reshape(1, *old, posemb.shape[-1]).astype(jnp.float32)
    down, across = (
        jnp.asarray(matrix(kernel, *lengths), jnp.float32) for lengths in zip(old, new, strict=True)
    )
    patches = jnp.einsum(
        "yh,xw,bhwd->byxd", down, across, patches, precision=jax.lax.Precision.HIGHEST
    )
    patches = patches.reshape(1, new[0] * new[1], -1).astype(posemb.dtype)
    return jnp.concatenate([first, patches], axis=1)


def resize_patches(
    kernel: Float[Array, "h w channels width"], *, new: tuple[int, int]
) -> Float[Array, "h2 w2 channels width"]:
    """Resizes the kernel of a patch embedding to patches of size `new` (height, width).

    By FlexiViT's pseudo-inverse (arXiv 2212.08013): a resized patch gets the same token from the
    resized kernel as the patch from the original one, exactly if patches grow, and in the
    least-squares sense if they shrink.
    """
    # A patch is resized by one matrix for each axis (bilinear, antialiased, as FlexiViT's). The
    # pseudo-inverse of their Kronecker product is the product of their pseudo-inverses. Computed
    # from the product it would differ: where a side shrinks, rounding would decide its rank.
    down, across = (
        jnp.asarray(np.linalg.pinv(_linear_antialias(*lengths).T), jnp.float32)
        for lengths in zip(kernel.shape[:2], new, strict=True)
    )
    return jnp.einsum("yh,xw,hwcd->yxcd", down, across, kernel, precision=jax.lax.Precision.HIGHEST)


def _linear_antialias(old: int, new: int) -> Float[np.ndarray, "new old"]:
    scale = old / new
    stretch = max(scale, 1.0)
    centre = (np.arange(new)[:, None] + 0.5) * scale - 0.5
    weights = np.maximum(1 - np.abs(np.arange(old) - centre) / stretch, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)
