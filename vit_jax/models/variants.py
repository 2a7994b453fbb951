"""The table of model sizes, and their names.

ViT      a size, a slash and a patch size in pixels: "B/16", "Ti/7", "So400m/14"
hybrid   "R26+S/32", "R50+B/16", ...: a ViT on the feature map of a ResNet
ResNet   "BiT-R50x1", "BiT-R152x2": depth, and a factor of the width
Mixer    "Mixer-B/16": a size and a patch size in pixels

Capitals count: S (Dosovitskiy et al.'s family, 22 M parameters) is not s (Zhai et al.'s, 5 M).
"""

import dataclasses
import re

from vit_jax.config.model import RESNET_NUMERICS, StemConfig
from vit_jax.errors import ConfigError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Variant:
    """A size of ViT, and the differences of its blocks from the standard one."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    qkv_bias: bool = True
    qk_norm: bool = False  # Normalise queries and keys.
    norm: str = "layernorm"  # Or rmsnorm: no bias, no centring.
    parallel: bool = False  # Attention and MLP read the same normalised input.


# Sources: Ti to H: arXiv 2010.11929 and 2012.12877; s, g, G: 2106.04560; So150m, So400m:
# 2305.13035; mu, M, g-opt, G-opt, e: big_vision; 22B: 2302.05442.
VARIANTS = {
    "mu": Variant(32, 1, 128, 2),
    "s": Variant(256, 6, 1024, 8),
    "Ti": Variant(192, 12, 768, 3),
    "S": Variant(384, 12, 1536, 6),
    "M": Variant(512, 12, 2048, 8),
    "B": Variant(768, 12, 3072, 12),
    "L": Variant(1024, 24, 4096, 16),
    "H": Variant(1280, 32, 5120, 16),
    "So150m": Variant(880, 18, 2320, 16),
    "So400m": Variant(1152, 27, 4304, 16),
    "g": Variant(1408, 40, 6144, 16),
    "g-opt": Variant(1536, 40, 6144, 16),
    "G": Variant(1664, 48, 8192, 16),
    "G-opt": Variant(1536, 48, 8192, 16),
    "e": Variant(1792, 56, 15360, 16),
    "22B": Variant(
        6144, 48, 24576, 48, qkv_bias=False, qk_norm=True, norm="rmsnorm", parallel=True
    ),
}


@dataclasses.dataclass(frozen=True)
class HybridVariant:
    """A ViT on the feature map of a ResNet, which is cut into patches."""

    vit: Variant
    stem: StemConfig
    patch: int  # Side, in points of the feature map.


# arXiv 2010.11929 and 2106.10270. The number in a name is the stride in pixels, except R+Ti/16: its
# stem has a stride of 4, and its patches have a side of 8 points, 32 pixels.
HYBRIDS = {
    "R+Ti/16": HybridVariant(VARIANTS["Ti"], StemConfig(units=()), 8),
    "R26+S/32": HybridVariant(VARIANTS["S"], StemConfig(units=(2, 2, 2, 2)), 1),
    "R26+B/32": HybridVariant(VARIANTS["B"], StemConfig(units=(2, 2, 2, 2)), 1),
    "R50+B/16": HybridVariant(VARIANTS["B"], StemConfig(units=(3, 4, 9)), 1),
    "R50+L/32": HybridVariant(VARIANTS["L"], StemConfig(units=(3, 4, 6, 3)), 1),
}

# Units of each stage by depth, arXiv 1512.03385, 1912.11370.
RESNETS = {
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}


@dataclasses.dataclass(frozen=True)
class MixerVariant:
    """A size of MLP-Mixer."""

    width: int
    depth: int
    mlp_dim: int
    token_mlp_dim: int


# arXiv 2105.01601, table 1.
MIXERS = {
    "Mixer-S": MixerVariant(512, 8, 2048, 256),
    "Mixer-B": MixerVariant(768, 12, 3072, 384),
    "Mixer-L": MixerVariant(1024, 24, 4096, 512),
    "Mixer-H": MixerVariant(1280, 32, 5120, 640),
}


def parse_variant(name: str) -> tuple[Variant | HybridVariant | StemConfig | MixerVariant, int]:
    """Returns the variant of a name, and the number of pixels that must divide an image's sides.

    For "B/16" these are the row B of `VARIANTS` and the patch size 16. A name of a ResNet has only
    its body, without head, and 1: it takes images of any size.

    Raises:
      ConfigError: no such row, or no patch size; the message names the nearest.
    """
    if name in HYBRIDS:
        hybrid = HYBRIDS[name]
        return hybrid, hybrid.stem.stride * hybrid.patch
    if name.startswith("BiT-"):
        return _parse_resnet(name), 1
    if "+" in name:
        raise ConfigError(
            f'model.variant is "{name}": there is no such hybrid. {did_you_mean(name, HYBRIDS)}'
        )
    rows = VARIANTS | MIXERS
    match = re.fullmatch(r"(?P<row>[\w-]+)/(?P<patch>[1-9]\d*)", name)
    if not match:
        row = name.partition("/")[0]
        example = row if row in rows else "B"
        raise ConfigError(
            f'model.variant is "{name}": write a size, a slash and a patch size, such as '
            f'"{example}/16". Sizes: {", ".join(rows)}. Or a ResNet, such as "BiT-R50x1", or a '
            f"hybrid: {', '.join(HYBRIDS)}."
        )
    if match["row"] not in rows:
        raise ConfigError(
            f'model.variant is "{name}": there is no size "{match["row"]}". '
            + did_you_mean(match["row"], rows)
        )
    return rows[match["row"]], int(match["patch"])


def is_variant(name: str) -> bool:
    """Returns whether `parse_variant` accepts a name."""
    try:
        parse_variant(name)
    except ConfigError:
        return False
    return True


_FAMILIES = {
    Variant: "vit",
    HybridVariant: "hybrid",
    StemConfig: "resnet",
    MixerVariant: "mixer",
}


def family(name: str) -> str:
    """Returns the kind of model of a variant's name: vit, hybrid, resnet or mixer.

    Raises:
      ConfigError: as `parse_variant`.
    """
    variant, _ = parse_variant(name)
    return _FAMILIES[type(variant)]


def _parse_resnet(name: str) -> StemConfig:
    """Returns the ResNet, without head, of a name such as "BiT-R50x1"; v2, as in the paper."""
    match = re.fullmatch(r"BiT-R(?P<depth>\d{1,4})x(?P<factor>\d{1,4}(\.\d{1,4})?)", name)
    if not match:
        raise ConfigError(
            f'model.variant is "{name}": write a depth and a factor of the width, such as '
            f'"BiT-R50x1". Depths: {", ".join(map(str, RESNETS))}.'
        )
    depth = int(match["depth"])
    if depth not in RESNETS:
        nearest = min(RESNETS, key=lambda published: abs(published - depth))
        raise ConfigError(
            f'model.variant is "{name}": there is no depth {depth}. Did you mean '
            f'"BiT-R{nearest}x{match["factor"]}"? Accepted: {", ".join(map(str, RESNETS))}.'
        )
    return StemConfig(
        units=RESNETS[depth],
        width_factor=float(match["factor"]),
        version="v2",
        **RESNET_NUMERICS["v2"],
    )
