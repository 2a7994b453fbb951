"""Checks that images and parameters are those that a model takes, before they reach Flax."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vit_jax.checkpoints.faults import differences
from vit_jax.errors import CheckpointError, ConfigError, NonFiniteError
from vit_jax.models import ModelConfig, param_shapes
from vit_jax.parallel.rules import named_leaves


def check_images(images: Any, config: ModelConfig) -> None:
    """Raises ConfigError unless these are float images [n, height, width, channels] for a model."""
    advice = "Prepare them first: model(model.preprocess(images))."
    if not isinstance(images, np.ndarray | jax.Array):
        raise ConfigError(f"The images are of type {type(images).__name__}. {advice}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ConfigError(f"The images are {images.dtype}, with levels of 0 to 255. {advice}")
    shape, size = images.shape, (*config.image_size, config.channels)
    if images.ndim == 4 and shape[1:] == size:
        return
    if images.ndim == 4 and shape[1] == config.channels != shape[3]:
        advice = "Channels come last: images.transpose(0, 2, 3, 1)."
    elif shape == size:
        advice = "For a single image write images[None]."
    elif images.ndim == 4 and shape[3] == config.channels:
        advice += " For another size load the model with image_size=(height, width)."
    raise ConfigError(
        f"The images have the shape {shape}. This model takes "
        f"(n, {', '.join(map(str, size))}): n, height, width, channels. {advice}"
    )


def check_params(params: PyTree, config: ModelConfig) -> None:
    """Raises CheckpointError if parameters have other names or shapes than a model's.

    A caller may have replaced the parameters or the config, one without the other.
    """
    if isinstance(params, Mapping) and set(params) == {"params"}:
        raise CheckpointError('params is {"params": ...}: give the tree in it, params["params"].')
    expected = named_leaves(param_shapes(config))
    leaves = {
        name: leaf if hasattr(leaf, "shape") else np.asarray(leaf)
        for name, leaf in named_leaves(params).items()
    }
    if lines := differences(leaves, expected, source="params"):
        raise CheckpointError(
            "The parameters are not those of the model's config:\n"
            + "\n".join(lines)
            + "\nReplace params and config together: load_pretrained(..., num_classes=N) and "
            "create(...) return a model whose parameters fit."
        )


def check_labels(labels: Sequence[str] | None, config: ModelConfig) -> None:
    """Raises CheckpointError if there are names of another number of classes than outputs."""
    if labels is not None and len(labels) != config.num_classes:
        raise CheckpointError(
            f"The model has {config.num_classes:,} outputs, but {len(labels):,} labels: give it as "
            "many, or None."
        )


def check_classifier(config: ModelConfig, *, is_classifier: bool, name: str, advice: str) -> None:
    """Raises CheckpointError, ending in the advice, if a model's outputs are not of classes."""
    if is_classifier:
        return
    reason = " has no head, so it cannot predict classes"
    if config.num_classes:
        reason = (
            ": its head is for regression (problem_type in its config.json): its outputs are "
            "numbers, not classes, and have no probabilities"
        )
    raise CheckpointError(f"{name}{reason}. {advice}")


def raise_non_finite(params: PyTree, config: ModelConfig, *, name: str) -> NoReturn:
    """Raises the error of an output that is NaN or infinite.

    Raises:
      CheckpointError: since a parameter is.
      NonFiniteError: though all parameters are finite.
    """
    check_finite(params, name=name)
    raise NonFiniteError(
        f"{name}: the outputs of an image are not finite (NaN or infinity), though the parameters "
        f"are: they overflow in {config.dtype}. Set dtype (--dtype) to float32; if it is, the "
        "parameters are too large to be used."
    )


def check_finite(params: PyTree, *, name: str) -> None:
    """Raises CheckpointError, with the first such parameter, if a value is NaN or infinite.

    Args:
      params: a tree of arrays; one jitted reduction reads them.
      name: of the model, for the message.
    """
    leaves = jax.device_get(named_leaves(_are_finite(params)))
    if broken := [path for path, is_finite in leaves.items() if not is_finite]:
        more = f" and {len(broken) - 1:,} more of {len(leaves):,}" if len(broken) > 1 else ""
        raise CheckpointError(
            f"{name}: parameters are not finite (NaN or infinity): {broken[0]}{more}. Its training "
            "diverged, or its file is damaged: take an earlier checkpoint."
        )


@jax.jit
def _are_finite(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), params)
