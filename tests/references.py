"""The reference libraries, timm and transformers, and their tiny random models."""

import functools
import importlib
import warnings

import numpy as np
import pytest


def reference(name):
    """Imports a library that needs PyTorch, or skips the test with the reason."""
    pytest.importorskip("torch", reason="the torch extra is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _register_operators()
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{name} is not installed: {error}")


@functools.cache
def _register_operators():
    """Makes torchvision importable beside a PyTorch that its compiled operators are not for.

    It then has none, and fails as it registers shapes for them. Both libraries import it.
    """
    import torch

    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # The operator does not exist.
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou) -> Tensor")
        return library  # Deleted with its operators when nobody has it.


def transformers_outputs(output):
    """Returns the outputs of a transformers model that ours also has, by our names."""
    names = {"logits": "logits", "last_hidden_state": "tokens", "pooler_output": "pre_logits"}
    tensors = {ours: getattr(output, theirs, None) for theirs, ours in names.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def randomise(model, *, seed=0):
    """Draws every parameter, with scales that keep attention far from uniform."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if norm else 0.15 * noise)
    return model.eval()


def outputs(model, images, read):
    """What a model gives in float32, and ten times the noise of that: its distance to float64.

    Args:
      model: of PyTorch.
      images: float32 [b, h, w, c].
      read: from the model's output to {name: tensor}.
    """
    import copy

    import torch

    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        single = {name: tensor.numpy() for name, tensor in read(model(x)).items()}
        double = read(copy.deepcopy(model).double()(x.double()))
    exact = {name: tensor.numpy() for name, tensor in double.items()}
    noise = {name: float(np.abs(single[name] - exact[name]).max()) for name in single}
    floor = {name: float(np.abs(exact[name]).max()) * 2**-23 for name in single}
    return exact, {name: 10 * max(noise[name], floor[name]) for name in single}
