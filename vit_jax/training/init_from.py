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
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.models import MixerConfig, ModelConfig, VitConfig, lora, parse_variant
from vit_jax.models.resnet import StemConfig
from vit_jax.models.section import write_section
from vit_jax.models.variants import HybridVariant
from vit_jax.pretrained.adaptation import adapt_params
from vit_jax.pretrained.mapping import make_plan
from vit_jax.pretrained.pixels import compare_pixels
from vit_jax.pretrained.reader import read
from vit_jax.pretrained.run_checkpoint import describe_own, is_own, refuse_hints
from vit_jax.rundir import workdir as workdirs
from vit_jax.storage import as_path

# A model's sizes: what a variant's name stands for, in the names of `config.model`.
_SIZES = ("width", "depth", "mlp_dim", "num_heads", "token_mlp_dim")
_STEM_SIZES = ("units", "width_factor")


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
    if is_own(path):
        refuse_hints(path, config.init_hints)
        location, _, published = describe_own(path)
        params = load_params(location, mesh=mesh)
        params = adapt_params(params, old=published, new=_sized(published, model_config), mesh=mesh)
    else:
        plan = make_plan(path, hints=dict(config.init_hints))
        params, notes = read(plan, _sized(plan.description.config, model_config), mesh)
        for note in (*plan.description.all_notes, *notes):
            logging.info("%s: %s", path, note)
    adapters = (lora.PATTERN,) if getattr(model_config, "lora_rank", 0) else ()
    return merge_params(fresh, params, skip=(*config.init_skip, *adapters), source=path)


def _sized(published: ModelConfig, model_config: ModelConfig) -> ModelConfig:
    """A checkpoint's model, of the run's image size and layout of blocks."""
    fields = {"scan": getattr(model_config, "scan", True)}
    if isinstance(published, VitConfig):
        fields |= {
            "image_size": model_config.image_size,
            "posemb_resize": model_config.posemb_resize,
        }
        fields["lora_rank"] = 0  # A run's adapters are its own.
    known = {field.name for field in dataclasses.fields(published)}
    return dataclasses.replace(published, **{k: v for k, v in fields.items() if k in known})


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
    if is_own(path):
        refuse_hints(path, config.init_hints)
        _, run, published = describe_own(path)
        transforms = run.data.eval_transforms
    else:
        description = make_plan(path, hints=dict(config.init_hints)).description
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
    named, found = _named_sizes(model.variant), _sizes(published)
    for section in (model, model.resnet):
        for key in [key for key in named if section.get(key) is not None]:
            named.pop(key)
            found.pop(key, None)
    if named != found:
        raise ConfigError(
            f'model.variant is "{model.variant}": {_shown(named)}; {path} has '
            f'{_shown(found)}. Set model.variant to "" to take what the checkpoint is.'
        )


def _named_sizes(variant: str) -> dict[str, Any]:
    row, patch = parse_variant(variant)
    if isinstance(row, StemConfig):
        return _of(row, _STEM_SIZES)
    if isinstance(row, HybridVariant):
        return _of(row.vit, _SIZES) | _of(row.stem, _STEM_SIZES) | {"patch": (row.patch,) * 2}
    return _of(row, _SIZES) | {"patch": (patch, patch)}


def _sizes(model_config: ModelConfig) -> dict[str, Any]:
    if not isinstance(model_config, VitConfig | MixerConfig):
        return _of(model_config, _STEM_SIZES)
    stem = model_config.stem if isinstance(model_config, VitConfig) else None
    return (
        _of(model_config, _SIZES)
        | (_of(stem, _STEM_SIZES) if stem else {})
        | {"patch": model_config.patch_size}
    )


def _of(value: Any, fields: tuple[str, ...]) -> dict[str, Any]:
    return {field: getattr(value, field) for field in fields if hasattr(value, field)}


def _shown(sizes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sizes.items())
