"""Exports programs that do not need vit_jax: StableHLO (jax.export) and ONNX (jax2onnx).

A program maps float32 images [batch, height, width, channels], with any batch size, to logits, and
contains the parameters. The written file is read again and compared with the model.
"""

import dataclasses
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax import export as jax_export
from jaxtyping import PyTree

from vit_jax.errors import CheckpointError
from vit_jax.models import build
from vit_jax.pretrained.exports.base import HostParameters
from vit_jax.pretrained.model import Pretrained

_PLATFORMS = ("cpu", "cuda", "tpu")
_LARGEST_ONNX = 2**31  # Bytes: the limit of protobuf.
_TOLERANCE = 1e-4  # Largest difference of a logit, relative to the largest logit.


def write_stablehlo(pretrained: Pretrained, path: pathlib.Path) -> float:
    """Writes a program for CPU, CUDA and TPU.

    `jax.export.deserialize(bytearray(path.read_bytes())).call(images)` gives the logits.

    Returns:
      The largest absolute difference to the model's logits, on random images.

    Raises:
      CheckpointError: the program differs from the model.
    """
    program = jax.jit(lambda images: _logits(pretrained.model, pretrained.params, images))
    images = jax.ShapeDtypeStruct(
        (*jax_export.symbolic_shape("batch"), *_shape(pretrained)), jnp.float32
    )
    exported = jax_export.export(program, platforms=_PLATFORMS)(images)
    path.write_bytes(exported.serialize())
    again = jax_export.deserialize(bytearray(path.read_bytes()))
    return _compare(pretrained, lambda images: np.asarray(again.call(images)))


def write_onnx(pretrained: Pretrained, path: pathlib.Path) -> float:
    """Writes an ONNX file.

    Returns:
      The largest absolute difference to the model's logits, on random images, in onnxruntime.

    Raises:
      CheckpointError: jax2onnx is not installed, the model is too large for one file, or the
        program differs from the model.
    """
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]  # Optional.
        from jax2onnx import to_onnx  # pyright: ignore[reportMissingImports]  # Optional.
    except ImportError as error:
        raise CheckpointError(
            f"The format onnx needs jax2onnx and onnxruntime ({error}): pip install "
            "vit_jax[onnx], in an environment of its own, since jax2onnx asks for an older Orbax "
            "than ours."
        ) from error
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(pretrained.params))
    if size >= _LARGEST_ONNX:
        raise CheckpointError(
            f"Format onnx: {size / 1e9:.1f} GB of parameters exceed the limit of an ONNX file, "
            "2 GB. Use the format stablehlo."
        )
    # jax2onnx does not support a scan over blocks.
    parameters = HostParameters(pretrained.params, pretrained.config)
    params = unflatten_dict({tuple(name.split("/")): array for name, array in parameters.items()})
    config = pretrained.config
    model = build(dataclasses.replace(config, scan=False) if hasattr(config, "scan") else config)
    program = to_onnx(
        lambda images: _logits(model, params, images), [("batch", *_shape(pretrained))]
    )
    path.write_bytes(program.SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return _compare(pretrained, lambda images: session.run(None, {name: images})[0])


def _logits(model: nn.Module, params: PyTree, images: jax.Array) -> jax.Array:
    return model.apply({"params": params}, images)[0]


def _shape(pretrained: Pretrained) -> tuple[int, int, int]:
    return *pretrained.config.image_size, pretrained.config.channels


def _compare(pretrained: Pretrained, program) -> float:
    """Returns the largest difference of a program's logits from the model's, on random images."""
    images = np.random.default_rng(0).standard_normal((2, *_shape(pretrained)), np.float32)
    expected = np.asarray(jax.jit(pretrained.model.apply)({"params": pretrained.params}, images)[0])
    difference = float(np.abs(program(images) - expected).max())
    if not difference <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise CheckpointError(
            f"The program's logits differ from the model's by {difference:.1e}, so it is deleted. "
            "Please report this, with the versions of jax and of the exporter."
        )
    return difference
