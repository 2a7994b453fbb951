"""The one table of model sizes, and the names that select from it.

A name is a row of the table, a slash and a patch size in pixels: "B/16", "Ti/7", "So400m/14".
Capitals count: S (Dosovitskiy et al.'s family, 22 M parameters) is not s (Zhai et al.'s, 5 M).
"""

import dataclasses
import re

from vit_jax.errors import ConfigError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Variant:
    """A size, and what its publisher built differently from the standard block."""

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


def parse_variant(name: str) -> tuple[Variant, int]:
    """Splits "B/16" into the row B of `VARIANTS` and the patch size 16 (pixels).

    Raises:
      ConfigError: no such row, or no patch size; the message names the nearest.
    """
    match = re.fullmatch(r"(?P<row>[\w-]+)/(?P<patch>[1-9]\d*)", name)
    if not match:
        row = name.partition("/")[0]
        example = row if row in VARIANTS else "B"
        raise ConfigError(
            f'model.variant is "{name}": write a size, a slash and a patch size, such as '
            f'"{example}/16". Sizes: {", ".join(VARIANTS)}.'
        )
    if match["row"] not in VARIANTS:
        raise ConfigError(
            f'model.variant is "{name}": there is no size "{match["row"]}". '
            + did_you_mean(match["row"], VARIANTS)
        )
    return VARIANTS[match["row"]], int(match["patch"])
