"""Converts the section `model` of a run's config to a model's config, and back."""

import dataclasses
import operator
import typing
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax.config.fields import Declaration, declarations
from vit_jax.config.model import (
    RESNET_NUMERICS,
    MixerConfig,
    ModelConfig,
    ResnetConfig,
    StemConfig,
    VitConfig,
    model_section,
)
from vit_jax.errors import ConfigError
from vit_jax.models.variants import (
    HYBRIDS,
    VARIANTS,
    HybridVariant,
    MixerVariant,
    Variant,
    parse_variant,
)

_KINDS = {VitConfig: "a Vision Transformer", ResnetConfig: "a ResNet", MixerConfig: "an MLP-Mixer"}


def read_section(section: ConfigDict | FrozenConfigDict, *, num_classes: int) -> ModelConfig:
    """Returns the model's config: that of the published variant, with the set keys applied.

    Args:
      section: `config.model` of `vit_jax.config.base_config`. A key that is None keeps the value of
        the variant.
      num_classes: of the data set; `model.num_classes` takes precedence.

    Raises:
      ConfigError: there is no such variant, a value is not accepted, or a key is set that this
        kind of model does not use.
    """
    row, patch = parse_variant(section.variant)
    kind: type[ModelConfig]
    published: dict[str, Any]
    if isinstance(row, StemConfig):
        kind, published = ResnetConfig, dataclasses.asdict(_stem(row, section))
    elif isinstance(row, MixerVariant):
        kind, published = MixerConfig, dataclasses.asdict(row) | {"patch_size": (patch, patch)}
    else:
        stem = None
        if isinstance(row, HybridVariant):
            row, stem, patch = row.vit, _stem(row.stem, section), row.patch
        kind = VitConfig
        published = dataclasses.asdict(row) | {"patch_size": (patch, patch), "stem": stem}
    _refuse_unused(kind, section, has_resnet="units" in published or bool(published.get("stem")))
    usual = {"num_classes": num_classes, "image_size": (224, 224)}
    fields = published | usual | _set_fields(kind, section)
    if fields.get("rep_size") == -1:
        fields["rep_size"] = fields["width"]
    return kind(**fields)


def image_size(size: tuple[Any, ...], name: str = "model.image_size") -> tuple[int, int]:
    """Returns (side,) or (height, width) as (height, width); `name` is for the error.

    Raises:
      ConfigError: the size has neither form.
    """
    if len(size) not in (1, 2) or not all(type(side) is int and side > 0 for side in size):
        raise ConfigError(f"{name} is {size}: write (side,) or (height, width), whole pixels.")
    return size[0], size[-1]


def write_section(model_config: ModelConfig, section: ConfigDict) -> None:
    """Overwrites the keys of `config.model` that this kind of model uses with its values.

    Raises:
      ConfigError: a config cannot express the model, for example if its patches are not square.
    """
    section.variant = _variant(model_config)
    stem = getattr(model_config, "stem", None)
    for config in (model_config, *((stem,) if stem else ())):
        for field, declaration in declarations(config):
            if declaration.section is not None:
                _subsection(section, declaration)[field.name] = getattr(config, field.name)
    result = read_section(section, num_classes=model_config.num_classes)
    for field in dataclasses.fields(model_config):
        value = getattr(model_config, field.name)
        if getattr(result, field.name) != value:
            raise ConfigError(f"A run's config cannot express {field.name}={value}.")


def with_remat(model_config: ModelConfig, policy: str) -> ModelConfig:
    """Returns the model's config with `remat=policy`; a ResNet's, which has none, unchanged."""
    if isinstance(model_config, ResnetConfig):
        return model_config
    return dataclasses.replace(model_config, remat=policy)


def _subsection(section: ConfigDict, declaration: Declaration) -> ConfigDict:
    return getattr(section, declaration.section) if declaration.section else section


def _set_fields(kind: type, section: ConfigDict) -> dict[str, Any]:
    """Returns the fields of a kind of model that a section sets, converted to their types."""
    types, fields = typing.get_type_hints(kind), {}
    for field, declaration in declarations(kind):
        value = (
            None
            if declaration.section is None
            else getattr(_subsection(section, declaration), field.name)
        )
        if value is None:
            continue
        if field.name == "image_size":
            value = image_size(value)
        elif typing.get_origin(types[field.name]) is tuple:
            key = f"model.{declaration.section and declaration.section + '.'}{field.name}"
            value = _number_tuple(value, key, typing.get_args(types[field.name]))
        fields[field.name] = value
    return fields


def _number_tuple(value: tuple[Any, ...], key: str, types: tuple[Any, ...]) -> tuple[Any, ...]:
    """Converts a tuple to `types`, such as (int, int) or (float, ...)."""
    number, count = types[0], None if types[-1] is Ellipsis else len(types)
    if not all(type(item) in (int, number) for item in value) or count not in (None, len(value)):
        length = "" if count is None else f"{count} "
        items = "whole numbers" if number is int else "numbers"
        raise ConfigError(f"{key} is {value}: write a tuple of {length}{items}.")
    return tuple(number(item) for item in value)


def _stem(published: StemConfig, section: ConfigDict) -> StemConfig:
    """Applies `model.resnet` to a published ResNet; another version has other numerics."""
    changes = _set_fields(StemConfig, section)
    numerics = RESNET_NUMERICS.get(changes.get("version", ""), {})
    return dataclasses.replace(published, **{**numerics, **changes})


def _refuse_unused(kind: type, section: ConfigDict, *, has_resnet: bool) -> None:
    """Raises ConfigError if a key that a kind of model does not use is not at its default."""
    used = {field.name for field in dataclasses.fields(kind)} | {"variant", "resnet"}
    defaults = model_section()
    unused = {key: defaults[key] for key in defaults if key not in used}
    if not has_resnet:
        unused |= {f"resnet.{key}": default for key, default in defaults.resnet.items()}
    for key, default in unused.items():
        value = operator.attrgetter(key)(section)
        # Runs of release 0.1.0 recorded remat="none", then the default, for every kind of model.
        if value != default and (key, value) != ("remat", "none"):
            raise ConfigError(
                f"model.{key} is {value!r}, but {_KINDS[kind]} does not "
                f"use it: leave it at {default!r}."
            )


def _variant(model_config: ModelConfig) -> str:
    """Returns the variant of the model's sizes, else any of its kind and patch size."""
    if isinstance(model_config, StemConfig):
        return "BiT-R50x1"
    patch = model_config.patch_size[0]
    if isinstance(model_config, MixerConfig):
        return f"Mixer-B/{patch}"
    if model_config.stem is not None:
        names = [name for name, hybrid in HYBRIDS.items() if hybrid.patch == patch]
        if not names:
            raise ConfigError(f"No named hybrid has patches of {patch} points of its feature map.")
        return names[0]
    shape = Variant(
        model_config.width, model_config.depth, model_config.mlp_dim, model_config.num_heads
    )
    return f"{next((name for name, row in VARIANTS.items() if row == shape), 'S')}/{patch}"
