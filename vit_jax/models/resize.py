"""Position embeddings for another grid of patches, and patch embeddings for another patch size.

Every publisher resizes with another kernel, and each is a linear map along each axis: a matrix.
So a position embedding is resized by two small matrix products, wherever its shards lie.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import ConfigError, did_you_mean

# name -> (a of the cubic kernel, None: linear; corners aligned; antialiased; offset)
#
# bilinear_corners   google-research/vision_transformer and big_vision (scipy.ndimage.zoom, order 1)
# bilinear           timm for .npz files (torch, no antialiasing)
# bicubic_corners    torchvision
# bicubic            Hugging Face's ViT, DeiT, MAE, MSN, I-JEPA, SigLIP, DINOv2
# bicubic_antialias  timm; DINOv2 with registers
# bicubic_offset     DINOv2 without registers: its scale is that of a grid larger by a tenth of a
#                    patch
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
    """The weights with which `old` points in a row make `new` ones; every row sums to 1.

    Args:
      kernel: one of KERNELS.
      old: points that there are.
      new: points that are wanted.

    Raises:
      ConfigError: there is no such kernel.
    """
    if kernel not in KERNELS:
        raise ConfigError(f'There is no kernel "{kernel}". {did_you_mean(kernel, KERNELS)}')
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
    if antialias:  # Weights outside the image are dropped; without, the border pixel gets them.
        weights = np.where((taps >= 0) & (taps < old), weights, 0.0)
        weights = weights / weights.sum(axis=1, keepdims=True)
    place = np.zeros((len(taps), old))
    place[np.arange(len(taps)), taps.clip(0, old - 1)] = 1
    return weights @ place


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
    """A learned position embedding for another grid; rows of prefix tokens stay as they are.

    Args:
      posemb: rows of prefix tokens, then of the patches, row by row.
      old: rows and columns of patches that it is for.
      new: rows and columns that are wanted.
      prefix: number of rows of prefix tokens.
      kernel: one of KERNELS.
    """
    if old == new:  # Untouched even where the kernel has an offset, as in DINOv2's code.
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
    """A patch embedding for another patch size: FlexiViT's pseudo-inverse (arXiv 2212.08013).

    The resized kernel gives a resized patch the token that the kernel gave the patch, exactly if
    patches grow, as nearly as can be if they shrink.

    Args:
      kernel: of the embedding.
      new: height and width of the wanted patches.
    """
    # What resizes a patch (bilinear, antialiased as FlexiViT's) is a matrix for each axis. Their
    # pseudo-inverses give that of their Kronecker product, but for rounding: it would decide the
    # product's rank where one side shrinks.
    down, across = (
        jnp.asarray(np.linalg.pinv(_linear_antialias(o, n).T), jnp.float32)
        for o, n in zip(kernel.shape[:2], new, strict=True)
    )
    return jnp.einsum("yh,xw,hwcd->yxcd", down, across, kernel, precision=jax.lax.Precision.HIGHEST)


def _linear_antialias(old: int, new: int) -> Float[np.ndarray, "new old"]:
    scale = old / new
    stretch = max(scale, 1.0)
    centre = (np.arange(new)[:, None] + 0.5) * scale - 0.5
    weights = np.maximum(1 - np.abs(np.arange(old) - centre) / stretch, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)
