"""Describes a model's size in words: its published name, or its sizes."""

from vit_jax.config.model import MixerConfig, ModelConfig, ResnetConfig, StemConfig
from vit_jax.models.variants import HYBRIDS, MIXERS, RESNETS, VARIANTS


def describe_model(model_config: ModelConfig) -> str:
    """Returns the name of a published size, such as "ViT-B/16", only if all sizes are its own.

    Else the sizes, such as "ViT of width 48, depth 4, MLP 192, 4 heads, patches 8x8". Other fields,
    such as the kind of pooling, are not compared.
    """
    if isinstance(model_config, ResnetConfig):
        return _resnet(model_config)
    size = {name: getattr(model_config, name) for name in ("width", "depth", "mlp_dim")}
    height, width = model_config.patch_size
    sizes = f"width {size['width']}, depth {size['depth']}, MLP {size['mlp_dim']}"
    if isinstance(model_config, MixerConfig):
        kind, rows = "Mixer", MIXERS
        size["token_mlp_dim"] = model_config.token_mlp_dim
        sizes += f", token MLP {model_config.token_mlp_dim}"
    else:
        kind, rows = "ViT", VARIANTS
        size["num_heads"] = model_config.num_heads
        sizes += f", {model_config.num_heads} heads"
        if model_config.stem is not None:
            return _hybrid(model_config.stem, model_config.patch_size, size, sizes)
    name = next((name for name, row in rows.items() if _matches(row, size)), None)
    if name is None or height != width:
        return f"{kind} of {sizes}, patches {height}x{width}"
    return f"{name if kind == 'Mixer' else f'ViT-{name}'}/{height}"


def _matches(row: object, size: dict[str, int]) -> bool:
    return all(getattr(row, name) == value for name, value in size.items())


def _hybrid(stem: StemConfig, patch: tuple[int, int], size: dict[str, int], sizes: str) -> str:
    for name, hybrid in HYBRIDS.items():
        same_stem = (stem.units, stem.width_factor) == (hybrid.stem.units, 1.0)
        if same_stem and patch == (hybrid.patch, hybrid.patch) and _matches(hybrid.vit, size):
            return name
    return f"ViT of {sizes}, patches {patch[0]}x{patch[1]} on the feature map of a {_resnet(stem)}"


def _resnet(config: StemConfig) -> str:
    depth = next((depth for depth, units in RESNETS.items() if units == config.units), None)
    if depth is None:
        return f"ResNet of {config.units} units, {config.width_factor:g} times the width"
    name = f"R{depth}x{config.width_factor:g}"
    return f"BiT-{name}" if config.version == "v2" else f"ResNet {name}"
