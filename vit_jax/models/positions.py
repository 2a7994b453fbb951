"""Positions that are computed rather than learned: sums of waves, and rotations of heads."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.config.model import VitConfig


def sincos2d(
    grid: tuple[int, int], width: int, *, temperature: float = 10_000.0
) -> Float[Array, "1 patches width"]:
    """Fixed two-dimensional sine and cosine position embedding, as in big_vision.

    A patch at row y and column x gets [sin x w, cos x w, sin y w, cos y w], with n = width/4
    frequencies w = temperature^(-i/(n-1)), from 1 down to 1/temperature. MoCo v3 (arXiv
    2104.02057), where this layout is from, has temperature^(-i/n): its lowest frequency is higher.

    Args:
      grid: rows and columns of patches.
      width: of the model, a multiple of 4.
      temperature: the longest wave is 2 pi times this, in patches.

    Returns:
      float32, patches in row-major order.
    """
    omega = temperature ** -jnp.linspace(0.0, 1.0, width // 4, dtype=jnp.float32)
    y, x = jnp.mgrid[: grid[0], : grid[1]]
    y, x = y.reshape(-1, 1) * omega, x.reshape(-1, 1) * omega
    return jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=1)[None]


@dataclasses.dataclass(frozen=True)
class Rotation:
    """What rotates the queries and keys of all heads, patch by patch; prefix tokens stay.

    Attributes:
      cos: [patches, head width].
      sin: the same.
      halves: component i turns with i + d/2 (DINOv3); or else 2i with 2i + 1 (EVA).
    """

    cos: Float[np.ndarray, "patches d"]
    sin: Float[np.ndarray, "patches d"]
    halves: bool

    def __call__(self, x: Float[Array, "b n h d"]) -> Float[Array, "b n h d"]:
        """Rotates the last tokens of queries or keys, in float32; gives their own dtype."""
        prefix, patches = jnp.split(x, [x.shape[1] - len(self.cos)], axis=1)
        patches = patches.astype(jnp.float32)
        if self.halves:
            first, second = jnp.split(patches, 2, axis=-1)
            turned = jnp.concatenate([-second, first], axis=-1)
        else:
            pairs = patches.reshape(*patches.shape[:-1], -1, 2)
            turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(patches.shape)
        patches = patches * self.cos[:, None] + turned * self.sin[:, None]
        return jnp.concatenate([prefix, patches.astype(x.dtype)], axis=1)


def rotation(config: VitConfig) -> Rotation | None:
    """The rotary position embedding of a model's grid; None if it has none.

    Su et al. 2021 (arXiv 2104.09864), in two dimensions: half of a head's width turns with the row,
    half with the column. DINOv3 (arXiv 2508.10104) measures places from -1 to 1 over the image, EVA
    (arXiv 2303.11331, as in timm) in patches, of the grid that it was trained on.

    Args:
      config: of the model.
    """
    if config.rope == "none":
        return None
    rows, columns = config.grid
    quarter = config.width // config.num_heads // 4
    # float64 here: what float32 would round is the product of a large place and a frequency.
    if config.rope_periods:
        frequencies = 1 / np.asarray(config.rope_periods, np.float64)
    else:
        frequencies = config.rope_theta ** -(np.arange(quarter) / quarter)
    if config.rope == "dinov3":
        y, x = ((np.arange(n) + 0.5) / n * 2 - 1 for n in (rows, columns))
        frequencies = 2 * np.pi * frequencies
    else:
        scale = [
            ref / n if ref else 1 for ref, n in zip(config.rope_grid, config.grid, strict=True)
        ]
        y, x = np.arange(rows) * scale[0], np.arange(columns) * scale[1]
    y, x = (place.reshape(-1, 1) for place in np.meshgrid(y, x, indexing="ij"))
    first, second = (x, y) if config.rope == "axial_xy" else (y, x)
    angles = np.concatenate([first * frequencies, second * frequencies], axis=1)
    halves = config.rope == "dinov3"
    angles = np.tile(angles, 2) if halves else np.repeat(angles, 2, axis=1)
    return Rotation(
        np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32), halves=halves
    )
