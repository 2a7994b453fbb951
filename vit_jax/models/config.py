"""What a Vision Transformer is: the architecture and the numerics, as one frozen value."""

import dataclasses

from vit_jax.errors import ConfigError
from vit_jax.models.checks import DTYPES, check_choices, check_multiple, check_ranges
from vit_jax.models.resnet import StemConfig

# The accepted values of the fields that are names.
CHOICES = {
    # What the head reads: the class token; the mean of the patches; what attention pools of all
    # tokens, or of the patches alone; class token and mean of the patches, one after the other
    # (DINOv2's classifier).
    "pool": ("token", "gap", "map", "map_patches", "token_gap"),
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
    "mlp": ("gelu", "silu", "swiglu", "geglu"),
    # Where the last norm is: over tokens, over what is pooled of them, nowhere.
    "final_norm": ("tokens", "pooled", "none"),
    "gelu": ("tanh", "erf"),
    "norm": ("layernorm", "rmsnorm"),
    "dtype": DTYPES,
    "attention": ("auto", "xla", "cudnn"),
    # What the backward pass recomputes: nothing; all but the results of matrix products; all but
    # those of products without a batch dimension (the attention matrix is recomputed); everything.
    "remat": ("none", "dots", "dots_no_batch", "full"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VitConfig:
    """Architecture and numerics of a Vision Transformer. Hashable, checked when made.

    The fields have the meaning, units and defaults that `vit_jax.config.base_config` declares.

    Raises:
      ConfigError: a value is not accepted, or two do not go together.
    """

    image_size: tuple[int, int]  # Height, width, pixels.
    patch_size: tuple[int, int]  # Of the stem's feature map, if there is one.
    stem: StemConfig | None = None  # A hybrid: the patches are of a ResNet's feature map.
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
    lora_rank: int = 0
    lora_alpha: float = 16.0
    dtype: str = "float32"
    attention: str = "auto"
    scan: bool = True
    remat: str = "none"

    def __post_init__(self):
        check_choices(self, CHOICES)
        check_ranges(self)
        what = "the patch size" if self.stem is None else "the stem's stride times the patch size,"
        check_multiple(self.image_size, self.stride, what=what)
        if self.distilled and self.pool != "token":
            raise ConfigError(f'model.distilled needs model.pool="token", not "{self.pool}".')
        if self.rope != "none" and self.width // self.num_heads % 4:
            raise ConfigError(
                f"model.rope needs a head width that is a multiple of 4, not "
                f"{self.width // self.num_heads}."
            )
        quarter = self.width // self.num_heads // 4
        periods = self.rope_periods
        if periods and (len(periods) != quarter or min(periods) <= 0):
            raise ConfigError(
                f"model.rope_periods has {len(periods)} numbers: it must have {quarter} above 0, a "
                "quarter of a head's width, or none."
            )
        if min(self.rope_grid) < 0:
            raise ConfigError(f"model.rope_grid is {self.rope_grid}: it must not be negative.")
        if self.width % self.num_heads:
            raise ConfigError(
                f"model.width {self.width} is not a multiple of model.num_heads {self.num_heads}."
            )
        if self.posemb == "sincos2d" and self.width % 4:
            raise ConfigError(f"sincos2d needs a width that is a multiple of 4, not {self.width}.")

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels of the image from patch to patch."""
        scale = 1 if self.stem is None else self.stem.stride
        return scale * self.patch_size[0], scale * self.patch_size[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.stride[0], self.image_size[1] // self.stride[1]

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
    def gated(self) -> bool:
        """Whether the MLP has a gate, a third matrix."""
        return self.mlp in ("swiglu", "geglu")

    @property
    def posemb_rows(self) -> int:
        """Prefix tokens that have a row in a learned position embedding."""
        rows = {"none": 0, "class": self.num_prefix - self.registers, "all": self.num_prefix}
        return rows[self.posemb_prefix]
