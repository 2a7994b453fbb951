"""The embedding of patches, a linear map of each."""

from collections.abc import Callable

from jaxtyping import Array, Float

from vit_jax.config.model import PatchConfig
from vit_jax.models.operations import Dense


def embed_patches(
    config: PatchConfig, *, use_bias: bool = True
) -> Callable[[Float[Array, "b height width channels"]], Float[Array, "b patches features"]]:
    """Returns a function from images, or a feature map, to embedded patches in row-major order.

    Its kernel [height, width, channels, features] is that of a convolution whose stride is the
    kernel's size, which XLA computes in the same way but differentiates more slowly.
    """
    dense = Dense(config, (config.width,), axes=3, use_bias=use_bias, name="embedding")

    def embed(x):
        (height, width), batch = config.patch_size, x.shape[0]
        rows, columns = x.shape[1] // height, x.shape[2] // width
        # Pixels that fill no patch, at the lower and right border, are left out.
        x = x[:, : rows * height, : columns * width]
        x = x.reshape(batch, rows, height, columns, width, -1).swapaxes(2, 3)
        return dense(x.reshape(batch, rows * columns, height, width, -1))

    return embed
