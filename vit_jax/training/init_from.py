"""Takes model, preprocessing and parameters from the checkpoint `config.init_from`.

The checkpoint is one of our work directories or anything that `load_pretrained` reads. A key of
`config.model` that is None takes the checkpoint's value; a key that is set overrides it. If a set
size contradicts the checkpoint, the error shows both values. Transforms inherit by
`vit_jax.data.inherit`. A run's config.json holds the resolved model and transforms, so the
checkpoint is no longer needed once the run has saved.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax.checkpoints.load import load_params, locate, merge_params
from vit_jax.config import base_config, freeze, thaw
from vit_jax.config.fields import Role, field_names
from vit_jax.config.model import MODEL_CONFIGS, StemConfig
from vit_jax.data import inherit
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.models import ModelConfig, VitConfig, lora, parse_variant
from vit_jax.models.section import image_size, write_section
from vit_jax.models.variants import HybridVariant
from vit_jax.parallel.rules import named_leaves
from vit_jax.pretrained.adaptation import adapt_params
from vit_jax.pretrained.load import evaluated_size, published_preprocess, run_preprocess
from vit_jax.pretrained.mapping import map_checkpoint
from vit_jax.pretrained.pixels import compare_pixels
from vit_jax.pretrained.preprocess import Preprocess
from vit_jax.pretrained.reader import read
from vit_jax.pretrained.run_checkpoint import describe_run, is_run, refuse_hints
from vit_jax.rundir import workdir as workdirs
from vit_jax.storage import as_path
from vit_jax.telemetry.progress import format_count

_TRANSFORMS = ("train_transforms", "eval_transforms")


def inherit_model(config: FrozenConfigDict, workdir: epath.PathLike) -> FrozenConfigDict:
    """Returns the config with model and transforms completed from the checkpoint of `init_from`.

    A run that is resumed, in its work directory or from `config.resume`, keeps the model and the
    transforms that it began with: the checkpoint of `init_from` need not exist any more.

    Args:
      config: returned unchanged if it has no `init_from`.
      workdir: the work directory of the run; need not exist.

    Raises:
      CheckpointError: there is no such checkpoint, or its format is unknown.
      ConfigError: the variant has other sizes than the checkpoint, or no config can express the
        checkpoint's model; or something is to be inherited, and there is no checkpoint.
    """
    if not config.init_from:
        _check_inherits_nothing(config)
        return config
    resolved = thaw(config)
    earlier = _config_of_resumed_run(config, workdir)
    if earlier is not None:
        _fill_unset(resolved.model, earlier.model)
        _check_same_size(config, resolved.model, earlier.model, workdir)
        for key in _TRANSFORMS:
            resolved.data[key] = inherit.keep(config.data[key], earlier.data[key])
        return freeze(resolved)
    section, preprocess = _published(config)
    _fill_unset(resolved.model, section)
    transforms = preprocess.for_size(image_size(resolved.model.image_size)).transforms
    for key in _TRANSFORMS:
        resolved.data[key] = inherit.resolve(config.data[key], transforms, key=f"data.{key}")
    resolved = freeze(resolved)
    compare_pixels(resolved, transforms)
    return resolved


def _check_same_size(
    config: FrozenConfigDict,
    section: ConfigDict,
    earlier: FrozenConfigDict,
    workdir: epath.PathLike,
) -> None:
    """Raises ConfigError if inherited transforms of a run would be kept for another image size."""
    then, now = tuple(earlier.image_size), tuple(section.image_size)
    if then != now and any(inherit.inherits(config.data[key]) for key in _TRANSFORMS):
        raise ConfigError(
            f"{config.resume or workdir} holds a run with another config:\n"
            f"model.image_size: {list(then)} -> {list(now)}\n"
            "The transforms that it inherited are for the former. Choose another --workdir."
        )


def _check_inherits_nothing(config: FrozenConfigDict) -> None:
    """Raises ConfigError if a config without `init_from` takes something from it."""
    wanted = [f"data.{key}" for key in _TRANSFORMS if inherit.inherits(config.data[key])]
    if not config.model.variant:
        wanted.insert(0, 'model.variant=""')
    if wanted:
        raise ConfigError(
            f"The config takes from a checkpoint what it does not state ({', '.join(wanted)}), but "
            "init_from is empty: pass --config.init_from=CHECKPOINT, such as one of your work "
            "directories or hf:google/vit-base-patch16-224; or set these keys, such as "
            "model.variant=S/16."
        )


def inherit_params(
    config: FrozenConfigDict, model_config: ModelConfig, fresh: PyTree, *, mesh: Mesh
) -> tuple[PyTree, str]:
    """Returns the checkpoint's parameters, with fresh ones where `init_skip` matches.

    With them it returns a line for the user: what was taken, what was resized, and what is new.

    Position embeddings are resized to the model's image size; blocks are stacked or unstacked
    according to its `scan`. Each device receives only its own shards.

    Args:
      config: a config with `init_from`.
      model_config: the config of the run's model.
      fresh: the model's initial parameters, on the mesh.
      mesh: the mesh of the result, which is laid out by `vit_jax.parallel.rules`.

    Raises:
      CheckpointError: there is no such checkpoint, or its parameters that are not skipped differ
        from the model's.
      ConfigError: a pattern of `init_skip` matches no parameter.
    """
    path = config.init_from
    if is_run(path):
        refuse_hints(path, config.init_hints)
        location, _, published = describe_run(path)
        params = load_params(location, mesh=mesh)
        params = adapt_params(
            params, old=published, new=_with_run_settings(published, model_config), mesh=mesh
        )
    else:
        mapping = map_checkpoint(path, hints=dict(config.init_hints))
        published = mapping.description.config
        params, notes = read(mapping, _with_run_settings(published, model_config), mesh)
        for note in (*mapping.description.all_notes, *notes):
            logging.info("%s: %s", path, note)
    adapters = (lora.PATTERN,) if getattr(model_config, "lora_rank", 0) else ()
    skip = (*config.init_skip, *adapters)
    merged = merge_params(fresh, params, skip=skip, source=path)
    return merged, _describe(path, skip, published, model_config, merged)


def _describe(
    path: str,
    skip: Sequence[str],
    published: ModelConfig,
    model_config: ModelConfig,
    params: PyTree,
) -> str:
    """Returns what a model has from the checkpoint, and what of it was resized or is new."""
    sizes = {name: leaf.size for name, leaf in named_leaves(params).items()}
    new = {name for name in sizes if any(re.fullmatch(pattern, name) for pattern in skip)}
    taken = sum(size for name, size in sizes.items() if name not in new)
    parts = [f"{path}: {taken:,} of {sum(sizes.values()):,} parameters taken"]
    if (
        isinstance(published, VitConfig)
        and isinstance(model_config, VitConfig)
        and published.grid != model_config.grid
        and "pos_embedding" in sizes.keys() - new
    ):
        old_grid, grid = ("x".join(map(str, cfg.grid)) for cfg in (published, model_config))
        parts.append(f"position embedding resized from {old_grid} to {grid} patches")
    named = {"low-rank adapters" if "_lora/" in name else name.partition("/")[0] for name in new}
    if "head" in named:
        named.remove("head")
        before = f" in place of {published.num_classes:,}" if published.num_classes else ""
        classes = format_count(model_config.num_classes, "class")
        parts.append(f"new head for {classes}{before}")
    if named:
        parts.append(f"new: {', '.join(sorted(named))}")
    return "; ".join(parts)


def _with_run_settings(published: ModelConfig, model_config: ModelConfig) -> ModelConfig:
    """Returns the checkpoint's model with the run's image size and its settings of computation."""
    names = {*field_names(published, Role.RUN)} & {*field_names(model_config, Role.RUN)}
    if isinstance(published, VitConfig):
        names |= {"image_size", "posemb_resize"}
    fields = {name: getattr(model_config, name) for name in names}
    if "lora_rank" in fields:
        fields["lora_rank"] = 0  # Adapters of the run are not in the checkpoint.
    return dataclasses.replace(published, **fields)


def _config_of_resumed_run(
    config: FrozenConfigDict, workdir: epath.PathLike
) -> FrozenConfigDict | None:
    """Returns the config of the run that is resumed; None if there is none, or it is unreadable."""
    try:
        if workdirs.has_checkpoints(workdir):
            return workdirs.read_config(workdir)
    except CheckpointError:  # `check_claim` will raise it, with advice.
        return None
    if config.resume:
        return workdirs.read_config(locate(as_path(config.resume, name="config.resume")).workdir)
    return None


def _published(config: FrozenConfigDict) -> tuple[ConfigDict, Preprocess]:
    """Returns the checkpoint's model, as a section without classes, and its preprocessing.

    The image size is that of its preprocessing: 224 for DINOv2, whose positions are for 518 pixels.
    """
    path = config.init_from
    if is_run(path):
        refuse_hints(path, config.init_hints)
        _, run, published = describe_run(path)
        preprocess, size = run_preprocess(run, published), None
    else:
        description = map_checkpoint(path, hints=dict(config.init_hints)).description
        published = description.config
        preprocess = published_preprocess(description.transforms, published)
        size, notes = evaluated_size(published, description.transforms)
        for note in notes:
            logging.info("%s: %s", path, note)
    if config.model.variant:
        _check_sizes(config.model, published, path)
    section = base_config().model
    write_section(published, section)
    section.num_classes = None
    section.image_size = size or published.image_size
    return section, preprocess


def _fill_unset(section: ConfigDict, other: ConfigDict | FrozenConfigDict) -> None:
    """Fills the unset keys of a section with the values of another one."""
    for key, value in other.items():
        inner = section[key]
        if isinstance(inner, ConfigDict):
            assert isinstance(value, ConfigDict | FrozenConfigDict)  # Of the same schema.
            _fill_unset(inner, value)
        elif inner in (None, ""):
            section[key] = value


def _check_sizes(model: FrozenConfigDict, published: ModelConfig, path: str) -> None:
    """Raises ConfigError if a size of the variant, not overridden by a key, differs."""
    row, patch = parse_variant(model.variant)
    named, actual = _sizes(row), _sizes(published)
    if not isinstance(row, StemConfig):
        named["patch_size"] = (row.patch,) * 2 if isinstance(row, HybridVariant) else (patch, patch)
    for section in (model, model.resnet):
        for name in [name for name in named if section.get(name) is not None]:
            named.pop(name)
            actual.pop(name, None)
    if named != actual:
        raise ConfigError(
            f'model.variant is "{model.variant}": {_format_sizes(named)}; {path} has '
            f'{_format_sizes(actual)}. Set model.variant to "" to take the checkpoint\'s sizes.'
        )


def _sizes(model: Any) -> dict[str, Any]:
    """Returns the sizes that a variant's name fixes, including those of its ResNet."""
    parts = (model, getattr(model, "vit", None), getattr(model, "stem", None))
    names = [name for kind in MODEL_CONFIGS for name in field_names(kind, Role.SIZE)]
    return {
        name: getattr(part, name)
        for part in parts
        for name in names
        if hasattr(part, name) and name not in ("image_size", "channels", "num_classes")
    }


def _format_sizes(sizes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sizes.items())
