"""BiT's ResNets (Kolesnikov et al. 2019, arXiv 1912.11370): the CNN baseline, and a hybrid's stem.

There are two versions: with the activation after the convolutions (v1, He et al. 2015, arXiv
1512.03385: big_vision's bit.py and the stems of the ViT paper's hybrids), or before (v2,
1603.05027: the published BiT-S, -M and -L). Both have group norm (1803.08494) in place of batch
norm and standardise the weights of their convolutions (1903.10520).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.config.model import GROUPS, ResnetConfig, StemConfig
from vit_jax.models.classifier import Classifier
from vit_jax.models.hooks import perturb
from vit_jax.parallel.constraints import BATCH, constrain


def standardised_kernel(
    kernel: Float[Array, "h w c d"], config: StemConfig
) -> Float[Array, "h w c d"]:
    """Returns a kernel of mean 0 and variance 1 for each output channel, as `StdConv` uses it."""
    kernel = kernel - kernel.mean(axis=(0, 1, 2))
    variance = jnp.square(kernel).mean(axis=(0, 1, 2))
    if config.std_eps_in == "std":
        return kernel / (jnp.sqrt(variance) + config.std_eps)
    return kernel / jnp.sqrt(variance + config.std_eps)


class StdConv(nn.Module):
    """A convolution without bias; its kernel is standardised per output channel, in float32.

    Attributes:
      features: output channels.
      size: side of the kernel.
      stride: along both axes.
    """

    config: StemConfig
    features: int
    size: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        config, size = self.config, self.size
        shape = (size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        kernel = standardised_kernel(kernel, config)
        margin = (size // 2, size // 2)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            "SAME" if config.padding == "same" else (margin, margin),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


def _norm(config: StemConfig, dtype: str, name: str, **kwargs) -> nn.GroupNorm:
    return nn.GroupNorm(
        GROUPS, epsilon=config.gn_eps, dtype=dtype, use_fast_variance=False, name=name, **kwargs
    )


class Root(nn.Module):
    """A 7x7 convolution and a 3x3 max pooling of stride 2 each; in v1, norm and ReLU between."""

    config: StemConfig
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h4 w4 d"]:
        config = self.config
        x = StdConv(config, config.root_width, 7, 2, self.dtype, name="conv")(x)
        if config.version == "v1":
            x = nn.relu(_norm(config, self.dtype, "norm")(x))
        if config.padding == "same":
            return nn.max_pool(x, (3, 3), (2, 2), "SAME")
        margin = (1, 1)
        if config.padding == "explicit_zeros":
            x, margin = jnp.pad(x, ((0, 0), margin, margin, (0, 0))), (0, 0)
        pads = (margin, margin)
        return nn.max_pool(x, (3, 3), (2, 2), pads)  # pyright: ignore[reportArgumentType]  # Untyped in flax.


class Unit(nn.Module):
    """A residual bottleneck of 1x1, 3x3, 1x1 convolutions; its output has 4 * `width` channels.

    Attributes:
      width: channels between the convolutions.
      stride: of the 3x3 convolution.
    """

    config: StemConfig
    width: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        is_v1 = self.config.version == "v1"
        project = x.shape[-1] != 4 * self.width or self.stride != 1

        def conv(features, size, stride, name):
            return StdConv(self.config, features, size, stride, self.dtype, name=name)

        def norm(name, **kwargs):
            return _norm(self.config, self.dtype, name, **kwargs)

        y = x if is_v1 else nn.relu(norm("norm1")(x))
        shortcut = x
        if project:
            shortcut = conv(4 * self.width, 1, self.stride, "proj")(y)
            if is_v1:
                shortcut = norm("proj_norm")(shortcut)
        y = conv(self.width, 1, 1, "conv1")(y)
        y = nn.relu(norm("norm1" if is_v1 else "norm2")(y))
        y = conv(self.width, 3, self.stride, "conv2")(y)
        y = nn.relu(norm("norm2" if is_v1 else "norm3")(y))
        y = conv(4 * self.width, 1, 1, "conv3")(y)
        if not is_v1:
            return shortcut + y
        # A scale of zero: initially the branch adds nothing.
        return nn.relu(shortcut + norm("norm3", scale_init=nn.initializers.zeros)(y))


class Stage(nn.Module):
    """Units of one width; from the second stage on, the first unit has stride 2."""

    config: StemConfig
    index: int  # From 0.
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        width = self.config.root_width * 2**self.index
        for i in range(self.config.units[self.index]):
            stride = 2 if self.index > 0 and i == 0 else 1
            x = Unit(self.config, width, stride, self.dtype, name=f"unit{i + 1}")(x)
        return constrain(x, BATCH, None, None, None)


def _feature_map(
    config: StemConfig, x: Float[Array, "b h w c"], *, dtype: str
) -> Float[Array, "b h2 w2 features"]:
    """Applies root, stages and v2's last norm, as submodules of the calling module."""
    x = Root(config, dtype, name="root")(x)
    for i in range(len(config.units)):
        x = Stage(config, i, dtype, name=f"stage{i + 1}")(x)
    return x if config.version == "v1" else nn.relu(_norm(config, dtype, "norm")(x))


class Stem(nn.Module):
    """A ResNet without its head: maps images to the feature map that a hybrid cuts into patches."""

    config: StemConfig
    dtype: str

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 features"]:
        return _feature_map(self.config, images, dtype=self.dtype)


class Resnet(Classifier[ResnetConfig]):
    """A ResNet: `Resnet(config).apply({"params": p}, images) -> (logits, intermediates)`, as `Vit`.

    Parameters are float32. Computation is in `config.dtype`, except the standardisation of kernels,
    the statistics of norms, and everything from the mean of the feature map on, which are float32.
    There is no dropout. If captured, `feature_map` [b, height, width, features] is what the head's
    mean is of.

    Example:
      >>> model = Resnet(ResnetConfig(units=(1,), image_size=(32, 32), num_classes=10))
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3)))
      >>> sorted(shapes["params"])
      ['head', 'root', 'stage1']
    """

    config: ResnetConfig
    capturable = ("feature_map",)

    def classify(self, images, *, train, capture):
        """See `Classifier.classify`."""
        x = _feature_map(self.config, images, dtype=self.config.dtype)
        x = perturb(self, "feature_map", x)
        intermediates = {"feature_map": x} if "feature_map" in capture else {}
        x = x.astype(jnp.float32).mean(axis=(1, 2))
        logits = self.head(x) if self.config.num_classes else x
        return logits, {**intermediates, "pre_logits": x}
