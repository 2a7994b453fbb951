"""What a run takes from the checkpoint of `config.init_from`: what the model is, and parameters.

The checkpoint is a work directory of ours or anything that `load_pretrained` reads. A key of
`config.model` that is None is the checkpoint's; one that is set goes before it, and what then does
not fit is an error with both sides. The resolved model is what a run's config.json holds, so that
nothing needs the checkpoint any more once the run has saved.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax.checkpoints.load import load_params, locate, merge_params
from vit_jax.config import base_config, freeze
from vit_jax.config.fields import Kind, names_of
from vit_jax.config.model import KINDS
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.models import ModelConfig, VitConfig, lora, parse_variant
from vit_jax.models.section import write_section
from vit_jax.models.variants import HybridVariant
from vit_jax.pretrained.adaptation import adapt_params
from vit_jax.pretrained.mapping import map_checkpoint
from vit_jax.pretrained.pixels import compare_pixels
from vit_jax.pretrained.reader import read
from vit_jax.pretrained.run_checkpoint import describe_run, is_run, refuse_hints
from vit_jax.rundir import workdir as workdirs
from vit_jax.storage import as_path


def inherit_model(config: FrozenConfigDict, workdir: epath.PathLike) -> FrozenConfigDict:
    """The config with every key of `model` set that the checkpoint of `init_from` decides.

    A run that goes on, in its work directory or from `config.resume`, has the model that it began
    with: the checkpoint of `init_from` need not be there any more.

    Args:
      config: of the run; without `init_from` it is returned as it is.
      workdir: of the run; need not be there.

    Raises:
      CheckpointError: there is no such checkpoint, or it is of no known format.
      ConfigError: the variant is of other sizes than the checkpoint, or no config can say what it
        is; or there is neither a variant nor a checkpoint.
    """
    if not config.init_from:
        if not config.model.variant:
            raise ConfigError(
                'model.variant is "", which stands for that of the checkpoint to start from: give '
                "that as init_from, or name a variant, such as S/16."
            )
        return config
    resolved = ConfigDict(config.as_configdict())
    earlier = _begun(config, workdir)
    _fill(resolved.model, _published_section(config) if earlier is None else earlier.model)
    return freeze(resolved)


def inherit_params(
    config: FrozenConfigDict, model_config: ModelConfig, fresh: PyTree, *, mesh: Mesh
) -> PyTree:
    """The parameters to start from: the checkpoint's, and initial ones where `init_skip` says.

    Position embeddings are resized to the model's image size, blocks stacked or not as its `scan`
    says; each device gets its shards alone.

    Args:
      config: of the run, with `init_from`.
      model_config: of its model.
      fresh: the model's initial parameters, on the mesh.
      mesh: that the result lies on, by our rules.

    Raises:
      CheckpointError: there is no such checkpoint, or beyond what is skipped it has other
        parameters than the model.
      ConfigError: a pattern of `init_skip` matches no parameter.
    """
    path = config.init_from
    if is_run(path):
        refuse_hints(path, config.init_hints)
        location, _, published = describe_run(path)
        params = load_params(location, mesh=mesh)
        params = adapt_params(
            params, old=published, new=_as_run(published, model_config), mesh=mesh
        )
    else:
        mapping = map_checkpoint(path, hints=dict(config.init_hints))
        params, notes = read(mapping, _as_run(mapping.description.config, model_config), mesh)
        for note in (*mapping.description.all_notes, *notes):
            logging.info("%s: %s", path, note)
    adapters = (lora.PATTERN,) if getattr(model_config, "lora_rank", 0) else ()
    return merge_params(fresh, params, skip=(*config.init_skip, *adapters), source=path)


def _as_run(published: ModelConfig, model_config: ModelConfig) -> ModelConfig:
    """A checkpoint's model of the run's image size, computed as the run computes it."""
    free = {*names_of(published, Kind.RUN)} & {*names_of(model_config, Kind.RUN)}
    if isinstance(published, VitConfig):
        free |= {"image_size", "posemb_resize"}
    fields = {name: getattr(model_config, name) for name in free}
    if "lora_rank" in fields:
        fields["lora_rank"] = 0  # A run's adapters are its own.
    return dataclasses.replace(published, **fields)


def _begun(config: FrozenConfigDict, workdir: epath.PathLike) -> FrozenConfigDict | None:
    """The config of the run that this one goes on from, if it does and that can be read."""
    try:
        if workdirs.has_checkpoints(workdir):
            return workdirs.read_config(workdir)
    except CheckpointError:  # Which `check_claim` will say, with what to do.
        return None
    if config.resume:
        return workdirs.read_config(locate(as_path(config.resume, name="config.resume")).workdir)
    return None


def _published_section(config: FrozenConfigDict) -> ConfigDict:
    """The checkpoint's model as a section `model`; how many classes it had does not matter."""
    path = config.init_from
    if is_run(path):
        refuse_hints(path, config.init_hints)
        _, run, published = describe_run(path)
        transforms = run.data.eval_transforms
    else:
        description = map_checkpoint(path, hints=dict(config.init_hints)).description
        published, transforms = description.config, description.transforms
    if config.model.variant:
        _check_sizes(config.model, published, path)
    compare_pixels(config, transforms)
    section = base_config().model
    write_section(published, section)
    section.num_classes = None
    return section


def _fill(section: ConfigDict, other: ConfigDict | FrozenConfigDict) -> None:
    """Sets what a section leaves open as another one of the same keys has it."""
    for key, value in other.items():
        if isinstance(section[key], ConfigDict):
            _fill(section[key], value)
        elif section[key] in (None, ""):
            section[key] = value


def _check_sizes(model: FrozenConfigDict, published: ModelConfig, path: str) -> None:
    """Raises ConfigError if the variant's row, where no key goes before it, is another model's."""
    row, patch = parse_variant(model.variant)
    patch = row.patch if isinstance(row, HybridVariant) else patch
    named = {
        name: size
        for name, size in (_sizes(row) | {"patch_size": (patch, patch)}).items()
        if model.get(name) is None and model.resnet.get(name) is None
    }
    actual = {name: size for name, size in _sizes(published).items() if name in named}
    named = {name: size for name, size in named.items() if name != "patch_size" or name in actual}
    if named != actual:
        raise ConfigError(
            f'model.variant is "{model.variant}": {_shown(named)}; {path} has '
            f'{_shown(actual)}. Set model.variant to "" to take what the checkpoint is.'
        )


def _sizes(model: Any) -> dict[str, Any]:
    """The sizes of a variant's row, or of a model, and of its ResNet: what a name stands for."""
    parts = (model, getattr(model, "vit", None), getattr(model, "stem", None))
    names = [name for kind in KINDS for name in names_of(kind, Kind.SIZE)]
    return {
        name: getattr(part, name)
        for part in parts
        for name in names
        if hasattr(part, name) and name not in ("image_size", "channels", "num_classes")
    }


def _shown(sizes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sizes.items())
