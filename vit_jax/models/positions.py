"""Position embeddings that are computed rather than learned."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def sincos2d(
    grid: tuple[int, int], width: int, *, temperature: float = 10_000.0
) -> Float[Array, "1 patches width"]:
    """Fixed two-dimensional sine and cosine position embedding, as in MoCo v3 and big_vision.

    A patch at row y and column x gets [sin x w, cos x w, sin y w, cos y w], with width/4
    frequencies w from 1 down to 1/temperature. (MoCo v3: arXiv 2104.02057.)

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
