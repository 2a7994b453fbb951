"""BiT's ResNets (Kolesnikov et al. 2019, arXiv 1912.11370): the CNN baseline, and a hybrid's stem.

Two kinds are public, and one code has both: with the activation after the convolutions (v1, He et
al. 2015, arXiv 1512.03385: big_vision's bit.py and the stems of the ViT paper's hybrids), or before
(v2, 1603.05027: the published BiT-S, -M and -L). Both have group norm (1803.08494) in place of
batch norm and standardise the weights of their convolutions (1903.10520).
"""

import dataclasses
from collections.abc import Collection

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import ConfigError
from vit_jax.models.checks import DTYPES, check_choices, check_images, check_ranges
from vit_jax.parallel.constraints import BATCH, constrain

# version -> the numerics of Google's code for it, as fields of StemConfig.
NUMERICS = {
    "v1": {"padding": "same", "gn_eps": 1e-6, "std_eps": 1e-5, "std_eps_in": "std"},
    "v2": {"padding": "explicit", "gn_eps": 1e-5, "std_eps": 1e-10, "std_eps_in": "var"},
}
_CHOICES = {
    "version": tuple(NUMERICS),
    # same: as TensorFlow, a pixel more at the end where the sides are even. explicit: as many on
    # either side (big_vision). explicit_zeros: and the root's maximum is taken with zeros beyond
    # the border (PyTorch's BiT: timm, Hugging Face); in v1, after a ReLU, that is the same.
    "padding": ("same", "explicit", "explicit_zeros"),
    # The epsilon is added to the standard deviation, or to the variance under its root.
    "std_eps_in": ("std", "var"),
}
_GROUPS = 32
_LARGEST_FACTOR = 64.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class StemConfig:
    """A ResNet up to its last feature map. Hashable, checked when made.

    The fields are those of `config.model.resnet` of `vit_jax.config.base_config`; the defaults of
    the numerics are those of Google's v1.

    Raises:
      ConfigError: a value is not accepted.
    """

    units: tuple[int, ...]  # Of each stage; (): the root alone.
    width_factor: float = 1.0
    version: str = "v1"
    padding: str = "same"
    gn_eps: float = 1e-6
    std_eps: float = 1e-5
    std_eps_in: str = "std"

    def __post_init__(self):
        check_choices(self, _CHOICES, where="model.resnet.")
        if not all(0 < n <= 1024 for n in self.units) or len(self.units) > 8:
            raise ConfigError(
                f"model.resnet.units is {self.units}: write at most 8 numbers of units, from 1 to "
                "1,024, such as (3, 4, 6, 3)."
            )
        if not 0 < self.width_factor <= _LARGEST_FACTOR or self.root_width % _GROUPS:
            raise ConfigError(
                f"model.resnet.width_factor is {self.width_factor}: it must be above 0 and at most "
                f"{_LARGEST_FACTOR}, and make 64 times it a multiple of {_GROUPS}, the groups of "
                "group norm: 0.5, 1, 1.5, ..."
            )
        for field in ("gn_eps", "std_eps"):
            if not getattr(self, field) > 0:
                raise ConfigError(
                    f"model.resnet.{field} is {getattr(self, field)}: it must be above 0."
                )

    @property
    def root_width(self) -> int:
        """Channels of the first convolution."""
        return int(64 * self.width_factor)

    @property
    def features(self) -> int:
        """Channels of the last feature map."""
        return 4 * self.root_width * 2 ** (len(self.units) - 1) if self.units else self.root_width

    @property
    def stride(self) -> int:
        """Pixels of the image between points of the last feature map."""
        return 4 * 2 ** max(len(self.units) - 1, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResnetConfig(StemConfig):
    """A ResNet with a head. Hashable, checked when made.

    Raises:
      ConfigError: a value is not accepted.
    """

    image_size: tuple[int, int]  # Height, width, pixels.
    channels: int = 3
    num_classes: int  # 0: no head, the logits are the pre-logits.
    head_bias_init: float = 0.0
    dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        check_choices(self, {"dtype": DTYPES})
        check_ranges(self)


class StdConv(nn.Module):
    """A convolution without bias whose kernel is standardised, for each output, in float32.

    Attributes:
      cfg: of the model.
      features: output channels.
      size: side of the kernel.
      stride: in either direction.
      dtype: of the computation.
    """

    cfg: StemConfig
    features: int
    size: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        cfg, size = self.cfg, self.size
        shape = (size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        kernel = kernel - kernel.mean(axis=(0, 1, 2))
        variance = jnp.square(kernel).mean(axis=(0, 1, 2))
        if cfg.std_eps_in == "std":
            kernel = kernel / (jnp.sqrt(variance) + cfg.std_eps)
        else:
            kernel = kernel / jnp.sqrt(variance + cfg.std_eps)
        margin = (size // 2, size // 2)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            "SAME" if cfg.padding == "same" else (margin, margin),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


def _norm(cfg: StemConfig, dtype: str, name: str, **kwargs) -> nn.GroupNorm:
    return nn.GroupNorm(
        _GROUPS, epsilon=cfg.gn_eps, dtype=dtype, use_fast_variance=False, name=name, **kwargs
    )


class Root(nn.Module):
    """A 7x7 convolution and a 3x3 maximum, each of stride 2. In v1 norm and ReLU between them."""

    cfg: StemConfig
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h4 w4 d"]:
        cfg = self.cfg
        x = StdConv(cfg, cfg.root_width, 7, 2, self.dtype, name="conv")(x)
        if cfg.version == "v1":
            x = nn.relu(_norm(cfg, self.dtype, "norm")(x))
        if cfg.padding == "same":
            return nn.max_pool(x, (3, 3), (2, 2), "SAME")
        margin = (1, 1)
        if cfg.padding == "explicit_zeros":
            x, margin = jnp.pad(x, ((0, 0), margin, margin, (0, 0))), (0, 0)
        return nn.max_pool(x, (3, 3), (2, 2), (margin, margin))


class Unit(nn.Module):
    """A bottleneck with a residual connection: 1x1, 3x3, 1x1 convolutions, to four times `width`.

    Attributes:
      cfg: of the model.
      width: channels between the convolutions.
      stride: of the 3x3 one.
      dtype: of the computation.
    """

    cfg: StemConfig
    width: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        after = self.cfg.version == "v1"
        project = x.shape[-1] != 4 * self.width or self.stride != 1

        def conv(features, size, stride, name):
            return StdConv(self.cfg, features, size, stride, self.dtype, name=name)

        def norm(name, **kwargs):
            return _norm(self.cfg, self.dtype, name, **kwargs)

        y = x if after else nn.relu(norm("norm1")(x))
        shortcut = x
        if project:
            shortcut = conv(4 * self.width, 1, self.stride, "proj")(y)
            if after:
                shortcut = norm("proj_norm")(shortcut)
        y = conv(self.width, 1, 1, "conv1")(y)
        y = nn.relu(norm("norm1" if after else "norm2")(y))
        y = conv(self.width, 3, self.stride, "conv2")(y)
        y = nn.relu(norm("norm2" if after else "norm3")(y))
        y = conv(4 * self.width, 1, 1, "conv3")(y)
        if not after:
            return shortcut + y
        # A unit begins as the identity.
        return nn.relu(shortcut + norm("norm3", scale_init=nn.initializers.zeros)(y))


class Stage(nn.Module):
    """Units of one width; the first of them has the stage's stride."""

    cfg: StemConfig
    index: int  # From 0.
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        width = self.cfg.root_width * 2**self.index
        for i in range(self.cfg.units[self.index]):
            stride = 2 if self.index > 0 and i == 0 else 1
            x = Unit(self.cfg, width, stride, self.dtype, name=f"unit{i + 1}")(x)
        return constrain(x, BATCH, None, None, None)


def _feature_map(
    cfg: StemConfig, x: Float[Array, "b h w c"], *, dtype: str
) -> Float[Array, "b h2 w2 features"]:
    """Root, stages and v2's last norm, as submodules of the module that calls."""
    x = Root(cfg, dtype, name="root")(x)
    for i in range(len(cfg.units)):
        x = Stage(cfg, i, dtype, name=f"stage{i + 1}")(x)
    return x if cfg.version == "v1" else nn.relu(_norm(cfg, dtype, "norm")(x))


class Stem(nn.Module):
    """A ResNet without its head: images to the feature map that a hybrid takes patches of."""

    cfg: StemConfig
    dtype: str

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 features"]:
        return _feature_map(self.cfg, images, dtype=self.dtype)


class Resnet(nn.Module):
    """A ResNet: `Resnet(cfg).apply({"params": p}, images) -> (logits, intermediates)`, as `Vit`.

    Parameters are float32 and computation is in `cfg.dtype`, but for the standardisation of
    kernels, the statistics of norms, and everything from the average of the feature map on.
    """

    cfg: ResnetConfig

    @nn.compact
    def __call__(
        self,
        images: Float[Array | np.ndarray, "b height width channels"],
        *,
        train: bool = False,
        capture: Collection[str] = (),
    ) -> tuple[Float[Array, "b classes"], dict[str, Array]]:
        """Classifies images.

        Args:
          images: of the config's size and channels, normalised as the model was trained.
          train: changes nothing: there is no dropout. All models take it.
          capture: must be empty: there are no tokens and no attention.

        Returns:
          The logits in float32, and `pre_logits` [b, features], the head's input in float32.

        Raises:
          ConfigError: images of another size, or something in `capture`.
        """
        cfg = self.cfg
        check_images(images.shape, cfg.image_size, cfg.channels)
        if capture:
            raise ConfigError(f'Cannot capture "{", ".join(capture)}" of a ResNet.')
        x = _feature_map(cfg, jnp.asarray(images), dtype=cfg.dtype)
        x = x.astype(jnp.float32).mean(axis=(1, 2))
        intermediates = {"pre_logits": x}
        if not cfg.num_classes:
            return x, intermediates
        head = nn.Dense(
            cfg.num_classes,
            kernel_init=nn.initializers.zeros,
            bias_init=nn.initializers.constant(cfg.head_bias_init),
            name="head",
        )
        return head(x), intermediates
