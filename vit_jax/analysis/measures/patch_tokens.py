"""The features of the patches of images: tokens of a ViT or Mixer, points of a ResNet's map."""

from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float, Float32

from vit_jax.analysis.measures.arguments import whole_number
from vit_jax.analysis.measures.encoder import Measured, Model, Variables
from vit_jax.config.model import ResnetConfig, VitConfig


def check_layer(measured: Measured, layer: Any) -> None:
    """Raises an error unless the model has this block, from 0; None is the end of the model.

    Raises:
      ConfigError: there is no such block.
      NotApplicableError: the model has no blocks.
    """
    if layer is None:
        return
    depth = measured.blocks.depth
    reason = f"{measured.name} has the blocks 0 to {depth - 1} (None: the tokens at its end)"
    whole_number("layer", layer, low=0, high=depth - 1, reason=reason)


def describe_layer(measured: Measured, layer: int | None) -> str:
    """Returns which features `patch_tokens` gives."""
    if layer is not None:
        return f"output of block {layer + 1} of {measured.blocks.depth}"
    if isinstance(measured.config, ResnetConfig):
        return "last feature map"
    if isinstance(measured.config, VitConfig) and measured.config.final_norm != "tokens":
        return "output of the last block (no norm follows it on tokens)"
    return "tokens after the final norm"


@partial(jax.jit, static_argnames=("model", "layer"))
def patch_tokens(
    model: Model,
    variables: Variables,
    images: Float[Array, "b height width channels"],
    layer: int | None = None,
) -> Float32[Array, "b row column features"]:
    """Returns the features of each patch; prefix tokens are left out.

    Args:
      model: of a `Measured`.
      variables: of the same.
      images: prepared.
      layer: a block, from 0, for its output; None: the end of the model, see `describe_layer`.
    """
    config = model.config
    is_resnet = isinstance(config, ResnetConfig)
    captured = ("feature_map",) if is_resnet else () if layer is None else ("blocks",)
    intermediates: dict[str, Any] = dict(model.apply(variables, images, capture=captured)[1])
    if is_resnet:
        return intermediates["feature_map"]
    tokens = intermediates["tokens"] if layer is None else intermediates["blocks"][layer]
    prefix = config.num_prefix if isinstance(config, VitConfig) else 0
    return tokens[:, prefix:].reshape(len(images), *config.grid, -1)
