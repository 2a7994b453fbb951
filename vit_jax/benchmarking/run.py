"""The benchmark of one case. Read from top to bottom.

Every contender has a process of its own and the same parameters and batch. They prepare one after
another, then train in turns, then compute outputs and forward passes in turns. At last a reference
makes the same updates in plain float32; whoever has other losses or outputs has no throughput.
"""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vit_jax.benchmarking.case import Case
from vit_jax.benchmarking.inputs import FORMATS
from vit_jax.benchmarking.process import Worker, WorkerError
from vit_jax.benchmarking.result import WRONG, Result
from vit_jax.benchmarking.turns import Report, Turns
from vit_jax.benchmarking.verdict import compare
from vit_jax.benchmarking.worker import FAILED, OURS
from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.models import forward_flops, update_flops_per_image

PEERS = tuple(FORMATS)


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
      rounds: turns of each contender.
      turn_seconds: a turn has as many steps as take this long, at least one.
      checked_updates: how many updates the reference makes; 0: all.
      timeout_seconds: of a task of a worker, such as its preparation.
      matmul_side: side of the matrices of the peak; None: that of the platform.
      with_forward: whether forward passes are timed and outputs compared.
      reference_accum_steps: microbatches of the reference, whose activations in float32 take
        several times the memory of the contenders'.
      reference_scan: whether the reference loops over its blocks, to compile in less time.
    """

    rounds: int = 5
    turn_seconds: float = 0.5
    checked_updates: int = 0
    timeout_seconds: float = 1800.0
    matmul_side: int | None = None
    with_forward: bool = True
    reference_accum_steps: int = 1
    reference_scan: bool = False


def benchmark(
    cases: Sequence[Case],
    *,
    peers: Sequence[str] = (),
    effort: Effort,
    env: Mapping[str, str] | None = None,
    report: Report = lambda line: None,
) -> list[Result]:
    """Measures cases of one workload and its peers, interleaved.

    Args:
      cases: of one model, batch, dtype, mesh and optimizer; they differ in settings.
      peers: some of PEERS.
      effort: how much is measured.
      env: environment variables of our workers, such as XLA_FLAGS.
      report: shows a line of progress.

    Raises:
      ConfigError: a case or a peer is wrong, or the cases have different workloads.
    """
    check_peers(peers)
    workload = _workload(cases)
    results = [Result(OURS, case) for case in cases] + [Result(peer, workload) for peer in peers]
    for result in results:
        _count_flops(result)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        report("drawing parameters")
        refused = _write_weights(workload, folder, peers, effort)
        turns = Turns(results, timeout_seconds=effort.timeout_seconds, report=report)
        stack.callback(turns.close)

        # --- Each contender alone
        for index, result in enumerate(results):
            if message := refused.get(result.contender):
                result.status, result.message = FAILED, message
            else:
                own_env = env if result.contender == OURS else None
                turns.add(index, Worker(result.contender, result.case, folder, env=own_env))

        # --- In turns
        with _matmul(workload, folder, effort) as measure_peak:
            turns.train(rounds=effort.rounds, turn_seconds=effort.turn_seconds, beside=measure_peak)
        outputs = {}
        if effort.with_forward:
            outputs = turns.outputs(folder)
            turns.forward(rounds=effort.rounds, turn_seconds=effort.turn_seconds)
        turns.close()

        # --- The reference
        updates = max((len(result.losses) for result in results), default=0)
        if updates:
            report("reference")
            peaks = measure_peak.peaks
            reference = _Reference.of(workload, folder, updates, effort)
            for index, result in enumerate(results):
                result.matmul_flops_per_second = max(peaks, default=None)
                _judge(result, reference, outputs.get(index))
    return results


def check_peers(peers: Sequence[str]) -> None:
    """Raises ConfigError if a peer is not known."""
    for peer in peers:
        if peer not in PEERS:
            raise ConfigError(f'--peers: there is no peer "{peer}". {did_you_mean(peer, PEERS)}')


def _workload(cases: Sequence[Case]) -> Case:
    workloads = {case.workload() for case in cases}
    if len(workloads) != 1:
        raise ConfigError("benchmark() takes cases of one model, batch, dtype, mesh, optimizer.")
    for case in cases:
        case.model_config()  # Raises ConfigError before anything is started.
    return workloads.pop()


def _count_flops(result: Result) -> None:
    model_config = result.case.model_config()
    result.forward_flops_per_image = forward_flops(model_config)
    result.train_flops_per_image = update_flops_per_image(model_config, result.case.config())


def _write_weights(
    workload: Case, folder: pathlib.Path, peers: Sequence[str], effort: Effort
) -> dict[str, str]:
    """Writes the parameters in a process of its own, on the CPU; returns who cannot read them."""
    on_cpu = {"JAX_PLATFORMS": "cpu"}
    with Worker("weights", workload, folder, env=on_cpu) as worker:
        try:
            return worker.do(
                "write", timeout_seconds=effort.timeout_seconds, contenders=list(peers)
            )
        except WorkerError as error:
            raise ConfigError(f"{workload.variant} cannot be built: {error}") from error


class _MeasurePeak:
    """Measures the peak of matrix products once for each call."""

    def __init__(self, worker: Worker, timeout_seconds: float):
        self._worker, self._timeout_seconds = worker, timeout_seconds
        self.peaks: list[float] = []

    def __call__(self) -> None:
        with contextlib.suppress(WorkerError):  # Then the table has no share of the peak.
            self.peaks.append(self._worker.do("measure", timeout_seconds=self._timeout_seconds))


@contextlib.contextmanager
def _matmul(workload: Case, folder: pathlib.Path, effort: Effort) -> Iterator[_MeasurePeak]:
    one_device = dataclasses.replace(workload, mesh=(1, 1, 1))
    with Worker("matmul", one_device, folder, side=effort.matmul_side) as worker:
        yield _MeasurePeak(worker, effort.timeout_seconds)


@dataclasses.dataclass(frozen=True)
class _Reference:
    """Losses and outputs of the reference, or why there are none."""

    losses: list[float]
    outputs: np.ndarray
    problem: str = ""

    @classmethod
    def of(cls, workload: Case, folder: pathlib.Path, updates: int, effort: Effort) -> "_Reference":
        """Runs it in a process of its own."""
        case = dataclasses.replace(
            workload.reference(),
            accum_steps=effort.reference_accum_steps,
            scan=effort.reference_scan,
        )
        limit = effort.timeout_seconds
        env = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
        with Worker(OURS, case, folder, env=env) as worker:
            try:
                worker.do("prepare", timeout_seconds=limit)
                steps = min(updates, effort.checked_updates or updates)
                losses = worker.do("train", timeout_seconds=limit, steps=steps)["losses"]
                path = folder / "reference.npy"
                worker.do("outputs", timeout_seconds=limit, path=str(path))
                return cls(losses, np.load(path))
            except WorkerError as error:
                return cls([], np.zeros((0, 0), np.float32), f"{error.kind}: {error}")


def _judge(result: Result, reference: _Reference, outputs: pathlib.Path | None) -> None:
    if not result.is_ok:
        return
    if reference.problem:
        result.status = FAILED
        result.message = f"no reference to compare with: {reference.problem}"
        return
    result.verdict = compare(
        result.case.dtype,
        losses=result.losses,
        reference_losses=reference.losses,
        outputs=None if outputs is None else np.load(outputs),
        reference_outputs=reference.outputs,
    )
    if result.verdict.problem:
        result.status, result.message = WRONG, result.verdict.problem
