"""The configs of models: every field of every kind of model, declared once.

    ClassifierConfig    image size, channels, classes, head
    PatchConfig         a ClassifierConfig with patches, and blocks of one width
    VitConfig           a PatchConfig: the Vision Transformer and its hybrids
    MixerConfig         a PatchConfig: MLP-Mixer
    StemConfig          a ResNet up to its feature map, as in hybrids
    ResnetConfig        a StemConfig and a ClassifierConfig

`model_section` derives the section `model` of a run's config from them.
"""

# The defaults are calls of `declare`, which ruff takes for mutable defaults:
# ruff: noqa: RUF009

import dataclasses
import functools
import typing

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vit_jax.config.fields import (
    FRACTION,
    POSITIVE,
    Bounds,
    Role,
    check_fields,
    declarations,
    declare,
)
from vit_jax.errors import ConfigError

size = functools.partial(declare, Role.SIZE)
architecture = functools.partial(declare, Role.ARCHITECTURE)
numerics = functools.partial(declare, Role.NUMERICS)
run_setting = functools.partial(declare, Role.RUN)

# The largest accepted sizes are at least ten times those of any published model.
_MAX_SIDE = 2**14  # Of an image, in pixels.
_LEARNED = {"posemb": ("learned",)}
_ROTARY = {"rope": ("dinov3", "axial_ij", "axial_xy")}
_AXIAL = {"rope": ("axial_ij", "axial_xy")}

# ResNet version -> the numerics of Google's code for it, as fields of StemConfig.
RESNET_NUMERICS = {
    "v1": {"padding": "same", "gn_eps": 1e-6, "std_eps": 1e-5, "std_eps_in": "std"},
    "v2": {"padding": "explicit", "gn_eps": 1e-5, "std_eps": 1e-10, "std_eps_in": "var"},
}
GROUPS = 32  # Groups of every GroupNorm.

SIZES_OF_VARIANT = ("width", "depth", "mlp_dim", "num_heads")  # Keys that replace a variant's.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Fields of every image classifier. Hashable; checked at construction.

    Raises:
      ConfigError: a value is not accepted, or two values conflict. Subclasses check their fields,
        too.
    """

    image_size: tuple[int, int] = size(
        "Height and width in pixels; in a config also (side,). Without a checkpoint, None is 224.",
        bounds=Bounds(1, _MAX_SIDE), hint=True,
    )  # fmt: skip
    channels: int = size("Channels of an image.", default=3, bounds=Bounds(1, 2**10))
    num_classes: int = size(
        "None: the number of classes of the data set. 0: no head, the logits are the pre-logits.",
        bounds=Bounds(0, 2**24), hint=True,
    )  # fmt: skip
    head_bias_init: float = run_setting(
        "Initial bias of the head: -6.9 or -10 with the sigmoid loss and many classes.", default=0.0
    )
    dtype: str = run_setting(
        "Dtype of the computation. Parameters are float32.",
        default="float32", choices=("float32", "bfloat16"),
    )  # fmt: skip

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchConfig(ClassifierConfig):
    """Fields that a ViT and a Mixer have in common."""

    patch_size: tuple[int, int] = size(
        "Height and width in pixels; of a hybrid in points of its stem's feature map.",
        bounds=Bounds(1, _MAX_SIDE), hint=True, section=None,
    )  # fmt: skip
    width: int = size("Number of features of a token.", bounds=Bounds(1, 2**17), hint=True)
    depth: int = size("Number of blocks.", bounds=Bounds(1, 1024), hint=True)
    mlp_dim: int = size("Hidden units of a block's MLP.", bounds=Bounds(1, 2**20), hint=True)
    stochastic_depth: float = run_setting(
        "Rate of the last block; grows linearly from 0 at the first.", default=0.0, bounds=FRACTION
    )
    ln_eps: float = numerics(
        "Epsilon of LayerNorm or RMSNorm.", default=1e-6, bounds=POSITIVE, hint=True
    )
    gelu: str = numerics(
        "tanh: the approximation, of Google's models; erf: exact, of PyTorch's.",
        default="tanh", choices=("tanh", "erf"), hint=True,
    )  # fmt: skip
    grad_sum_dtype: str = run_setting(
        "Dtype in which the gradients of dense layers' kernels are summed over devices. bfloat16: "
        "that of the computation, half the bytes in a bfloat16 model. float32: errors do not grow "
        "with the number of devices. A float32 model sums in float32 with either.",
        default="bfloat16", choices=("bfloat16", "float32"),
    )  # fmt: skip
    scan: bool = run_setting(
        "Compile one block and loop over it: compile time independent of depth.", default=True
    )
    remat: str = run_setting(
        "What the backward pass recomputes. none: only attention weights, GELU and normalised "
        "activations; named: all but queries, keys, values, attention's output, hidden units "
        "before the activation, and the residual stream; dots: all but matrix products; "
        "dots_no_batch: all but matrix products without a batch dimension (so the attention matrix "
        "is recomputed); full: everything. auto: the least of these that fits in the memory of the "
        "run's devices, so none on a CPU (vit_jax.training.rematerialisation).",
        default="auto", choices=("auto", "none", "named", "dots", "dots_no_batch", "full"),
    )  # fmt: skip

    @property
    def stride(self) -> tuple[int, int]:
        """Distance between neighbouring patches, in pixels of the image."""
        return self.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.stride[0], self.image_size[1] // self.stride[1]

    @property
    def num_tokens(self) -> int:
        """Length of the sequence in the encoder."""
        return self.grid[0] * self.grid[1]

    def __post_init__(self):
        super().__post_init__()
        scaled = self.stride != self.patch_size
        divisor = "the stem's stride times the patch size," if scaled else "the patch size"
        for side, image, patch in zip(
            ("height", "width"), self.image_size, self.stride, strict=True
        ):
            if image % patch or image < patch:
                below, above = image // patch * patch, (image // patch + 1) * patch
                nearest = f"{below} or {above}" if below else f"{above}"
                raise ConfigError(
                    f"model.image_size has the {side} {image}, which is not a multiple of "
                    f"{divisor} {patch}. The nearest multiples: {nearest}."
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixerConfig(PatchConfig):
    """The config of an MLP-Mixer.

    Example:
      >>> create("Mixer-S/16", image_size=32, num_classes=10).config.token_mlp_dim
      256
    """

    token_mlp_dim: int = size("Hidden units of the MLP over tokens.", bounds=Bounds(1, 2**20))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StemConfig:
    """A ResNet up to its last feature map. Numerics default to those of Google's code for v1.

    Raises:
      ConfigError: a value is not accepted.
    """

    units: tuple[int, ...] = size(
        "Units in each stage, such as (3, 4, 6, 3). (): only the root.",
        bounds=Bounds(1, 1024), section="resnet",
    )  # fmt: skip
    width_factor: float = size(
        "Multiplies all channels; 1: 64 channels in the root.",
        default=1.0, bounds=Bounds(0, 64.0, low_open=True), section="resnet",
    )  # fmt: skip
    version: str = architecture(
        "v1: activation after the convolutions; v2: before.",
        default="v1", choices=tuple(RESNET_NUMERICS), section="resnet",
    )  # fmt: skip
    padding: str = numerics(
        "same: as TensorFlow, one pixel more at the end where sides are even (v1). explicit: equal "
        "on either side (v2, big_vision). explicit_zeros: equal, and the root's max pooling pads "
        "with zeros (PyTorch's BiT); the same as explicit in v1, where a ReLU comes before it.",
        default="same", choices=("same", "explicit", "explicit_zeros"), section="resnet",
    )  # fmt: skip
    gn_eps: float = numerics(
        "GroupNorm epsilon: 1e-6 (v1) or 1e-5 (v2).",
        default=1e-6, bounds=POSITIVE, section="resnet",
    )  # fmt: skip
    std_eps: float = numerics(
        "Epsilon of standardised kernels: 1e-5 (v1) or 1e-10 (v2).",
        default=1e-5, bounds=POSITIVE, section="resnet",
    )  # fmt: skip
    std_eps_in: str = numerics(
        "std_eps is added to the standard deviation: std (v1); or to the variance: var (v2).",
        default="std", choices=("std", "var"), section="resnet",
    )  # fmt: skip

    def __post_init__(self):
        check_fields(self)
        if len(self.units) > 8:
            raise ConfigError(
                f"model.resnet.units is {self.units}: write at most 8 stages, such as (3, 4, 6, 3)."
            )
        if self.root_width % GROUPS:
            raise ConfigError(
                f"model.resnet.width_factor is {self.width_factor}: 64 times it must be a multiple "
                f"of {GROUPS}, the groups of group norm: 0.5, 1, 1.5, ..."
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
        """Distance between neighbouring points of the last feature map, in pixels of the image."""
        return 4 * 2 ** max(len(self.units) - 1, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResnetConfig(StemConfig, ClassifierConfig):
    """A ResNet with a head.

    Example:
      >>> ResnetConfig(units=(3, 4, 6, 3), image_size=(224, 224), num_classes=10).stride
      32
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class VitConfig(PatchConfig):
    """The config of a Vision Transformer.

    Example:
      >>> config = VitConfig(
      ...     image_size=(32, 32), patch_size=(8, 8), width=32, depth=2, num_heads=2, mlp_dim=64,
      ...     num_classes=10, pool="gap",
      ... )
      >>> config.pool, config.num_heads
      ('gap', 2)
    """

    stem: StemConfig | None = architecture(
        "A hybrid's ResNet, whose feature map is cut into patches.", default=None, section=None
    )
    num_heads: int = size("Number of attention heads.", bounds=Bounds(1, 2**12), hint=True)
    pool: str = architecture(
        "Input of the head. token: the class token; gap: the mean of the patches; map: attention "
        "pooling of all tokens; map_patches: of the patches only; token_gap: class token and mean "
        "of the patches, concatenated (DINOv2's classifier).",
        default="token", choices=("token", "gap", "map", "map_patches", "token_gap"), hint=True,
    )  # fmt: skip
    class_token: bool = architecture(
        "Have a class token even if the head does not read it.", default=False
    )
    distilled: bool = architecture(
        "A distillation token and its head (DeiT, arXiv 2012.12877).", default=False
    )
    registers: int = architecture(
        "Number of register tokens (arXiv 2309.16588).", default=0, bounds=Bounds(0, 2**10)
    )
    posemb: str = architecture(
        "Position embedding added to the tokens.",
        default="learned", choices=("learned", "sincos2d", "none"), hint=True,
    )  # fmt: skip
    posemb_prefix: str = architecture(
        "Prefix tokens that have a row in the position embedding. none: DeiT-III; class: class and "
        "distillation token, not registers: DINOv2; all: timm's default.",
        default="class", choices=("none", "class", "all"), used_if=_LEARNED,
    )  # fmt: skip
    posemb_resize: str = numerics(
        "Kernel that resizes the position embedding to another grid: vit_jax.models.resize.",
        default="bilinear_corners",
        choices=(
            "bilinear_corners", "bilinear", "bicubic_corners", "bicubic", "bicubic_antialias",
            "bicubic_offset",
        ),
        used_if=_LEARNED, hint=True,
    )  # fmt: skip
    rope: str = architecture(
        "Rotary position embedding of queries and keys: vit_jax.models.positions.",
        default="none", choices=("none", "dinov3", "axial_ij", "axial_xy"), hint=True,
    )  # fmt: skip
    rope_theta: float = architecture(
        "Base of the rotary periods.",
        default=100.0, bounds=POSITIVE, used_if=_ROTARY | {"rope_periods": ((),)}, hint=True,
    )  # fmt: skip
    rope_periods: tuple[float, ...] = numerics(
        "Rotary periods of a checkpoint that stores them, in place of those of rope_theta; their "
        "number is a quarter of a head's width.",
        default=(), bounds=POSITIVE, used_if=_ROTARY,
    )  # fmt: skip
    rope_grid: tuple[int, int] = architecture(
        "Rows and columns that positions are scaled to; (0, 0): not scaled.",
        default=(0, 0), bounds=Bounds(0), used_if=_AXIAL, hint=True,
    )  # fmt: skip
    rep_size: int = architecture(
        "Width of the tanh pre-logits layer; 0: none; in a config, -1: the model's width.",
        default=0, bounds=Bounds(0, 2**17), hint=True,
    )  # fmt: skip
    dropout: float = run_setting(
        "Dropout rate after embedding and attention, and in the MLP.",
        default=0.0, bounds=FRACTION,
    )  # fmt: skip
    attention_dropout: float = run_setting(
        "Dropout rate of the attention weights.", default=0.0, bounds=FRACTION
    )
    patch_bias: bool = architecture("Whether the patch embedding has a bias.", default=True)
    qkv_bias: bool = architecture("Whether query, key and value have biases.", default=True)
    key_bias: bool = architecture(
        "False: only query and value have a bias (DINOv3, EVA).",
        default=True, used_if={"qkv_bias": (True,)},
    )  # fmt: skip
    qk_norm: bool = architecture("Whether queries and keys pass a LayerNorm.", default=False)
    qk_norm_bias: bool = architecture(
        "Whether these norms have biases.", default=False, used_if={"qk_norm": (True,)}
    )
    attn_norm: bool = architecture(
        "A LayerNorm before attention's output projection.", default=False
    )
    mlp: str = architecture(
        "Activation of the MLP; swiglu and geglu have a gate (a third matrix).",
        default="gelu", choices=("gelu", "silu", "swiglu", "geglu"), hint=True,
    )  # fmt: skip
    mlp_norm: bool = architecture("A norm in the MLP (EVA-02).", default=False)
    layer_scale: float = architecture(
        "Initial scale of the branches (CaiT, arXiv 2103.17239); 0: none.", default=0.0
    )
    pre_norm: bool = architecture("A norm before the first block (CLIP).", default=False)
    final_norm: str = architecture(
        "Input of the last norm: all tokens, the pooled vector, or none: no such norm.",
        default="tokens", choices=("tokens", "pooled", "none"),
    )  # fmt: skip
    norm: str = architecture(
        "Norms of the blocks and the last one; rmsnorm: no bias, no centring.",
        default="layernorm",
        choices=("layernorm", "rmsnorm"),
    )
    parallel: bool = architecture(
        "Attention and MLP read the same normalised input, and their outputs are added.",
        default=False,
    )
    lora_rank: int = run_setting(
        "Rank of adapters of attention's four projections (arXiv 2106.09685); 0: none. Freeze all "
        "but adapters and head by optim.freeze, as `--config=finetune:mode=lora` does.",
        default=0, bounds=Bounds(0, 2**12),
    )  # fmt: skip
    lora_alpha: float = run_setting(
        "An adapter's output is multiplied by lora_alpha / lora_rank.",
        default=16.0, bounds=POSITIVE,
    )  # fmt: skip
    attention: str = run_setting(
        "Back end of attention.", default="auto", choices=("auto", "xla", "cudnn")
    )

    def __post_init__(self):
        super().__post_init__()
        if self.distilled and self.pool != "token":
            raise ConfigError(f'model.distilled needs model.pool="token", not "{self.pool}".')
        if self.width % self.num_heads:
            raise ConfigError(
                f"model.width {self.width} is not a multiple of model.num_heads {self.num_heads}."
            )
        if self.posemb == "sincos2d" and self.width % 4:
            raise ConfigError(f"sincos2d needs a width that is a multiple of 4, not {self.width}.")
        head_width = self.width // self.num_heads
        if self.rope != "none" and head_width % 4:
            raise ConfigError(
                f"model.rope needs a head width that is a multiple of 4, not {head_width}."
            )
        if len(self.rope_periods) not in (0, head_width // 4):
            raise ConfigError(
                f"model.rope_periods has {len(self.rope_periods)} numbers: it must have "
                f"{head_width // 4}, a quarter of a head's width, or none."
            )

    @property
    def stride(self) -> tuple[int, int]:
        """Distance between neighbouring patches, in pixels of the image."""
        scale = 1 if self.stem is None else self.stem.stride
        return scale * self.patch_size[0], scale * self.patch_size[1]

    @property
    def has_class_token(self) -> bool:
        """Whether the sequence begins with a class token."""
        return self.class_token or self.pool in ("token", "token_gap")

    @property
    def num_prefix(self) -> int:
        """Number of tokens before the patches: class, distillation, registers."""
        return self.has_class_token + self.distilled + self.registers

    @property
    def num_tokens(self) -> int:
        """Length of the sequence in the encoder."""
        return self.num_prefix + super().num_tokens

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate, a third matrix."""
        return self.mlp in ("swiglu", "geglu")

    @property
    def posemb_rows(self) -> int:
        """Number of prefix tokens that have a row in a learned position embedding."""
        rows = {"none": 0, "class": self.num_prefix - self.registers, "all": self.num_prefix}
        return rows[self.posemb_prefix]


ModelConfig = VitConfig | ResnetConfig | MixerConfig
MODEL_CONFIGS: tuple[type[ModelConfig], ...] = (VitConfig, ResnetConfig, MixerConfig)


def model_section() -> ConfigDict:
    """Returns the section `model` of the base config: every key of every kind of model.

    A placeholder (None) stands for the value of the published variant or of the checkpoint of
    `init_from`; if neither has one, for the field's default.
    """
    section = ConfigDict({"variant": "S/16", "resnet": ConfigDict()})
    for kind in MODEL_CONFIGS:
        types = typing.get_type_hints(kind)
        for field, declaration in declarations(kind):
            if declaration.section is None:
                continue
            default = declaration.section_default
            if default is None:
                default = placeholder(typing.get_origin(types[field.name]) or types[field.name])
            subsection = getattr(section, declaration.section) if declaration.section else section
            subsection[field.name] = default
    return section


def section_docs() -> dict[str, str]:
    """Returns the meaning of each key of the section `model`: {"width": ..., "resnet.depths": ...}.

    A meaning that several kinds of model share is named once.
    """
    docs: dict[str, str] = {
        "variant": "Name of vit_jax.models.variants: S/16, R26+S/32, BiT-R50x1, Mixer-B/16; "
        '"": the model of init_from.'
    }
    for kind in MODEL_CONFIGS:
        for field, declaration in declarations(kind):
            if declaration.section is not None:
                section = f"{declaration.section}." if declaration.section else ""
                accepted = (
                    f" One of {', '.join(declaration.choices)}." if declaration.choices else ""
                )
                docs.setdefault(section + field.name, declaration.doc + accepted)
    return docs
