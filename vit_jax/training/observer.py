"""Writes the metrics and checkpoints of a run, and runs its evaluations.

The order is a contract: the evaluations due at step t run, then the metrics are flushed, then the
state is saved. So a metrics file is never behind a checkpoint.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
from etils import epath
from jaxtyping import PyTree

from vit_jax.checkpoints.store import Store
from vit_jax.data.bad_examples import BadExamples
from vit_jax.evals.classification import TOP
from vit_jax.parallel.watch import Watch
from vit_jax.rundir import workdir as workdirs
from vit_jax.telemetry.clock import Clock
from vit_jax.telemetry.profiler import StepProfiler
from vit_jax.telemetry.progress import Progress
from vit_jax.telemetry.writers import MetricWriter
from vit_jax.training.experiment import Experiment
from vit_jax.training.final_similarity import FinalSimilarity
from vit_jax.training.reports import check_finite, describe
from vit_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Observer:
    """Reports, evaluates and saves a run."""

    experiment: Experiment
    store: Store
    watch: Watch
    clock: Clock
    bad_examples: BadExamples
    similarity: FinalSimilarity
    writer: MetricWriter
    progress: Progress
    profiler: StepProfiler

    def report(self, step: int, metrics: PyTree, *, log: bool) -> bool:
        """Waits for the update that led to `step`, and reports its metrics.

        Args:
          step: number of updates made.
          metrics: the metrics of the update; may still be in computation.
          log: whether the metrics are written.

        Returns:
          Whether any process received a stop signal.

        Raises:
          NonFiniteError, DataError: see `vit_jax.training.reports.check_finite`.
        """
        self.watch.at(f"the result of update {step}")
        with self.clock.span("step"):
            values = jax.device_get(metrics)
        stop = bool(values.pop("stop"))
        check_finite(values, step, self.experiment.config, self.experiment.source, self.store)
        if not log:
            self.progress.update(step)
            return stop
        timing = self.clock.summary() | self.clock.window()
        self.writer.write(step, values)
        self.writer.write_timing(step, timing)
        self.progress.log(
            step,
            loss=float(values["train/loss"]),
            lr=float(values["train/lr"]),
            images_per_second=timing.get("speed/img_per_s"),
        )
        return stop

    def evaluate(self, step: int, params: PyTree) -> dict[str, float]:
        """Runs the evaluations due after `step` updates; writes and returns their values."""
        measured = {}
        with self.clock.span("eval"):
            for name in self.experiment.evals_due(step):
                before = time.monotonic()
                with self.progress.activity(f"evaluating {name}"):
                    values = self.experiment.evals[name].run(
                        params,
                        partial(
                            self.watch.iterate,
                            location=f"the evaluation {name} after {step} updates",
                        ),
                        self.bad_examples.evaluation_callback(step),
                        partial(self.similarity.keep, name, step),
                    )
                shown = dict(values)
                if self.experiment.model_config.num_classes <= TOP:
                    shown.pop("top5", None)  # Every example is right.
                self.progress.evaluation(name, shown, seconds=time.monotonic() - before)
                measured |= {f"{name}/{key}": value for key, value in values.items()}
        if measured:
            self.writer.write(step, measured)
        return measured

    def save(self, step: int, state: TrainState, measured: dict[str, float]) -> None:
        """Saves the state after `step` updates, after flushing the metrics."""
        self.watch.at(f"the save after {step} updates")
        with self.clock.span("save"):
            self.writer.flush()
            self.bad_examples.flush()
            self.store.save(
                step,
                {"params": state.params, "opt_state": state.opt_state, "ema": state.ema},
                {
                    "step": step,
                    "clock": self.clock.state_dict(),
                    "last_line": self.writer.last_step,
                },
                metrics=measured,
            )


@contextlib.contextmanager
def observe(
    experiment: Experiment,
    workdir: epath.Path,
    *,
    store: Store,
    watch: Watch,
    clock: Clock,
    bad_examples: BadExamples,
    start: int,
    resumed: dict[str, Any] | None,
    origin: str,
) -> Iterator[Observer]:
    """Opens the metric files of a run, prints a description of it, and yields its observer.

    `start` is the number of updates made before this process started. `resumed` is the loop state
    of the checkpoint in this work directory, None without a checkpoint. `origin` says what was
    taken from `init_from`; "" if nothing was.
    """
    config, is_main = experiment.config, jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(
            MetricWriter(
                workdir,
                resume_step=None if resumed is None else start,
                tensorboard=config.log.tensorboard,
                wandb_project=config.log.wandb_project,
                config=workdirs.config_to_json(config),
                last_line=None if resumed is None else resumed.get("last_line"),
                is_main=is_main,
            )
        )
        progress = stack.enter_context(
            Progress(
                total_steps=experiment.total_steps,
                start_step=start,
                steps_per_epoch=len(experiment.source) / config.batch_size,
                is_main=is_main,
            )
        )
        profiler = stack.enter_context(StepProfiler(workdir, steps=config.log.profile_steps))
        progress.note(describe(experiment, start=start, origin=origin))
        yield Observer(
            experiment,
            store,
            watch,
            clock,
            bad_examples,
            FinalSimilarity(workdir, experiment),
            writer,
            progress,
            profiler,
        )
