"""What every contender can do, and what it says of itself."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What was there before the first timed step.

    Attributes:
      software: libraries with their versions.
      device: kind of the device.
      platform: cpu, gpu or tpu.
      init_seconds: creating parameters and optimizer state, including their compilation.
      trace_seconds: tracing and lowering the train step; None: it is not traced.
      compile_seconds: compiling the train step; None: it is not compiled ahead of time.
      temporary_bytes: memory that the compiled step needs besides its arguments and results.
      argument_bytes: parameters, optimizer state and batch, on one device.
      settings: settings as they were resolved, such as the back end of attention.
    """

    software: str
    device: str
    platform: str
    init_seconds: float
    trace_seconds: float | None = None
    compile_seconds: float | None = None
    temporary_bytes: int | None = None
    argument_bytes: int | None = None
    settings: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the fields."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Turn:
    """Consecutive steps of one contender.

    Attributes:
      seconds: of all steps together, until their results are there.
      losses: of each step, before its update.
    """

    seconds: float
    losses: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the fields."""
        return dataclasses.asdict(self)


@runtime_checkable  # The tests check types at run time.
class Contender(Protocol):
    """A model of one code base with its train step, on one batch."""

    def prepare(self) -> Preparation:
        """Builds the model with the common parameters, its train step, and the batch."""
        ...

    def train(self, steps: int) -> Turn:
        """Makes so many updates, each on the same batch."""
        ...

    def peak_bytes(self) -> int | None:
        """Returns the peak memory of the device; None: the resident memory is what counts."""
        ...

    def outputs(self) -> Float32[np.ndarray, "b classes"]:
        """Returns the logits of the batch with the common parameters: call it after training."""
        ...

    def forward(self, steps: int) -> Turn:
        """Computes the logits of the batch so many times; call `outputs` before."""
        ...
