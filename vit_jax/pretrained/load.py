"""Any published checkpoint, as a model of ours with its parameters.

    pretrained = load_pretrained("vit-base-patch16-224")  # A folder, a file, hf:NAME, gs://...
    images = pretrained.preprocess(["cat.jpg"])
    logits, intermediates = pretrained.model.apply({"params": pretrained.params}, images)

The format is recognised from the contents. Every tensor of the file is used, or is known to be of
no use, or was named by the caller to be left out; anything else is an error with both sides.
"""

import dataclasses
import os
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from vit_jax.checkpoints.load import load_run
from vit_jax.data.recipes import Transforms
from vit_jax.errors import ConfigError
from vit_jax.models import MixerConfig, ModelConfig, VitConfig, build
from vit_jax.models.section import image_size as as_size
from vit_jax.pretrained.adaptation import adapt_params
from vit_jax.pretrained.mapping import map_checkpoint
from vit_jax.pretrained.preprocess import Preprocess, output_size
from vit_jax.pretrained.reader import read
from vit_jax.pretrained.run_checkpoint import is_own, one_device, refuse_hints


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A published model.

    Attributes:
      model: its `apply({"params": params}, images)` gives `(logits, intermediates)`.
      params: float32, blocks stacked.
      config: architecture and numerics.
      preprocess: images -> float32 [b, height, width, channels], as its publisher evaluates.
      labels: names of its classes, or None.
      format: that the checkpoint was in.
      published: the config as the checkpoint has it, before it was brought to another size or head.
      left_out: names of tensors that the model has no use for.
      notes: what was assumed of it where the file does not tell, and what was done to it: resized,
        initialised again.
      loss: that its head was trained with, which decides what its probabilities are: softmax_xent,
        sigmoid_xent, or "" where its outputs are not of classes (a regression).
    """

    model: nn.Module
    params: PyTree
    config: ModelConfig
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    format: str
    published: ModelConfig
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    loss: str = "softmax_xent"


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
      path: a file, a folder, a name on a hub: see `vit_jax.pretrained.hub.resolve`.
      image_size: side, or (height, width), in pixels: position embeddings are resized by its
        publisher's kernel. None: what its preprocessing makes, see `evaluated_size`.
      patch_size: likewise: the patch embedding is resized as in FlexiViT (arXiv 2212.08013).
      num_classes: another number of classes gets a new head, of zeros; 0: no head.
      hints: what the file does not tell: `num_heads`, `image_size` (as it was trained), `ln_eps`,
        `gelu`, `mlp`, `pool`, `posemb`, `posemb_resize`, `rope`, `rope_theta`, `rope_grid` in the
        values of `vit_jax.models.VitConfig`, and `preprocessing`, a family of
        `vit_jax.pretrained.preprocess`. A hint that contradicts the file is an error.
      resize: another kernel for position embeddings: a key of `vit_jax.models.resize.KERNELS`.
      leave_out: patterns of whole names, of theirs or of our parameters: tensors that are not
        read, parameters that get initial values.
      mesh: to lay the parameters on by our sharding rules, with the axes data, fsdp and tensor (see
        `vit_jax.parallel.mesh.make_mesh`): of each tensor that is read, a device keeps its shard.

    Raises:
      CheckpointError: the file is damaged, of no known format, or does not account for every
        parameter and tensor.
      ConfigError: a hint, size or kernel is none, a hint has no effect, or the mesh has other axes.
    """
    changes = {
        "image_size": None if image_size is None else _pair(image_size, name="image_size"),
        "patch_size": None if patch_size is None else _pair(patch_size, name="patch_size"),
        "num_classes": num_classes,
        "posemb_resize": resize,
    }
    said: tuple[str, ...] = ()
    mesh = one_device() if mesh is None else mesh
    if is_own(path):
        refuse_hints(path, hints, leave_out)
        return _load_own(path, changes, mesh)
    mapping = map_checkpoint(path, hints=hints, leave_out=leave_out)
    published = mapping.description.config
    if changes["image_size"] is None:
        changes["image_size"], said = evaluated_size(published, mapping.description.transforms)
    config = adapted(published, changes)
    params, notes = read(mapping, config, mesh)
    return Pretrained(
        model=build(config),
        params=params,
        config=config,
        preprocess=_preprocess(mapping.description.transforms, published, config),
        labels=_labels(mapping.description.labels, published, config),
        format=mapping.format.name,
        published=published,
        left_out=mapping.left_out,
        notes=(*mapping.description.all_notes, *said, *notes),
        loss=mapping.loss,
    )


def _load_own(path: str | os.PathLike, changes: Mapping[str, Any], mesh: Mesh) -> Pretrained:
    with jax.set_mesh(mesh):
        run = load_run(path, mesh=mesh)
        published = run.model_config
        # What is exported or predicted with needs no adapters beside its kernels.
        plain = {"lora_rank": 0} if isinstance(published, VitConfig) else {}
        config = adapted(published, {**changes, **plain})
        params = adapt_params(run.params, old=published, new=config, mesh=mesh)
    decode, *others = run.config.data.eval_transforms
    # A run's own decode gives three channels where it does not say, whatever its model takes.
    transforms = ({"channels": 3, **decode}, *others)
    return Pretrained(
        model=build(config),
        params=params,
        config=config,
        preprocess=_preprocess(transforms, published, config),
        labels=_labels(tuple(run.dataset["class_names"]), published, config),
        format="vit_jax work directory",
        published=published,
        left_out=(),
        notes=(f"step {run.step:,}",),
        loss=run.config.loss.name,
    )


def _preprocess(transforms: Any, published: ModelConfig, config: ModelConfig) -> Preprocess:
    """How images are prepared for the model, in proportion where its image size is another."""
    transforms = tuple(map(dict, transforms))
    made = output_size(transforms) or published.image_size
    return Preprocess(transforms, made, published.channels).for_size(config.image_size)


def evaluated_size(
    published: ModelConfig, transforms: Transforms
) -> tuple[tuple[int, int] | None, tuple[str, ...]]:
    """The image size that a checkpoint's preprocessing makes, and what to say of it.

    DINOv2, say, has positions for 518 pixels and is evaluated at 224. None, if the model is stored
    for what is made, or cannot take it.

    Args:
      published: the model as it is stored.
      transforms: how its publisher prepares images.
    """
    made = output_size(transforms)
    if not isinstance(published, VitConfig) or made in (None, published.image_size):
        return None, ()
    if any(side % stride for side, stride in zip(made, published.stride, strict=True)):
        return None, (
            f"its preprocessing makes images of {_shown(made)} pixels, which its patches do not "
            f"divide: they are scaled to {_shown(published.image_size)}",
        )
    stored = _shown(published.image_size)
    return made, (
        f"image size {_shown(made)}, which its preprocessing makes; it is stored for {stored} "
        f"(image_size={stored} loads that)",
    )


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _labels(labels: tuple[str, ...] | None, published: ModelConfig, config: ModelConfig):
    return labels if config.num_classes == published.num_classes else None


def adapted(published: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
    """A checkpoint's config with what is wanted otherwise; None: as it is.

    Raises:
      ConfigError: a model of this kind cannot be otherwise in that, or not so.
    """
    changes = {field: value for field, value in changes.items() if value is not None}
    kind = type(published).__name__.removesuffix("Config")
    fields = {field.name for field in dataclasses.fields(published)}
    for field in changes:
        if field not in fields:
            raise ConfigError(f"A {kind} has no {field} to be changed: leave it out.")
    for field in ("image_size", "patch_size") if isinstance(published, MixerConfig) else ():
        own = getattr(published, field)
        if changes.get(field, own) != own:
            raise ConfigError(
                f"A Mixer takes only the {field} that it was trained with, {own[0]}x{own[1]}: "
                "the number of its patches is a size of its weights."
            )
    if type(changes.get("num_classes", 0)) is not int:
        raise ConfigError(f"num_classes is {changes['num_classes']!r}: write a whole number.")
    return dataclasses.replace(published, **changes)


def _pair(size: int | tuple[int, int], *, name: str) -> tuple[int, int]:
    return as_size(tuple(size) if isinstance(size, list | tuple) else (size,), name)
