"""A model with its parameters, and what one does with it: predictions, features, attention."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, PyTree

from vit_jax.errors import ConfigError
from vit_jax.models import ModelConfig, VitConfig, describe_model, num_params
from vit_jax.optim.losses import probabilities
from vit_jax.parallel.rules import named_leaves
from vit_jax.pretrained.class_names import shown_names
from vit_jax.pretrained.consistency import (
    check_classifier,
    check_images,
    check_labels,
    check_params,
    raise_non_finite,
)
from vit_jax.pretrained.image_inputs import ImageInputs, as_list, name_of
from vit_jax.pretrained.prediction import Prediction, Predictions
from vit_jax.pretrained.preprocess import Preprocess
from vit_jax.pretrained.run_checkpoint import TrainingData

BATCH_SIZE = 64  # Images at a time, at most.
_ZERO_HEAD = "its head is zeros, as usual before training: all classes have the same probability"


@dataclasses.dataclass(frozen=True, repr=False)
class Pretrained:
    """A model with its parameters: a published one, one of a run, or a fresh one.

    `logits, intermediates = pretrained(images)` calls it on prepared images, jitted. `predict`,
    `features` and `attention` also take paths, Pillow images and pixels.

    Attributes:
      model: a Flax module; its `apply({"params": params}, images)` gives `(logits, intermediates)`.
      params: float32, with stacked blocks.
      config: architecture and numerics.
      preprocess: paths or images -> float32 [b, height, width, channels], as in the publisher's
        evaluation.
      labels: class names, or None if they are unknown.
      format: name of the checkpoint's format.
      published: the checkpoint's config, before a change of image size, patch size or head.
      left_out: names of tensors that were not read.
      notes: assumptions about what the file does not state, and changes when it was loaded: resized
        embeddings, parameters initialised again. `all_notes` has those on the parameters, too.
      loss: the loss of the head, which decides how outputs become probabilities: softmax_xent,
        sigmoid_xent, or "" for a regression, whose outputs are not of classes.
      loaded_from: the path or name of the checkpoint; "": it was not loaded.
      trained_on: the data of the run that it was loaded from, so that an evaluation on these takes
        the images that the run held out; None: it was not loaded from a run.
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
    loaded_from: str = ""
    trained_on: TrainingData | None = None

    @property
    def all_notes(self) -> tuple[str, ...]:
        """`notes`, and whether the head of the present `params` is zeros."""
        kernel = named_leaves(self.params).get("head/kernel")
        return self.notes if kernel is None or jnp.any(kernel) else (*self.notes, _ZERO_HEAD)

    def __call__(
        self, images: Float[Array | np.ndarray, "b height width channels"], *, capture: Any = ()
    ) -> tuple[Float[Array, "b classes"], dict[str, Array]]:
        """Returns logits and intermediates, as `model.apply` does without dropout.

        Without a head (`config.num_classes == 0`) the logits are the features, `pre_logits`.

        Args:
          images: the result of `preprocess`.
          capture: further intermediates, see `vit_jax.models.Vit`: "attention", or several.

        Raises:
          CheckpointError: `params` are not those of the model.
          ConfigError: these are no prepared images of the model's size, or there is no such
            intermediate.

        Example:
          >>> pretrained = create("mu/16", image_size=32, num_classes=10)
          >>> logits, intermediates = pretrained(np.zeros((2, 32, 32, 3), np.float32))
          >>> intermediates["pre_logits"].shape
          (2, 32)
        """
        check_images(images, self.config)
        names = (capture,) if isinstance(capture, str) else tuple(capture)
        self._check_params  # noqa: B018  # Once.
        return _apply(self.model, {"params": self.params}, images, names)

    @property
    def is_classifier(self) -> bool:
        """Whether the outputs are of classes: there is a head, and it is not for regression."""
        return bool(self.loss and self.config.num_classes)

    def predict(self, images: ImageInputs, top_k: int = 5) -> Predictions:
        """Predicts the classes of images, 64 at a time.

        `vit_jax.predict` also takes folders, and goes on after files that are broken.

        Args:
          images: what `preprocess` accepts: a path, a Pillow image, uint8 pixels, or several; or
            images that are prepared already, float [n, height, width, channels].
          top_k: number of classes of each image.

        Returns:
          A tuple of `vit_jax.pretrained.prediction.Prediction`, which is shown as a table: names
          and probabilities of the most probable classes (by a softmax, or a sigmoid of each class,
          as `loss` says), and the features. Of a checkpoint without names, a thousand outputs are
          taken for ImageNet's classes; other classes are "class 0", "class 1", ...

        Raises:
          CheckpointError: the model predicts no classes, or has NaN or infinite parameters.
          ConfigError: prepared images are of another size, or `top_k` is below 1.
          DataError: there is no image, or one is broken; the message names it.
          NonFiniteError: an output is NaN or infinite, though all parameters are finite.

        Example:
          >>> load_pretrained("tiny-vit").predict("cat.png", top_k=2)
          image    probability  class
          cat.png  ...
        """
        check_classifier(
            self.config,
            is_classifier=self.is_classifier,
            name=self._name,
            advice="Call .features(images), or load it with num_classes=N and train its head.",
        )
        check_labels(self.labels, self.config)
        if top_k < 1:
            raise ConfigError(f"top_k is {top_k}: it must be at least 1.")
        names, _ = shown_names(self.labels, self.config.num_classes)
        images, predictions = as_list(images), []
        for logits, features in self._in_batches(images):
            shares = np.asarray(probabilities(logits, loss_name=self.loss))
            # By logits: the probabilities of a sigmoid are equal, 1, for all large ones.
            best = np.argsort(-np.asarray(logits), axis=-1, kind="stable")[:, :top_k]
            for row, outputs, values in zip(shares, best, features, strict=True):
                index = len(predictions)
                predictions.append(
                    Prediction(
                        name_of(images[index], index),
                        tuple(names[output] for output in outputs),
                        tuple(row[outputs].tolist()),
                        features=values,
                    )
                )
        return Predictions(predictions)

    def features(self, images: ImageInputs) -> Float32[np.ndarray, "n d"]:
        """Returns the input of the head (`pre_logits`) of each image, 64 images at a time.

        Args:
          images: as for `predict`.

        Raises:
          CheckpointError, ConfigError, DataError, NonFiniteError: see `predict`.

        Example:
          >>> create("mu/16", image_size=32, num_classes=10).features(["cat.png", "cat.png"]).shape
          (2, 32)
        """
        return np.concatenate([features for _, features in self._in_batches(as_list(images))])

    def attention(self, image: ImageInputs) -> Float32[np.ndarray, "layer head row column"]:
        """Returns where the token that the head reads attends to, as maps over the patches.

        Of a class token (`pool` is token or token_gap), its attention in each layer, alone: the
        head of a model with a distillation token reads that one, too, and with token_gap the mean
        of the patches, which `vit_jax.analysis.attention_maps` takes into its mean. Of a mean of
        patches (gap), the mean over the patches of their attention in each layer. Of a MAP head,
        the attention of its query, which is after all layers: one map for each head, as layer 0.
        Weights on prefix tokens (class, distillation, registers) are left out, and the others
        remain as they are, so that the sum of a map is the share of attention on patches. During
        the call, the weights of all layers are in memory: depth * heads * tokens^2 numbers.

        Args:
          image: one image, as for `predict`.

        Raises:
          CheckpointError, DataError: see `predict`.
          ConfigError: the model has no attention, or there are several images.

        Example:
          >>> create("mu/16", image_size=32, num_classes=10).attention("cat.png").shape
          (1, 2, 2, 2)
        """
        config = self.config
        if not isinstance(config, VitConfig):
            kind = type(config).__name__.removesuffix("Config")
            raise ConfigError(f"{self._name} is a {kind}: it has no attention.")
        images = as_list(image)
        if len(images) > 1:
            raise ConfigError(f"attention takes one image, not {len(images):,}: call it for each.")
        by_probe = config.pool in ("map", "map_patches")
        name = "pool_attention" if by_probe else "attention"
        weights = self(self._prepared(images, 0), capture=name)[1][name]
        if by_probe:
            rows = weights[:, :, 0]  # One image: the axis of images becomes that of layers.
        elif config.has_class_token and config.pool != "gap":
            rows = weights[:, 0, :, 0]
        else:
            rows = weights[:, 0, :, config.num_prefix :].mean(axis=-2)
        height, width = config.grid
        patches = np.asarray(rows[..., -height * width :], np.float32)
        return patches.reshape(*patches.shape[:-1], height, width)

    def _in_batches(
        self, images: Any
    ) -> Iterator[tuple[Float[Array, "n outputs"], Float32[np.ndarray, "n d"]]]:
        """Yields logits and features of at most 64 images at a time.

        The last batch is filled with zeros, and few images are one batch of 1, 2, 4, ... images, so
        that few sizes are compiled.

        Args:
          images: of `as_list`.
        """
        size = min(BATCH_SIZE, 1 << (len(images) - 1).bit_length())
        for start in range(0, len(images), size):
            prepared = self._prepared(images[start : start + size], start)
            count = len(prepared)
            padding = np.zeros((size - count, *prepared.shape[1:]), prepared.dtype)
            logits, intermediates = self(np.concatenate([prepared, padding]))
            logits = logits[:count]
            features = np.asarray(intermediates["pre_logits"], np.float32)[:count]
            if not (np.isfinite(features).all() and jnp.isfinite(logits).all()):
                raise_non_finite(self.params, self.config, name=self._name)
            yield logits, features

    def _prepared(self, images: Any, first: int) -> Float[np.ndarray, "n height width channels"]:
        """Prepares some images, unless they are; `first` is the number of the first."""
        if isinstance(images, np.ndarray) and jnp.issubdtype(images.dtype, jnp.floating):
            check_images(images, self.config)
            return images
        return np.stack([self.preprocess.prepare(x, first + i) for i, x in enumerate(images)])

    @property
    def _name(self) -> str:
        return self.loaded_from or describe_model(self.config)

    def __repr__(self) -> str:
        """Returns a few lines: the size, the classes, the format and the notes."""
        classes = f"{self.config.num_classes:,} classes"
        if not self.config.num_classes:
            classes = "no head: the logits are the features"
        elif self.labels:
            names = ", ".join(f'"{label}"' for label in self.labels[:3])
            classes += f" ({names}{', ...' if len(self.labels) > 3 else ''})"
        lines = [
            f"{describe_model(self.config)}: {num_params(self.config):,} parameters",
            f"images of {size_text(self.config.image_size)}, {classes}",
            self.format + (f", from {self.loaded_from}" if self.loaded_from else ""),
            *self.all_notes,
        ]
        return "\n".join(lines)

    @functools.cached_property
    def _check_params(self) -> None:
        check_params(self.params, self.config)


@functools.partial(jax.jit, static_argnames=("model", "capture"))
def _apply(
    model: nn.Module,
    variables: dict[str, PyTree],
    images: Float[Array, "b height width channels"],
    capture: tuple[str, ...],
) -> tuple[Float[Array, "b classes"], dict[str, Array]]:
    """Runs a model; models of one architecture share the compiled program."""
    return cast(Any, model.apply(variables, images, capture=capture))


def size_text(size: tuple[int, int]) -> str:
    """Returns "HEIGHTxWIDTH"."""
    return f"{size[0]}x{size[1]}"
