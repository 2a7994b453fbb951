"""What several measurements have in common: parameters, and losses and outputs of references."""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from vit_jax.benchmarking.case import Case
from vit_jax.benchmarking.flax_peer import is_plain
from vit_jax.benchmarking.process import Worker, WorkerError
from vit_jax.benchmarking.worker import FLAX, OURS
from vit_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Weights:
    """The files of a model's parameters.

    Attributes:
      folder: that of `vit_jax.benchmarking.weights.write`.
      refused: {contender: why its format cannot express the model}.
      written_for: the peers in whose formats they were to be written.
    """

    folder: pathlib.Path
    refused: dict[str, str]
    written_for: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the reference computed.

    Attributes:
      contender: vit_jax or flax.
      losses: before each update.
      outputs: logits of the batch before training.
      problem: why there is nothing; "": there is.
    """

    contender: str
    losses: list[float]
    outputs: Float32[np.ndarray, "b classes"]
    problem: str = ""


class Common:
    """Keeps parameters and references; use it as a context manager.

    Attributes:
      folder: a temporary folder.
    """

    def __init__(self):
        self._stack = contextlib.ExitStack()
        self.folder = pathlib.Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._weights: dict[tuple[Any, ...], Weights] = {}
        self._references: dict[Case, Reference] = {}

    def __enter__(self) -> "Common":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def weights(self, case: Case, peers: Sequence[str], *, timeout_seconds: float) -> Weights:
        """Returns the files of a case's parameters, also in the formats of its peers.

        They are written by a process of its own, on the CPU.

        Raises:
          ConfigError: the model cannot be built.
        """
        key, wanted = _model_of(case), {*peers, FLAX}  # The reference may be the plain Flax model.
        known = self._weights.get(key)
        if known is None or not wanted <= known.written_for:
            folder = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
            with Worker("weights", case, folder, env={"JAX_PLATFORMS": "cpu"}) as worker:
                try:
                    refused = worker.do(
                        "write", timeout_seconds=timeout_seconds, contenders=sorted(wanted)
                    )
                except WorkerError as error:
                    raise ConfigError(f"{case.variant} cannot be built: {error}") from error
            self._weights[key] = Weights(folder, refused, frozenset(wanted))
        return self._weights[key]

    def reference(self, case: Case, updates: int, *, timeout_seconds: float) -> Reference:
        """Returns losses of at least so many updates, and outputs, of a plain case.

        A process of its own computes them: the plain Flax model, which shares no code with ours,
        if it can compute the case; else ours with the settings of the case, whose own backward
        passes are tested against plain ones. `weights` must have been called for the model. One
        that failed is not run again: that would take as long, and most likely fail again.
        """
        known = self._references.get(case)
        if known is None or (not known.problem and len(known.losses) < updates):
            self._references[case] = self._run(case, updates, timeout_seconds)
        return self._references[case]

    def _run(self, case: Case, updates: int, timeout_seconds: float) -> Reference:
        folder = self._weights[_model_of(case)].folder
        env = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
        is_whole = case.accum_steps == 1 and not case.scan
        contender = FLAX if is_whole and is_plain(case.model_config()) else OURS
        with Worker(contender, case, folder, env=env) as worker:
            try:
                worker.do("prepare", timeout_seconds=timeout_seconds)
                turn = worker.do("train", timeout_seconds=timeout_seconds, steps=updates)
                path = folder / "reference.npy"
                worker.do("outputs", timeout_seconds=timeout_seconds, path=str(path))
                return Reference(contender, turn["losses"], np.load(path, allow_pickle=False))
            except WorkerError as error:
                empty = np.zeros((0, 0), np.float32)
                return Reference(contender, [], empty, f"{error.kind}: {error}")


def _model_of(case: Case) -> tuple[Any, ...]:
    """Returns what the parameters of a case depend on."""
    return case.variant, case.image_size, case.num_classes, case.sizes
