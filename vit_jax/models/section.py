"""The section `model` of a run's config as a model's config, and the inverse."""

import dataclasses
import typing
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax.config.fields import Declaration, declarations
from vit_jax.config.model import (
    NUMERICS,
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
    """The model of a run's config: what its variant was published with, and the keys that are set.

    Args:
      section: `config.model` of `vit_jax.config.base_config`. None stands for what the variant was
        published with.
      num_classes: of the data set; `model.num_classes` goes before it.

    Raises:
      ConfigError: there is no such variant, a value is not accepted, or it is of a key that this
        kind of model has no use for.
    """
    row, patch = parse_variant(section.variant)
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
    _refuse_useless(kind, section, has_body="units" in published or bool(published.get("stem")))
    fields = published | {"num_classes": num_classes} | _set(kind, section)
    if fields.get("rep_size") == -1:
        fields["rep_size"] = fields["width"]
    return kind(**fields)


def image_size(size: tuple[Any, ...], name: str = "model.image_size") -> tuple[int, int]:
    """(side,) or (height, width) as (height, width); `name` is for the error.

    Raises:
      ConfigError: it is neither.
    """
    if len(size) not in (1, 2) or not all(type(side) is int and side > 0 for side in size):
        raise ConfigError(f"{name} is {size}: write (side,) or (height, width), whole pixels.")
    return size[0], size[-1]


def write_section(model_config: ModelConfig, section: ConfigDict) -> None:
    """Sets every key of `config.model` so that `read_section` gives this model.

    Args:
      model_config: the model.
      section: `config.model` of `vit_jax.config.base_config`; what it had is overwritten.

    Raises:
      ConfigError: no config can say it: patches that are not square, say.
    """
    section.variant = _variant(model_config)
    stem = getattr(model_config, "stem", None)
    for config in (model_config, *((stem,) if stem else ())):
        for field, declared in declarations(config):
            if declared.section is not None:
                _part(section, declared)[field.name] = getattr(config, field.name)
    result = read_section(section, num_classes=model_config.num_classes)
    for field in dataclasses.fields(model_config):
        value = getattr(model_config, field.name)
        if getattr(result, field.name) != value:
            raise ConfigError(f"A run's config cannot say that {field.name} is {value}.")


def _part(section: ConfigDict, declared: Declaration) -> ConfigDict:
    return section[declared.section] if declared.section else section


def _set(kind: type, section: ConfigDict) -> dict[str, Any]:
    """What a section sets of a kind of model, in the types of its fields."""
    types, fields = typing.get_type_hints(kind), {}
    for field, declared in declarations(kind):
        value = None if declared.section is None else _part(section, declared)[field.name]
        if value is None:
            continue
        if field.name == "image_size":
            value = image_size(value)
        elif typing.get_origin(types[field.name]) is tuple:
            key = f"model.{declared.section and declared.section + '.'}{field.name}"
            value = _numbers(value, key, typing.get_args(types[field.name]))
        fields[field.name] = value
    return fields


def _numbers(value: tuple[Any, ...], key: str, types: tuple[Any, ...]) -> tuple[Any, ...]:
    """A tuple of a config as one of a field's type: (int, int) or (float, ...), say."""
    number, count = types[0], None if types[-1] is Ellipsis else len(types)
    if not all(type(item) in (int, number) for item in value) or count not in (None, len(value)):
        many = "" if count is None else f"{count} "
        what = "whole numbers" if number is int else "numbers"
        raise ConfigError(f"{key} is {value}: write a tuple of {many}{what}.")
    return tuple(number(item) for item in value)


def _stem(published: StemConfig, section: ConfigDict) -> StemConfig:
    """A ResNet's body, with what `model.resnet` changes; another version has its own numerics."""
    changes = _set(StemConfig, section)
    numerics = NUMERICS.get(changes.get("version", ""), {})
    return dataclasses.replace(published, **{**numerics, **changes})


def _refuse_useless(kind: type, section: ConfigDict, *, has_body: bool) -> None:
    """Raises ConfigError if a key that a kind of model has no use for is not at its default."""
    known = {field.name for field in dataclasses.fields(kind)} | {"variant", "resnet"}
    defaults = model_section()
    useless = {(key,): defaults[key] for key in defaults if key not in known}
    if not has_body:
        useless |= {("resnet", key): default for key, default in defaults.resnet.items()}
    for (*folder, key), default in useless.items():
        value = (section[folder[0]] if folder else section)[key]
        if value != default:
            raise ConfigError(
                f"model.{'.'.join((*folder, key))} is {value!r}, but {_KINDS[kind]} has no use for "
                f"it: leave it at {default!r}."
            )


def _variant(model_config: ModelConfig) -> str:
    """A name of the model's kind and patch size, of its own size if there is one."""
    if isinstance(model_config, StemConfig):
        return "BiT-R50x1"
    patch = model_config.patch_size[0]
    if isinstance(model_config, MixerConfig):
        return f"Mixer-B/{patch}"
    if model_config.stem is not None:
        names = [name for name, hybrid in HYBRIDS.items() if hybrid.patch == patch]
        if not names:
            raise ConfigError(f"No hybrid has patches of {patch} points of its feature map.")
        return names[0]
    shape = Variant(
        model_config.width, model_config.depth, model_config.mlp_dim, model_config.num_heads
    )
    return f"{next((name for name, row in VARIANTS.items() if row == shape), 'S')}/{patch}"
