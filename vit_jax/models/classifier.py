"""The base class of all models: their call, their checks, and a linear head."""

from collections.abc import Collection
from typing import ClassVar, Generic, TypeVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.config.model import ModelConfig
from vit_jax.errors import ConfigError, did_you_mean

Config = TypeVar("Config", bound=ModelConfig)


class Classifier(nn.Module, Generic[Config]):
    """An image classifier: `apply({"params": params}, images) -> (logits, intermediates)`.

    Attributes:
      capturable: names that `capture` accepts.
    """

    config: Config
    capturable: ClassVar[tuple[str, ...]] = ()

    @nn.compact
    def __call__(
        self,
        images: Float[Array | np.ndarray, "b height width channels"],
        *,
        train: bool = False,
        capture: Collection[str] = (),
    ) -> tuple[Float[Array, "b classes"], dict[str, Array]]:
        """Classifies images.

        Args:
          images: of the config's size and channels, normalised as in the model's training.
          train: whether dropout and stochastic depth are on; then pass `rngs={"dropout": key}`.
          capture: names in `capturable` of further intermediates to return. Others use no memory.

        Returns:
          The logits in float32; the pre-logits if the model has no head. And the intermediates by
          name: `pre_logits` float32[b, features], the input of the head (of the first one, if the
          model is distilled); the captured ones; those that the model's class lists.

        Raises:
          ConfigError: images of another size or number of channels, or an unknown name in
            `capture`.
        """
        expected = (*self.config.image_size, self.config.channels)
        if images.shape[1:] != expected:
            raise ConfigError(
                f"This model takes images of height, width, channels {expected}, not "
                f"{images.shape[1:]}: set model.image_size and model.channels, or resize the "
                "images."
            )
        for name in capture:
            if name not in self.capturable:
                raise ConfigError(
                    f'A {type(self).__name__} cannot capture "{name}". '
                    + did_you_mean(str(name), self.capturable)
                )
        return self.classify(jnp.asarray(images), train=train, capture=capture)

    def classify(
        self, images: Float[Array, "b height width channels"], *, train: bool,
        capture: Collection[str],
    ) -> tuple[Float[Array, "b classes"], dict[str, Array]]:  # fmt: skip
        """Computes logits and intermediates; implemented by subclasses.

        It runs inside the compact `__call__`, so it may create submodules.
        """
        raise NotImplementedError

    def head(self, x: Float[Array, "b features"], name: str = "head") -> Float[Array, "b classes"]:
        """Applies a linear classifier; its kernel is initialised to zero."""
        return nn.Dense(
            self.config.num_classes,
            kernel_init=nn.initializers.zeros,
            bias_init=nn.initializers.constant(self.config.head_bias_init),
            name=name,
        )(x)
