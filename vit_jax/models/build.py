"""From the `model` part of a run's config to a model: which kind it is, and all of its numbers."""

import dataclasses
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax.config import base_config
from vit_jax.errors import ConfigError
from vit_jax.models.checks import numbers, square
from vit_jax.models.config import VitConfig
from vit_jax.models.mixer import Mixer, MixerConfig
from vit_jax.models.resnet import NUMERICS, Resnet, ResnetConfig, StemConfig
from vit_jax.models.variants import HybridVariant, MixerVariant, parse_variant
from vit_jax.models.vit import Vit

ModelConfig = VitConfig | ResnetConfig | MixerConfig
_MODULES = {VitConfig: Vit, ResnetConfig: Resnet, MixerConfig: Mixer}
_KINDS = {VitConfig: "a Vision Transformer", ResnetConfig: "a ResNet", MixerConfig: "an MLP-Mixer"}


def build(cfg: ModelConfig) -> nn.Module:
    """The module of a config: `build(cfg).apply({"params": p}, images) -> (logits, intermediates)`.

    Intermediates always have `pre_logits`, [b, features] in float32.
    """
    return _MODULES[type(cfg)](cfg)


def model_config(model: ConfigDict | FrozenConfigDict, *, num_classes: int) -> ModelConfig:
    """The `model` part of a run's config as a value: the variant's row, then what goes before it.

    Args:
      model: `config.model` of `vit_jax.config.base_config`. None stands for what the variant was
        published with.
      num_classes: of the data set; `model.num_classes` goes before it.

    Raises:
      ConfigError: there is no such variant, a value is not accepted, or it is of a key that this
        kind of model has no use for.
    """
    row, patch = parse_variant(model.variant)
    fields = {"num_classes": num_classes} | {
        key: value
        for key, value in model.items()
        if value is not None and key not in ("variant", "resnet")
    }
    fields["image_size"] = square(model.image_size, "model.image_size")
    if isinstance(row, StemConfig):
        stem = dataclasses.asdict(_stem(row, model))
        return _make(ResnetConfig, model, stem | fields)
    if isinstance(row, MixerVariant):
        fields = dataclasses.asdict(row) | fields
        return _make(MixerConfig, model, fields | {"patch_size": (patch, patch)})
    stem = None
    if isinstance(row, HybridVariant):
        row, stem, patch = row.vit, _stem(row.stem, model), row.patch
    fields = dataclasses.asdict(row) | fields | {"patch_size": (patch, patch), "stem": stem}
    if "rope_periods" in fields:
        fields["rope_periods"] = numbers(fields["rope_periods"], "model.rope_periods", float)
    if "rope_grid" in fields:
        fields["rope_grid"] = numbers(fields["rope_grid"], "model.rope_grid", int, count=2)
    if fields.get("rep_size") == -1:
        fields["rep_size"] = fields["width"]
    return _make(VitConfig, model, fields)


def _stem(published: StemConfig, model: ConfigDict) -> StemConfig:
    """A ResNet's body, with what `model.resnet` changes; another version has its own numerics."""
    changes = {key: value for key, value in model.resnet.items() if value is not None}
    if "units" in changes:
        changes["units"] = numbers(changes["units"], "model.resnet.units", int)
    numerics = NUMERICS.get(changes["version"], {}) if "version" in changes else {}
    return dataclasses.replace(published, **{**numerics, **changes})


def _make(kind: type, model: ConfigDict, fields: dict[str, Any]) -> ModelConfig:
    """The config of a kind of model; refuses what is set although that kind does not have it."""
    known = {field.name for field in dataclasses.fields(kind)}
    defaults = base_config().model
    _refuse(kind, model, {key: defaults[key] for key in defaults if key not in known}, where="")
    if kind is not ResnetConfig and not fields.get("stem"):
        _refuse(kind, model.resnet, dict(defaults.resnet), where="resnet.")
    return kind(**{key: value for key, value in fields.items() if key in known})


def _refuse(kind: type, section: ConfigDict, defaults: dict[str, Any], *, where: str) -> None:
    """Raises ConfigError if a key that a kind of model has no use for is not at its default."""
    for key, default in defaults.items():
        if key not in ("variant", "resnet") and section[key] != default:
            raise ConfigError(
                f"model.{where}{key} is {section[key]!r}, but {_KINDS[kind]} has no use for it: "
                f"leave it at {default!r}."
            )
