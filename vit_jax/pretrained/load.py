"""Loads any published checkpoint as a vit_jax model with its parameters.

    pretrained = load_pretrained("vit-base-patch16-224")  # A folder, a file, hf:NAME, gs://...
    images = pretrained.preprocess(["cat.jpg"])
    logits, intermediates = pretrained(images)

The format is recognised from the contents. Every tensor of the file is used, known to be of no use,
or left out by the caller. Any other tensor, and any parameter without a source, is an error that
lists both.
"""

import dataclasses
import os
from collections.abc import Collection, Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from vit_jax.checkpoints.load import load_run
from vit_jax.data.recipes import Transforms
from vit_jax.errors import ConfigError
from vit_jax.models import MixerConfig, ModelConfig, VitConfig, build
from vit_jax.models.section import image_size as as_size
from vit_jax.pretrained.adaptation import NEW_HEAD, adapt_params
from vit_jax.pretrained.mapping import map_checkpoint
from vit_jax.pretrained.model import Pretrained, size_text
from vit_jax.pretrained.preprocess import Preprocess, output_size
from vit_jax.pretrained.reader import read
from vit_jax.pretrained.run_checkpoint import TrainingData, is_run, one_device, refuse_hints

RUN_FORMAT = "vit_jax work directory"  # Of a `Pretrained` from a run.


def load_pretrained(
    path: str | os.PathLike,
    *,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    hints: Mapping[str, Any] | None = None,
    resize: str | None = None,
    leave_out: Collection[str] = (),
    mesh: Mesh | None = None,
) -> Pretrained:
    """Loads a checkpoint of any known format.

    Args:
      path: a file, a folder, or a name on a hub: see `vit_jax.pretrained.hub.resolve`.
      image_size: side, or (height, width), in pixels; position embeddings are resized with the
        publisher's kernel. None: the size that its preprocessing makes, see `evaluated_size`.
      patch_size: side, or (height, width), in pixels; the patch embedding is resized as in FlexiViT
        (arXiv 2212.08013).
      num_classes: another number of classes gets a new head of zeros; 0: no head.
      hints: fields that the file does not state: `num_heads`, `image_size` (as it was trained),
        `ln_eps`, `gelu`, `mlp`, `pool`, `posemb`, `posemb_resize`, `rope`, `rope_theta`,
        `rope_grid` with the values of `vit_jax.models.VitConfig`, and `preprocessing`, a family of
        `vit_jax.pretrained.preprocess`. A hint that contradicts the file is an error.
      resize: another kernel for position embeddings: a key of `vit_jax.models.resize.KERNELS`.
      leave_out: regular expressions of whole names: tensors that match are not read, parameters
        that match get initial values.
      mesh: shards the parameters on this mesh by `vit_jax.parallel.rules`; its axes are data, fsdp
        and tensor (see `vit_jax.parallel.mesh.make_mesh`). None: one device.

    Raises:
      CheckpointError: the file is damaged or of no known format, or a tensor or parameter is
        unaccounted for.
      ConfigError: a hint, size or kernel is invalid, a hint has no effect, or the mesh has other
        axes.

    Example:
      >>> pretrained = load_pretrained("tiny-vit", image_size=64, num_classes=3)
      >>> logits, _ = pretrained(pretrained.preprocess(np.zeros((40, 60, 3), np.uint8)))
      >>> logits.shape
      (1, 3)
    """
    changes = {
        "image_size": None if image_size is None else _pair(image_size, name="image_size"),
        "patch_size": None if patch_size is None else _pair(patch_size, name="patch_size"),
        "num_classes": num_classes,
        "posemb_resize": resize,
    }
    size_notes: tuple[str, ...] = ()
    mesh = one_device() if mesh is None else mesh
    if is_run(path):
        refuse_hints(path, hints, leave_out)
        return _load_workdir(path, changes, mesh)
    mapping = map_checkpoint(path, hints=hints, leave_out=leave_out)
    published = mapping.description.config
    if changes["image_size"] is None:
        transforms = mapping.description.transforms
        changes["image_size"], size_notes = evaluated_size(published, transforms)
    config = adapted(published, changes)
    params, notes = read(mapping, config, mesh)
    return Pretrained(
        model=build(config),
        params=params,
        config=config,
        preprocess=published_preprocess(mapping.description.transforms, published).for_size(
            config.image_size
        ),
        labels=_labels(mapping.description.labels, published, config),
        format=mapping.format.name,
        published=published,
        left_out=mapping.left_out,
        notes=(
            *mapping.description.all_notes,
            *size_notes,
            *(note for note in notes if note != NEW_HEAD),
        ),
        loss=mapping.loss,
        loaded_from=os.fspath(path),
    )


def _load_workdir(path: str | os.PathLike, changes: Mapping[str, Any], mesh: Mesh) -> Pretrained:
    with jax.set_mesh(mesh):
        run = load_run(path, mesh=mesh)
        published = run.model_config
        # Exports and predictions use kernels with the low-rank adapters merged into them.
        merged = {"lora_rank": 0} if isinstance(published, VitConfig) else {}
        config = adapted(published, {**changes, **merged})
        params = adapt_params(run.params, old=published, new=config, mesh=mesh)
    return Pretrained(
        model=build(config),
        params=params,
        config=config,
        preprocess=run_preprocess(run.config, published).for_size(config.image_size),
        labels=_labels(tuple(run.dataset["class_names"]), published, config),
        format=RUN_FORMAT,
        published=published,
        left_out=(),
        notes=(),
        loss=run.config.loss.name,
        loaded_from=f"{os.fspath(path)} at step {run.step:,}",
        trained_on=TrainingData(run.config, run.dataset),
    )


def published_preprocess(transforms: Transforms, published: ModelConfig) -> Preprocess:
    """Returns the preprocessing of a published checkpoint, for the image size that it makes.

    Args:
      transforms: the publisher's; decode has the channels of the model unless it states them.
      published: the checkpoint's model.
    """
    decode, *others = map(dict, transforms)
    transforms = ({"channels": published.channels, **decode}, *others)
    size = output_size(transforms) or published.image_size
    return Preprocess(transforms, size, published.channels)


def run_preprocess(config: FrozenConfigDict, model_config: ModelConfig) -> Preprocess:
    """Returns the preprocessing with which a run evaluates its model.

    Args:
      config: of the run; in its transforms, decode has 3 channels unless it states them.
      model_config: the run's model.
    """
    decode, *others = map(dict, config.data.eval_transforms)
    return published_preprocess(({"channels": 3, **decode}, *others), model_config)


def evaluated_size(
    published: ModelConfig, transforms: Transforms
) -> tuple[tuple[int, int] | None, tuple[str, ...]]:
    """Returns the image size that a checkpoint's preprocessing makes, and notes about it.

    For example, DINOv2 has positions for 518 pixels and is evaluated at 224. The size is None if it
    is the published model's own, or if the model cannot take it.
    """
    size = output_size(transforms)
    if not isinstance(published, VitConfig) or size in (None, published.image_size):
        return None, ()
    stored = size_text(published.image_size)
    height, width = published.image_size
    argument = str(height) if height == width else stored
    if any(side % stride for side, stride in zip(size, published.stride, strict=True)):
        return None, (
            f"its preprocessing makes images of {size_text(size)} pixels, which its patches do "
            f"not divide: they are scaled to {stored}",
        )
    return size, (
        f"image size {size_text(size)}, which its preprocessing makes; it is stored for {stored} "
        f"(image_size={argument} loads that)",
    )


def _labels(labels: tuple[str, ...] | None, published: ModelConfig, config: ModelConfig):
    return labels if config.num_classes == published.num_classes else None


def adapted(published: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
    """Returns a checkpoint's config with changed fields; None keeps a field.

    Raises:
      ConfigError: a model of this kind lacks the field, or cannot change it, or the value is
        invalid.
    """
    changes = {field: value for field, value in changes.items() if value is not None}
    kind = type(published).__name__.removesuffix("Config")
    fields = {field.name for field in dataclasses.fields(published)}
    for field in changes:
        if field not in fields:
            raise ConfigError(f"A {kind} has no {field} to be changed: leave it out.")
    for field in ("image_size", "patch_size") if isinstance(published, MixerConfig) else ():
        trained = getattr(published, field)
        if changes.get(field, trained) != trained:
            raise ConfigError(
                f"A Mixer takes only the {field} that it was trained with, {size_text(trained)}: "
                "the shapes of its weights depend on the number of patches."
            )
    if type(changes.get("num_classes", 0)) is not int:
        raise ConfigError(f"num_classes is {changes['num_classes']!r}: write a whole number.")
    return dataclasses.replace(published, **changes)


def _pair(size: int | tuple[int, int], *, name: str) -> tuple[int, int]:
    return as_size(tuple(size) if isinstance(size, list | tuple) else (size,), name)
