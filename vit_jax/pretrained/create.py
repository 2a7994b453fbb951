"""Models with parameters by name: fresh ones from the table of sizes, and published ones."""

import dataclasses
import difflib
import fnmatch
import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from vit_jax.config import base_config
from vit_jax.config.fields import Role, field_names
from vit_jax.data.recipes import evaluation
from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.models import ModelConfig, build, read_section
from vit_jax.models.variants import HYBRIDS, MIXERS, RESNETS, VARIANTS, family, is_variant
from vit_jax.parallel.rules import param_shardings
from vit_jax.pretrained.load import load_pretrained
from vit_jax.pretrained.model import Pretrained
from vit_jax.pretrained.preprocess import Preprocess
from vit_jax.pretrained.run_checkpoint import one_device

# Settings of a run that decide which parameters there are, or with which values they begin.
_LAYOUT = ("scan", "lora_rank", "lora_alpha", "head_bias_init")
_PATCHES = (8, 14, 16, 32)  # Usual patch sizes; any other is accepted, too.


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of model sizes that `create` builds with fresh parameters.

    Patches of any other size are accepted as well (B/7). Published checkpoints are not listed: any
    name on a hub can be loaded (`load_pretrained`).

    Args:
      pattern: only names that match it, such as "B/*" or "BiT-*"; [] if none does.

    Example:
      >>> list_models("R*")
      ['R+Ti/16', 'R26+S/32', 'R26+B/32', 'R50+B/16', 'R50+L/32']
    """
    names = [f"{size}/{patch}" for size in VARIANTS for patch in _PATCHES]
    names += [*HYBRIDS, *(f"BiT-R{depth}x1" for depth in RESNETS)]
    names += [f"{size}/{patch}" for size in MIXERS for patch in (16, 32)]
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


@functools.lru_cache(maxsize=8)  # To trace a model takes longer than to run its initialisation.
def _init_program(config: ModelConfig, mesh: Mesh) -> Callable[[jax.Array], PyTree]:
    """Returns the compiled initialisation of a model: a key -> parameters on the mesh."""
    model = build(config)

    def init(key: jax.Array) -> PyTree:
        return model.init(key, jnp.zeros((1, *config.image_size, config.channels)))["params"]

    layout = param_shardings(jax.eval_shape(init, jax.random.key(0)), mesh)
    return jax.jit(init, out_shardings=layout)


def _expressible(name: str) -> dict[str, str]:
    return {"posemb_resize": "bicubic"} if family(name) in ("vit", "hybrid") else {}


def _nearest_sizes(name: str) -> list[str]:
    """Returns up to four sizes whose names resemble a misspelt one, the nearest first."""
    sizes = list_models()
    near = difflib.get_close_matches(name, sizes, n=4, cutoff=0.7)
    same = [size for size in sizes if _letters(size) == _letters(name)]  # B16, b/16, vit-b/16.
    return list(dict.fromkeys((*same, *near)))[:4]


def _letters(name: str) -> str:
    return re.sub(r"\W|_|^vit", "", name.lower())


def _with_run_settings(loaded: Pretrained, fields: Mapping[str, Any], name: str) -> Pretrained:
    """Returns a loaded model with other fields of its config that leave its parameters alone."""
    accepted = [field for field in field_names(loaded.config, Role.RUN) if field not in _LAYOUT]
    for field in fields:
        if field not in accepted:
            raise ConfigError(
                f'"{field}" follows from the checkpoint {name}, or is no field of its model. '
                f'{did_you_mean(field, accepted)} A size such as "B/16" takes all fields; '
                "list_models() lists the sizes."
            )
    config = dataclasses.replace(loaded.config, **fields)
    return dataclasses.replace(loaded, model=build(config), config=config)


def create(
    name: str | os.PathLike,
    *,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    mesh: Mesh | None = None,
    **fields: Any,
) -> Pretrained:
    """Returns a model with its parameters: random ones for a size, or those of a checkpoint.

    Args:
      name: a size such as "B/16" (`list_models`), for random parameters; or whatever
        `load_pretrained` loads: a file, a folder, a work directory, a name on a hub.
      image_size: side, or (height, width), in pixels; None: 224, or that of the checkpoint.
      num_classes: outputs of the head; 0: no head; None: 1000, or those of the checkpoint.
      seed: of random parameters.
      mesh: as for `load_pretrained`.
      **fields: keys of the section `model` of a run's config (pool="gap", channels=1, ...). For the
        model of a checkpoint, those that leave its parameters as they are: dropout,
        attention_dropout, stochastic_depth, dtype, remat, ...

    Returns:
      The model, in the same layout of parameters whatever was loaded. A random model prepares
      images as transformers' ViT, resized and scaled to -1..1, and resizes positions as it
      does (bicubic), so that it can express the model. The kernel of its head is zeros, as usual
      before training: until then all classes have the same probability.

    Raises:
      CheckpointError: see `load_pretrained`.
      ConfigError: there is no such size or field, or the field follows from the checkpoint.

    Example:
      >>> model = create("mu/16", image_size=32, num_classes=10)
      >>> images = model.preprocess(np.zeros((40, 60, 3), np.uint8))
      >>> logits, intermediates = model(images)
      >>> logits.shape, intermediates["pre_logits"].shape
      ((1, 10), (1, 32))
    """
    name = os.fspath(name)
    if not is_variant(name):
        near = [] if os.path.exists(name) else _nearest_sizes(name)
        if near:
            others = f" Other sizes near it: {', '.join(near[1:])}." if near[1:] else ""
            raise ConfigError(
                f'"{name}" is no model size and no file. Did you mean "{near[0]}"?{others} '
                "list_models() lists all sizes."
            )
        loaded = load_pretrained(name, image_size=image_size, num_classes=num_classes, mesh=mesh)
        return _with_run_settings(loaded, fields, name) if fields else loaded
    section = base_config().model
    if unknown := fields.keys() - section.keys():
        (key, *_) = sorted(unknown)
        raise ConfigError(f'There is no field "{key}" of a model. {did_you_mean(key, section)}')
    sides = (224,) if image_size is None else image_size
    section.update(
        _expressible(name)
        | fields
        | {
            "variant": name,
            "image_size": tuple(sides) if isinstance(sides, list | tuple) else (sides,),
        }
    )
    config = read_section(section, num_classes=1000 if num_classes is None else num_classes)
    mesh = one_device() if mesh is None else mesh
    with jax.set_mesh(mesh):
        params = _init_program(config, mesh)(jax.random.key(seed))
    return Pretrained(
        model=build(config),
        params=params,
        config=config,
        preprocess=Preprocess(evaluation("hf_vit"), config.image_size, config.channels),
        labels=None,
        format=f"random parameters of seed {seed}",
        published=config,
        left_out=(),
        notes=(),
    )
