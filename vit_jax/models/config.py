"""What a Vision Transformer is: the architecture and the numerics, as one frozen value."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.models.variants import parse_variant

# The accepted values of the fields that are names.
CHOICES = {
    "pool": ("token", "gap", "map"),
    "posemb": ("learned", "sincos2d", "none"),
    "gelu": ("tanh", "erf"),
    "norm": ("layernorm", "rmsnorm"),
    "dtype": ("float32", "bfloat16"),
    "attention": ("auto", "xla", "cudnn"),
    # What the backward pass recomputes: nothing; all but the results of matrix products; all but
    # those of products without a batch dimension (the attention matrix is recomputed); everything.
    "remat": ("none", "dots", "dots_no_batch", "full"),
}
# The smallest and the largest accepted value: ten times what anybody has published, and more.
_SPANS = {
    "width": (1, 2**17),
    "depth": (1, 1024),
    "mlp_dim": (1, 2**20),
    "num_heads": (1, 2**12),
    "channels": (1, 2**10),
    "num_classes": (0, 2**24),
    "rep_size": (0, 2**17),
}
_LONGEST_SIDE = 2**14  # Of an image, in pixels.
_PROBABILITIES = ("dropout", "attention_dropout", "stochastic_depth")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VitConfig:
    """Architecture and numerics of a Vision Transformer. Hashable, checked when made.

    The fields have the meaning, units and defaults that `vit_jax.config.base_config` declares.

    Raises:
      ConfigError: a value is not accepted, or two do not go together.
    """

    image_size: tuple[int, int]  # Height, width, pixels.
    patch_size: tuple[int, int]
    channels: int = 3
    num_classes: int  # 0: no head, the logits are the pre-logits.
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    pool: str = "token"
    posemb: str = "learned"
    rep_size: int = 0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    stochastic_depth: float = 0.0
    head_bias_init: float = 0.0
    ln_eps: float = 1e-6
    gelu: str = "tanh"
    qkv_bias: bool = True
    qk_norm: bool = False
    norm: str = "layernorm"
    parallel: bool = False
    dtype: str = "float32"
    attention: str = "auto"
    scan: bool = True
    remat: str = "none"

    def __post_init__(self):
        for field, accepted in CHOICES.items():
            value = getattr(self, field)
            if value not in accepted:
                raise ConfigError(f'model.{field} is "{value}". ' + did_you_mean(value, accepted))
        for field in _PROBABILITIES:
            if not 0 <= getattr(self, field) < 1:
                raise ConfigError(f"model.{field} is {getattr(self, field)}: it must be in [0, 1).")
        for field, (low, high) in _SPANS.items():
            if not low <= getattr(self, field) <= high:
                raise ConfigError(
                    f"model.{field} is {getattr(self, field)}: it must be from {low} to {high:,}."
                )
        if not self.ln_eps > 0:
            raise ConfigError(f"model.ln_eps is {self.ln_eps}: it must be above 0.")
        for side, image, patch in zip(
            ("height", "width"), self.image_size, self.patch_size, strict=True
        ):
            if image % patch or image < patch:
                below, above = image // patch * patch, (image // patch + 1) * patch
                nearest = f"{below} or {above}" if below else f"{above}"
                raise ConfigError(
                    f"model.image_size has the {side} {image}, which is not a multiple of the "
                    f"patch size {patch}. The nearest that are: {nearest}."
                )
        if self.width % self.num_heads:
            raise ConfigError(
                f"model.width {self.width} is not a multiple of model.num_heads {self.num_heads}."
            )
        if self.posemb == "sincos2d" and self.width % 4:
            raise ConfigError(f"sincos2d needs a width that is a multiple of 4, not {self.width}.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def num_tokens(self) -> int:
        """Length of the sequence in the encoder, class token included."""
        return self.grid[0] * self.grid[1] + (self.pool == "token")


def square(size: tuple[Any, ...], name: str) -> tuple[int, int]:
    """(side,) or (height, width) as (height, width); `name` is for the error."""
    if len(size) not in (1, 2) or not all(type(side) is int and side > 0 for side in size):
        raise ConfigError(f"{name} is {size}: write (side,) or (height, width), whole pixels.")
    if max(size) > _LONGEST_SIDE:
        raise ConfigError(f"{name} is {size}: a side must be at most {_LONGEST_SIDE:,} pixels.")
    return size[0], size[-1]


def vit_config(model: ConfigDict, *, num_classes: int) -> VitConfig:
    """The `model` part of a run's config as a `VitConfig`: the variant's row, then overrides.

    Args:
      model: `config.model` of `vit_jax.config.base_config`.
      num_classes: of the data set; `model.num_classes` goes before it.
    """
    variant, patch_size = parse_variant(model.variant)
    fields: dict[str, Any] = {
        **dataclasses.asdict(variant),
        **{key: value for key, value in model.items() if value is not None},
    }
    del fields["variant"]
    fields["image_size"] = square(model.image_size, "model.image_size")
    fields["patch_size"] = (patch_size, patch_size)
    fields.setdefault("num_classes", num_classes)
    if fields["rep_size"] == -1:
        fields["rep_size"] = fields["width"]
    return VitConfig(**fields)
