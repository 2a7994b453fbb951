"""The benchmark of one case. Read from top to bottom.

Every contender has a process of its own and the same parameters and batch. They prepare one after
another, then train in turns, then compute outputs and forward passes in turns. A reference makes
the same updates in plain float32: at last, or first where the number of its updates is given.
Whoever has other losses or outputs has no throughput.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vit_jax.benchmarking.case import Case
from vit_jax.benchmarking.common import Common, Reference
from vit_jax.benchmarking.inputs import FORMATS
from vit_jax.benchmarking.process import Worker, WorkerError
from vit_jax.benchmarking.result import WRONG, Result
from vit_jax.benchmarking.turns import Report, Turns
from vit_jax.benchmarking.verdict import compare
from vit_jax.benchmarking.worker import FAILED, OURS
from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.models import forward_flops, update_flops_per_image

PEERS = tuple(FORMATS)
_SHARE_OF_TASK = 2 / 3  # Of the time that is left; see `Effort.timeout`.


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
      rounds: turns of each contender.
      turn_seconds: a turn has as many steps as take this long, at least one.
      checked_updates: how many updates the reference makes; 0: all.
      timeout_seconds: of a task of a worker, such as its preparation.
      deadline: of `time.monotonic`, after which no task goes on; a task may take a share of the
        time that is left (see `timeout`), so that one that hangs leaves some for the others and
        the reference. None: none.
      matmul_side: side of the matrices of the peak; None: that of the platform.
      with_matmul: whether the peak of matrix products is measured.
      with_forward: whether forward passes are timed and outputs compared.
      at_once: whether contenders prepare at the same time.
      reference_accum_steps: microbatches of the reference, whose activations in float32 take
        several times the memory of the contenders'.
      reference_scan: whether the reference loops over its blocks, to compile in less time.
    """

    rounds: int = 5
    turn_seconds: float = 0.5
    checked_updates: int = 0
    timeout_seconds: float = 3600.0
    deadline: float | None = None
    matmul_side: int | None = None
    with_matmul: bool = True
    with_forward: bool = True
    at_once: bool = False
    reference_accum_steps: int = 1
    reference_scan: bool = False

    def timeout(self, share: float = _SHARE_OF_TASK) -> float:
        """Returns the seconds that a task that begins now may take.

        Args:
          share: of the time until the deadline; `Turns` gives a peer less than our model.
        """
        if self.deadline is None:
            return self.timeout_seconds
        left = self.deadline - time.monotonic()
        return max(0.0, min(self.timeout_seconds, share * left))


def benchmark(
    cases: Sequence[Case],
    *,
    peers: Sequence[str] = (),
    effort: Effort,
    env: Mapping[str, str] | None = None,
    common: Common | None = None,
    report: Report = lambda line: None,
) -> list[Result]:
    """Measures cases of one workload and its peers, interleaved.

    Args:
      cases: of one model, batch, dtype, mesh and optimizer; they differ in settings.
      peers: some of PEERS.
      effort: how much is measured.
      env: environment variables of our workers, such as XLA_FLAGS.
      common: parameters and references of earlier calls, which are taken from it again; None: none
        are kept.
      report: shows a line of progress.

    Raises:
      ConfigError: a case or a peer is wrong, or the cases have different workloads.
    """
    check_peers(peers)
    workload = _workload(cases)
    results = [Result(OURS, case) for case in cases] + [Result(peer, workload) for peer in peers]
    for result in results:
        _count_flops(result)
    with contextlib.ExitStack() as stack:
        common = common or stack.enter_context(Common())
        report("drawing parameters")
        weights = common.weights(workload, peers, timeout_seconds=effort.timeout())

        def make_reference(updates: int) -> Reference:
            report("reference")
            case = _reference_case(workload, effort)
            return common.reference(case, updates, timeout_seconds=effort.timeout())

        if effort.checked_updates:  # First: a contender that hangs may use up the time.
            make_reference(effort.checked_updates)  # `common` keeps it.
        turns = Turns(results, timeout=effort.timeout, report=report)
        stack.callback(turns.close)

        # --- Each contender alone
        workers = {}
        for index, result in enumerate(results):
            if message := weights.refused.get(result.contender):
                result.status, result.message = FAILED, message
                continue
            own_env = env if result.contender == OURS else None
            workers[index] = Worker(result.contender, result.case, weights.folder, env=own_env)
        turns.add(workers, at_once=effort.at_once)

        # --- In turns
        with _matmul(workload, weights.folder, effort) as matmul:
            turns.train(rounds=effort.rounds, turn_seconds=effort.turn_seconds, beside=matmul)
        outputs = {}
        if effort.with_forward:
            outputs = turns.outputs(weights.folder, at_once=effort.at_once)
            turns.forward(rounds=effort.rounds, turn_seconds=effort.turn_seconds)
        turns.close()

        # --- The reference
        if updates := max((len(each.losses) for each in results if each.is_ok), default=0):
            reference = make_reference(min(updates, effort.checked_updates or updates))
            for index, result in enumerate(results):
                result.matmul_flops_per_second = max(matmul.peaks, default=None)
                _judge(result, reference, outputs.get(index))
    return results


def _reference_case(workload: Case, effort: Effort) -> Case:
    return dataclasses.replace(
        workload.reference(),
        accum_steps=effort.reference_accum_steps,
        scan=effort.reference_scan,
    )


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


class _MeasurePeak:
    """Measures the peak of matrix products once for each call."""

    def __init__(self, worker: Worker | None, effort: Effort):
        self._worker, self._effort = worker, effort
        self.peaks: list[float] = []

    def __call__(self) -> None:
        if self._worker is not None:
            try:
                peak = self._worker.do("measure", timeout_seconds=self._effort.timeout())
                self.peaks.append(peak)
            except WorkerError:  # Then the table has no share of the peak.
                self._worker = None


@contextlib.contextmanager
def _matmul(workload: Case, folder: pathlib.Path, effort: Effort) -> Iterator["_MeasurePeak"]:
    if not effort.with_matmul:
        yield _MeasurePeak(None, effort)
        return
    one_device = dataclasses.replace(workload, mesh=(1, 1, 1))
    with Worker("matmul", one_device, folder, side=effort.matmul_side) as worker:
        yield _MeasurePeak(worker, effort)


def _judge(result: Result, reference: Reference, outputs: pathlib.Path | None) -> None:
    if not result.is_ok:
        return
    if reference.problem:
        result.status = FAILED
        result.message = f"no reference to compare with: {reference.problem}"
        return
    result.reference = reference.contender
    result.verdict = compare(
        result.case.dtype,
        losses=result.losses,
        reference_losses=reference.losses,
        outputs=None if outputs is None else np.load(outputs, allow_pickle=False),
        reference_outputs=reference.outputs,
    )
    if result.verdict.problem:
        result.status, result.message = WRONG, result.verdict.problem
