"""What was measured of one contender, and its JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from vit_jax.benchmarking.case import Case
from vit_jax.benchmarking.contenders import Preparation
from vit_jax.benchmarking.samples import Spread, rates
from vit_jax.benchmarking.verdict import Verdict
from vit_jax.telemetry.chips import peak_flops

WRONG, OK = "WRONG", "ok"


@dataclasses.dataclass
class Result:
    """One contender of a case; what it did not reach is None or empty.

    Attributes:
      contender: vit_jax, flax, transformers or timm.
      case: what was measured.
      status: ok; WRONG: other losses or outputs than the reference; out of memory, not installed,
        refused by this jaxlib, failed, skipped.
      message: what is wrong, or "".
      preparation: before the first timed step.
      train_flops_per_image: of forward and backward pass by `vit_jax.models.flops`: a multiply-add
        is two, recomputation is not counted.
      forward_flops_per_image: of the forward pass.
      train_seconds: of a step, in each round.
      forward_seconds: of a forward pass, in each round.
      losses: of all updates.
      steps_bytes: peak memory during the timed train steps: of the device, or the process's
        resident memory on a CPU.
      process_bytes: peak resident memory of the process up to the last timed train step, compiler
        included.
      verdict: comparison with the reference.
      reference: contender that made the reference: flax, or vit_jax with plain settings.
      matmul_flops_per_second: peak of matrix products, measured in the same rounds.
    """

    contender: str
    case: Case
    status: str = OK
    message: str = ""
    preparation: Preparation | None = None
    train_flops_per_image: int = 0
    forward_flops_per_image: int = 0
    train_seconds: list[float] = dataclasses.field(default_factory=list)
    forward_seconds: list[float] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)
    steps_bytes: int | None = None
    process_bytes: int | None = None
    verdict: Verdict | None = None
    reference: str = ""
    matmul_flops_per_second: float | None = None

    @property
    def is_ok(self) -> bool:
        """Whether its times count."""
        return self.status == OK

    @property
    def name(self) -> str:
        """The contender with its settings, for a table."""
        settings = self.case.describe_settings() if self.contender == "vit_jax" else ""
        return f"{self.contender} {settings}".strip()

    def train_rate(self) -> Spread | None:
        """Returns images per second of training; None if its times do not count."""
        return self._rate(self.train_seconds)

    def forward_rate(self) -> Spread | None:
        """Returns images per second of the forward pass; None if its times do not count."""
        return self._rate(self.forward_seconds)

    def _rate(self, seconds: Sequence[float]) -> Spread | None:
        return rates(self.case.batch_size, seconds) if self.is_ok and seconds else None

    def train_flops_per_second(self) -> float | None:
        """Returns the model's FLOPs of a train step over its median time, all devices together."""
        rate = self.train_rate()
        return None if rate is None else rate.median * self.train_flops_per_image

    def matmul_share(self) -> float | None:
        """Returns the achieved share of the measured peak of matrix products."""
        achieved = self.train_flops_per_second()
        if achieved is None or not self.matmul_flops_per_second:
            return None
        # Simulated devices share the cores on which the peak was measured.
        on_cpu = self.preparation is not None and self.preparation.platform == "cpu"
        devices = 1 if on_cpu else self.case.num_devices
        return achieved / (self.matmul_flops_per_second * devices)

    def mfu(self) -> float | None:
        """Returns the achieved share of the data sheet's bfloat16 peak; None: not known."""
        achieved = self.train_flops_per_second()
        peak = None if self.preparation is None else peak_flops(self.preparation.device)
        if achieved is None or peak is None:
            return None
        return achieved / (peak * self.case.num_devices)

    def to_json(self) -> dict[str, Any]:
        """Returns what was measured, every sample, and what follows from it."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("case", "preparation", "verdict")
        }
        nested = {"case": self.case, "preparation": self.preparation, "verdict": self.verdict}
        derived = {
            "train_images_per_second": self.train_rate(),
            "forward_images_per_second": self.forward_rate(),
        }
        return {
            **fields,
            **{
                name: None if value is None else dataclasses.asdict(value)
                for name, value in {**nested, **derived}.items()
            },
            "train_flops_per_second": self.train_flops_per_second(),
            "share_of_matmul_peak": self.matmul_share(),
            "mfu": self.mfu(),
        }
