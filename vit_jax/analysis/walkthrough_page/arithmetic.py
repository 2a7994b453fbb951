"""The operations of a block in NumPy, for what the model does not return of itself."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from vit_jax.config.model import VitConfig

Params = Mapping[str, Any]
Arrays = dict[str, np.ndarray]


def dense(
    x: Float[np.ndarray, "n inputs"], params: Params, *, inputs: int = 1
) -> Float[np.ndarray, "n outputs"]:
    """Applies a dense layer to each token.

    Args:
      x: tokens.
      params: kernel and, if the layer has one, bias.
      inputs: number of the kernel's leading axes that are summed over.
    """
    kernel = np.asarray(params["kernel"])
    kernel = kernel.reshape(int(np.prod(kernel.shape[:inputs])), -1)
    y = x @ kernel
    return y + np.asarray(params["bias"]).reshape(-1) if "bias" in params else y


def norm(
    name: str, x: Float[np.ndarray, "n width"], params: Params, config: VitConfig, *, rms: bool
) -> Arrays:
    """Returns a normalisation and its parts: {name}, {name}_mean, {name}_std, {name}_scale, ...

    Args:
      name: prefix of the arrays' names.
      x: tokens.
      params: scale and bias, as far as the norm has them.
      config: for its epsilon.
      rms: divide by the root mean square, without centring.
    """
    arrays: Arrays = {}
    centred = x
    if not rms:
        arrays[f"{name}_mean"] = x.mean(axis=-1)
        centred = x - arrays[f"{name}_mean"][:, None]
    std = np.sqrt(np.square(centred).mean(axis=-1) + np.float32(config.ln_eps))
    arrays[f"{name}_std"] = std
    y = arrays[f"{name}_standardised"] = centred / std[:, None]
    if "scale" in params:
        arrays[f"{name}_scale"] = np.asarray(params["scale"])
        y = y * arrays[f"{name}_scale"]
    if "bias" in params:
        arrays[f"{name}_bias"] = np.asarray(params["bias"])
        y = y + arrays[f"{name}_bias"]
    arrays[name] = y
    return arrays


def block_norm(
    name: str, x: Float[np.ndarray, "n width"], params: Params, config: VitConfig
) -> Arrays:
    """Returns one of the model's own norms, see `norm`."""
    return norm(name, x, params, config, rms=config.norm == "rmsnorm")


def softmax(scores: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Returns exp(scores), scaled to the sum 1."""
    exponentials = np.exp(scores - scores.max())
    return exponentials / exponentials.sum()
