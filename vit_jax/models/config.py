"""What a Vision Transformer is: the architecture and the numerics, as one frozen value."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.models.variants import parse_variant

# The accepted values of the fields that are names.
CHOICES = {
    # What the head reads: the class token; the mean of the patches; what attention pools of all
    # tokens; class token and mean of the patches, one after the other (DINOv2's classifier).
    "pool": ("token", "gap", "map", "token_gap"),
    "posemb": ("learned", "sincos2d", "none"),
    # Which prefix tokens have a row in a learned position embedding: none (DeiT-III), class and
    # distillation token but no registers (DINOv2), all (timm's default).
    "posemb_prefix": ("none", "class", "all"),
    # How a learned position embedding is brought to another grid: see vit_jax.models.resize.
    "posemb_resize": (
        "bilinear_corners",
        "bilinear",
        "bicubic_corners",
        "bicubic",
        "bicubic_antialias",
        "bicubic_offset",
    ),
    "rope": ("none", "dinov3", "axial_ij", "axial_xy"),
    "mlp": ("gelu", "swiglu", "geglu"),
    # Where the last norm is: over tokens, over what is pooled of them, nowhere.
    "final_norm": ("tokens", "pooled", "none"),
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
    "registers": (0, 2**10),
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
    class_token: bool = False  # Even if the head does not read it.
    distilled: bool = False
    registers: int = 0
    posemb: str = "learned"
    posemb_prefix: str = "class"
    posemb_resize: str = "bilinear_corners"
    rope: str = "none"
    rope_theta: float = 100.0
    rope_periods: tuple[float, ...] = ()  # In place of those of theta: as a checkpoint has them.
    rope_grid: tuple[int, int] = (0, 0)  # axial: positions are scaled to this grid; (0, 0): none.
    rep_size: int = 0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    stochastic_depth: float = 0.0
    head_bias_init: float = 0.0
    ln_eps: float = 1e-6
    gelu: str = "tanh"
    patch_bias: bool = True
    qkv_bias: bool = True
    key_bias: bool = True
    qk_norm: bool = False
    qk_norm_bias: bool = False
    attn_norm: bool = False
    mlp: str = "gelu"
    mlp_norm: bool = False
    layer_scale: float = 0.0
    pre_norm: bool = False
    final_norm: str = "tokens"
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
        if self.distilled and self.pool != "token":
            raise ConfigError(f'model.distilled needs model.pool="token", not "{self.pool}".')
        if self.rope != "none" and self.width // self.num_heads % 4:
            raise ConfigError(
                f"model.rope needs a head width that is a multiple of 4, not "
                f"{self.width // self.num_heads}."
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
    def has_class_token(self) -> bool:
        """Whether the sequence begins with one."""
        return self.class_token or self.pool in ("token", "token_gap")

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches: class, distillation, registers."""
        return self.has_class_token + self.distilled + self.registers

    @property
    def num_tokens(self) -> int:
        """Length of the sequence in the encoder."""
        return self.num_prefix + self.grid[0] * self.grid[1]

    @property
    def posemb_rows(self) -> int:
        """Prefix tokens that have a row in a learned position embedding."""
        rows = {"none": 0, "class": self.num_prefix - self.registers, "all": self.num_prefix}
        return rows[self.posemb_prefix]


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
