"""Workers of one case take turns, so that they are timed under the same conditions: A B C A B C."""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vit_jax.benchmarking.contenders import Preparation
from vit_jax.benchmarking.process import Worker, WorkerError
from vit_jax.benchmarking.result import Result
from vit_jax.benchmarking.worker import OURS

WARM_UP_STEPS = 2  # Before the first timed step: the second shows how long a step takes.
_MAX_STEPS = 100  # Of a turn.
# A peer's shares of the time that is left: one that hangs, in an import or as it compiles, must
# leave enough to measure our model.
_PREPARATION_SHARE, _TASK_SHARE = 1 / 3, 1 / 2

Report = Callable[[str], None]


class Turns:
    """Drives the workers of results that belong together; one that fails drops out.

    Attributes:
      workers: those that still take turns, by the position of their result.
    """

    def __init__(self, results: Sequence[Result], *, timeout: Callable[..., float], report: Report):
        """Takes the results to fill in.

        Args:
          results: of all contenders.
          timeout: `Effort.timeout`: returns the seconds that a task may take.
          report: shows a line of progress.
        """
        self._results, self._report, self._timeout = results, report, timeout
        self.workers: dict[int, Worker] = {}

    def add(self, workers: Mapping[int, Worker], *, at_once: bool) -> None:
        """Lets workers prepare, and take part.

        Args:
          workers: by the position of their results; waited for in this order, so our model's come
            before the peers'.
          at_once: whether they prepare at the same time: that is faster, but each is slower.
        """
        self.workers.update(workers)
        if at_once:
            self._report("all contenders: preparing")
            for worker in workers.values():
                worker.tell("prepare")
        for index, worker in workers.items():
            if not at_once:
                self._report(f"{self._results[index].name}: preparing")
                worker.tell("prepare")
            if (fields := self._hear(index, peer_share=_PREPARATION_SHARE)) is not None:
                self._results[index].preparation = Preparation(**fields)

    def train(self, *, rounds: int, turn_seconds: float, beside: Callable[[], None]) -> None:
        """Times train steps; afterwards reads the peak memory.

        Args:
          rounds: number of turns of each worker.
          turn_seconds: a turn has as many steps as take this long, at least one; all workers make
            the same number.
          beside: is called once in each round.
        """
        for index in list(self.workers):
            for _ in range(WARM_UP_STEPS):
                self._train_turn(index, 1)
        slowest = max((self._results[i].train_seconds[-1] for i in self.workers), default=0.0)
        for result in self._results:
            result.train_seconds.clear()
        steps = steps_of_turn(slowest, turn_seconds)
        before = {index: self._do(index, "reset_peak") for index in list(self.workers)}
        for number in range(rounds):
            beside()
            for index in list(self.workers):
                self._report(f"{self._results[index].name}: training, round {number + 1}/{rounds}")
                self._train_turn(index, steps)
        for index in list(self.workers):
            if (peak := self._do(index, "peak")) is not None:
                result = self._results[index]
                result.steps_bytes = peak["device"] or peak["resident"]
                result.process_bytes = max(peak["resident"], before[index])

    def outputs(self, folder: pathlib.Path, *, at_once: bool) -> Mapping[int, pathlib.Path]:
        """Computes the outputs of each worker; returns the .npy files by position.

        `at_once`: as for `add`; the forward passes are compiled here.
        """
        paths = {index: folder / f"outputs-{index}.npy" for index in self.workers}
        for index in paths if at_once else ():
            self.workers[index].tell("outputs", path=str(paths[index]))
        for index, path in paths.items():
            if not at_once:
                self._report(f"{self._results[index].name}: outputs")
                self.workers[index].tell("outputs", path=str(path))
            self._hear(index)
        return {index: path for index, path in paths.items() if index in self.workers}

    def forward(self, *, rounds: int, turn_seconds: float) -> None:
        """Times forward passes: see `train`. Call `outputs` before."""
        for index in list(self.workers):
            for _ in range(2):
                self._forward_turn(index, 1)
        slowest = max((self._results[i].forward_seconds[-1] for i in self.workers), default=0.0)
        for result in self._results:
            result.forward_seconds.clear()
        steps = steps_of_turn(slowest, turn_seconds)
        for number in range(rounds):
            for index in list(self.workers):
                self._report(f"{self._results[index].name}: forward, round {number + 1}/{rounds}")
                self._forward_turn(index, steps)

    def _train_turn(self, index: int, steps: int) -> None:
        if (turn := self._do(index, "train", steps=steps)) is not None:
            self._results[index].losses.extend(turn["losses"])
            self._results[index].train_seconds.append(turn["seconds"] / steps)

    def _forward_turn(self, index: int, steps: int) -> None:
        if (turn := self._do(index, "forward", steps=steps)) is not None:
            self._results[index].forward_seconds.append(turn["seconds"] / steps)

    def _do(self, index: int, task: str, **arguments: Any) -> Any:
        """Returns the result of a task, or None: then the worker drops out."""
        if index not in self.workers:
            return None
        self.workers[index].tell(task, **arguments)
        return self._hear(index)

    def _hear(self, index: int, *, peer_share: float = _TASK_SHARE) -> Any:
        result = self._results[index]
        seconds = self._timeout() if result.contender == OURS else self._timeout(peer_share)
        try:
            return self.workers[index].hear(timeout_seconds=seconds)
        except WorkerError as error:
            result.status, result.message = error.kind, str(error)
            self.workers.pop(index).close(kill=True)
            self._report(f"{result.name}: {error.kind}: {error}")
            return None

    def close(self) -> None:
        """Ends the workers that are left."""
        while self.workers:
            self.workers.popitem()[1].close()


def steps_of_turn(step_seconds: float, turn_seconds: float) -> int:
    """Returns how many steps take `turn_seconds`: at least 1, and not very many."""
    if step_seconds <= 0:
        return 1
    return min(max(1, math.ceil(turn_seconds / step_seconds)), _MAX_STEPS)
