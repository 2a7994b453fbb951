"""The inverse of `model_config`: a model as the `model` part of a run's config."""

import dataclasses

from ml_collections import ConfigDict

from vit_jax.errors import ConfigError
from vit_jax.models.build import ModelConfig, model_config
from vit_jax.models.config import VitConfig
from vit_jax.models.mixer import MixerConfig
from vit_jax.models.resnet import StemConfig
from vit_jax.models.variants import HYBRIDS, VARIANTS, Variant


def write_section(cfg: ModelConfig, section: ConfigDict) -> None:
    """Sets every key of `config.model` so that `model_config` gives this model.

    Args:
      cfg: of the model.
      section: `config.model` of `vit_jax.config.base_config`; what it had is overwritten.

    Raises:
      ConfigError: no config can say it: patches that are not square, say.
    """
    section.variant = _variant(cfg)
    for field in dataclasses.fields(cfg):
        if field.name in section:
            section[field.name] = getattr(cfg, field.name)
    stem = cfg.stem if isinstance(cfg, VitConfig) else cfg
    if isinstance(stem, StemConfig):
        for field in dataclasses.fields(StemConfig):
            section.resnet[field.name] = getattr(stem, field.name)
    said = model_config(section, num_classes=cfg.num_classes)
    for field in dataclasses.fields(cfg):
        if getattr(said, field.name) != getattr(cfg, field.name):
            raise ConfigError(
                f"A run's config cannot say that {field.name} is {getattr(cfg, field.name)}."
            )


def _variant(cfg: ModelConfig) -> str:
    """A name of the model's kind and patch size, of its own size if there is one."""
    if isinstance(cfg, StemConfig):
        return "BiT-R50x1"
    patch = cfg.patch_size[0]
    if isinstance(cfg, MixerConfig):
        return f"Mixer-B/{patch}"
    if cfg.stem is not None:
        names = [name for name, hybrid in HYBRIDS.items() if hybrid.patch == patch]
        if not names:
            raise ConfigError(f"No hybrid has patches of {patch} points of its feature map.")
        return names[0]
    shape = Variant(cfg.width, cfg.depth, cfg.mlp_dim, cfg.num_heads)
    return f"{next((name for name, row in VARIANTS.items() if row == shape), 'S')}/{patch}"
