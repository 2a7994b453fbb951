"""The peak of a device's matrix products, measured: what a step could reach at most."""

import time

import jax

# Side of the square matrices, by platform: so large that larger ones are no faster.
_SIDES = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
_PRODUCTS = {"cpu": 2, "gpu": 16, "tpu": 16}  # One after another in a call, to hide its latency.


class MatmulPeak:
    """A compiled chain of products of square matrices, on one device."""

    def __init__(self, dtype: str, *, side: int | None = None):
        """Compiles it.

        Args:
          dtype: of the matrices, multiplied with the precision of the models: XLA's default.
          side: None: that of the platform.
        """
        platform = jax.default_backend()
        self._side = side or _SIDES.get(platform, 2048)
        self._count = _PRODUCTS.get(platform, 2)
        matrix = jax.random.normal(jax.random.key(0), (self._side, self._side))
        # Products with a matrix of this scale keep the norm of the other one.
        self._matrix = (matrix * self._side**-0.5).astype(dtype)

        def products(x: jax.Array, matrix: jax.Array) -> jax.Array:
            for _ in range(self._count):
                x = x @ matrix
            return x

        self._compiled = jax.jit(products).lower(self._matrix, self._matrix).compile()
        jax.block_until_ready(self._compiled(self._matrix, self._matrix))

    def flops_per_second(self) -> float:
        """Measures once; a multiply-add counts as two."""
        start = time.perf_counter()
        jax.block_until_ready(self._compiled(self._matrix, self._matrix))
        return 2 * self._side**3 * self._count / (time.perf_counter() - start)
