"""Position embeddings that are computed rather than learned: sine-cosine and rotary."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.config.model import VitConfig


def sincos2d(
    grid: tuple[int, int], width: int, *, temperature: float = 10_000.0
) -> Float[Array, "1 patches width"]:
    """Returns the fixed two-dimensional sine-cosine position embedding of big_vision.

    A patch at row y and column x gets [sin x w, cos x w, sin y w, cos y w], with n = width/4
    frequencies w = temperature^(-i/(n-1)), from 1 down to 1/temperature. The layout is that of MoCo
    v3 (arXiv 2104.02057), whose frequencies are temperature^(-i/n): the lowest one is higher there.

    Args:
      grid: rows and columns of patches.
      width: of the model, a multiple of 4.
      temperature: the longest wavelength is 2 pi times this, in patches.

    Returns:
      float32, patches in row-major order.
    """
    omega = temperature ** -jnp.linspace(0.0, 1.0, width // 4, dtype=jnp.float32)
    y, x = jnp.mgrid[: grid[0], : grid[1]]
    y, x = y.reshape(-1, 1) * omega, x.reshape(-1, 1) * omega
    return jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=1)[None]


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Rotates the queries or keys of patches by the angles of their positions.

    Attributes:
      cos: cosines of the angles.
      sin: sines of the angles.
      halves: whether component i is paired with i + d/2 (DINOv3), or else 2i with 2i + 1 (EVA).
    """

    cos: Float[np.ndarray, "patches d"]
    sin: Float[np.ndarray, "patches d"]
    halves: bool

    def __call__(self, x: Float[Array, "b n h d"]) -> Float[Array, "b n h d"]:
        """Rotates the last tokens, the patches, in float32; returns the dtype of `x`."""
        prefix, patches = jnp.split(x, [x.shape[1] - len(self.cos)], axis=1)
        patches = patches.astype(jnp.float32)
        # Each pair of components, rotated by 90 degrees.
        if self.halves:
            first, second = jnp.split(patches, 2, axis=-1)
            rotated = jnp.concatenate([-second, first], axis=-1)
        else:
            pairs = patches.reshape(*patches.shape[:-1], -1, 2)
            rotated = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(patches.shape)
        patches = patches * self.cos[:, None] + rotated * self.sin[:, None]
        return jnp.concatenate([prefix, patches.astype(x.dtype)], axis=1)


def rotation(config: VitConfig) -> Rotation | None:
    """Returns the rotary position embedding of a model's grid; None if the model has none.

    Su et al. 2021 (arXiv 2104.09864), in two dimensions: half of a head's width is rotated by the
    row, half by the column. In DINOv3 (arXiv 2508.10104) positions go from -1 to 1 over the image;
    in EVA (arXiv 2303.11331, as in timm) they are in patches of the grid that it was trained on.
    """
    if config.rope == "none":
        return None
    rows, columns = config.grid
    quarter = config.width // config.num_heads // 4
    # float64, because float32 rounds the product of a large position and a frequency.
    if config.rope_periods:
        frequencies = 1 / np.asarray(config.rope_periods, np.float64)
    else:
        frequencies = config.rope_theta ** -(np.arange(quarter) / quarter)
    if config.rope == "dinov3":
        y, x = ((np.arange(n) + 0.5) / n * 2 - 1 for n in (rows, columns))
        frequencies = 2 * np.pi * frequencies
    else:
        scale = [
            trained / n if trained else 1
            for trained, n in zip(config.rope_grid, config.grid, strict=True)
        ]
        y, x = np.arange(rows) * scale[0], np.arange(columns) * scale[1]
    y, x = (position.reshape(-1, 1) for position in np.meshgrid(y, x, indexing="ij"))
    first, second = (x, y) if config.rope == "axial_xy" else (y, x)
    angles = np.concatenate([first * frequencies, second * frequencies], axis=1)
    halves = config.rope == "dinov3"
    angles = np.tile(angles, 2) if halves else np.repeat(angles, 2, axis=1)
    return Rotation(
        np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32), halves=halves
    )
