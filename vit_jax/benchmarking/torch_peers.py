"""Peers in PyTorch: the ViTs of transformers and of timm, as their users run them.

On a CPU eager, on a GPU compiled (`torch.compile`) with autocast to bfloat16; attention is
`scaled_dot_product_attention`, the default of both libraries. PyTorch and the libraries are
imported only in the process of a peer.
"""

import contextlib
import importlib
import importlib.metadata
import os
import pathlib
import time
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float32

from vit_jax.benchmarking import inputs
from vit_jax.benchmarking.case import CLIP_NORM, MOMENTUM, Case
from vit_jax.benchmarking.contenders import Preparation, Turn
from vit_jax.errors import ConfigError


class TorchPeer:
    """A model of transformers or timm with a plain train loop: see `Contender`."""

    def __init__(self, library: str, case: Case, folder: pathlib.Path):
        """Imports the library; `folder` has the parameters of `vit_jax.benchmarking.weights.write`.

        Raises:
          ImportError: it, or PyTorch, is not installed.
        """
        import torch

        if case.num_devices > 1:
            raise ConfigError(f"{library} runs on one device here")
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._torch, self._library, self._case = torch, library, case
        self._module = _import_library(library)
        self._folder = folder / inputs.FORMATS[library][1]
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        batch = inputs.batch(case)
        images = np.ascontiguousarray(batch["image"].transpose(0, 3, 1, 2))
        self._images = torch.from_numpy(images).to(self._device)
        self._labels = torch.from_numpy(batch["label"].astype(np.int64)).to(self._device)

    def prepare(self) -> Preparation:
        """Builds the model with the common parameters, and its optimizer."""
        torch, case = self._torch, self._case
        start = time.perf_counter()
        self._model: Any = self._load().to(self._device).train()
        parameters = list(self._model.parameters())
        if case.optimizer == "sgd":
            optimizer = torch.optim.SGD(parameters, lr=case.learning_rate, momentum=MOMENTUM)
        else:
            optimizer = torch.optim.AdamW(parameters, lr=case.learning_rate, weight_decay=0.0)
        self._optimizer: Any = optimizer
        self._synchronise()
        init_seconds = time.perf_counter() - start
        self._callable: Any = torch.compile(self._model) if self._device == "cuda" else self._model
        on_gpu = self._device == "cuda"
        return Preparation(
            software=f"{self._library} {importlib.metadata.version(self._library)}, "
            f"torch {torch.__version__}",
            device=torch.cuda.get_device_name(0) if on_gpu else "cpu",
            platform="gpu" if on_gpu else "cpu",
            init_seconds=init_seconds,
            settings="compiled" if on_gpu else "eager",
        )

    def _load(self) -> Any:
        """Returns the model of the library, with the common parameters."""
        if self._library == "transformers":
            return self._module.ViTForImageClassification.from_pretrained(
                self._folder, attn_implementation="sdpa"
            )
        return self._module.create_model(f"local-dir:{self._folder}", pretrained=True)

    def _precision(self) -> contextlib.AbstractContextManager:
        if self._case.dtype == "float32":
            return contextlib.nullcontext()
        return self._torch.autocast(self._device, self._torch.bfloat16)

    def _logits(self) -> Any:
        outputs = self._callable(self._images)
        return outputs.logits if self._library == "transformers" else outputs

    def train(self, steps: int) -> Turn:
        """Makes updates; the losses are read at the end."""
        torch, losses = self._torch, []
        start = time.perf_counter()
        for _ in range(steps):
            self._optimizer.zero_grad(set_to_none=True)
            with self._precision():
                logits = self._logits()
            loss = torch.nn.functional.cross_entropy(logits.float(), self._labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP_NORM)
            self._optimizer.step()
            losses.append(loss.detach())
        self._synchronise()
        seconds = time.perf_counter() - start
        return Turn(seconds, tuple(float(loss) for loss in losses))

    def _synchronise(self) -> None:
        if self._device == "cuda":
            self._torch.cuda.synchronize()

    def peak_bytes(self) -> int | None:
        """Returns the peak of PyTorch's allocator; None on a CPU."""
        return self._torch.cuda.max_memory_allocated() if self._device == "cuda" else None

    def outputs(self) -> Float32[np.ndarray, "b classes"]:
        """Loads the common parameters again, for inference."""
        torch = self._torch
        self._optimizer = self._model = self._callable = None  # Frees their memory.
        self._model = self._load().to(self._device).eval()
        self._callable = torch.compile(self._model) if self._device == "cuda" else self._model
        with torch.inference_mode(), self._precision():
            return self._logits().float().cpu().numpy()

    def forward(self, steps: int) -> Turn:
        """Computes logits in inference mode."""
        start = time.perf_counter()
        with self._torch.inference_mode(), self._precision():
            for _ in range(steps):
                self._logits()
        self._synchronise()
        return Turn(time.perf_counter() - start)


def _import_library(name: str) -> Any:
    """Imports transformers or timm.

    Both import torchvision, which fails beside a PyTorch that its compiled operators were not built
    for, as it registers shapes for them. No model here uses these operators, so they are declared.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("torchvision")
        except RuntimeError:  # "operator torchvision::nms does not exist"
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou) -> Tensor")
            _KEPT.append(library)
        except ImportError:
            pass  # Then transformers needs none.
        return importlib.import_module(name)


_KEPT: list[Any] = []  # A library of PyTorch is deleted with its operators when nobody has it.
