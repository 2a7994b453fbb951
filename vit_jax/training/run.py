"""Trains a model. Read from top to bottom.

A run starts from the first of these that exists: the newest readable checkpoint in the work
directory; the checkpoint `config.resume` (the whole state, step included); the model and the
parameters of `config.init_from`, one of our checkpoints or a published one
(vit_jax.training.init_from); random parameters.

The order of the loop is a contract: the evaluations and then the checkpoint that are due at step t
see the state after exactly t updates, before the batch of step t is drawn. That batch, its
augmentation and its dropout are functions of (config.seed, t) alone.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from vit_jax.checkpoints.store import Store
from vit_jax.config import validate
from vit_jax.data.bad_examples import BadExamples
from vit_jax.errors import ConfigError, ExitCode
from vit_jax.optim import train_loss_difference
from vit_jax.parallel import mesh as meshes
from vit_jax.parallel import processes
from vit_jax.parallel.compilation import enable_compilation_cache, release_unused_memory
from vit_jax.parallel.watch import Watch
from vit_jax.rundir import extension, failure
from vit_jax.rundir import workdir as workdirs
from vit_jax.rundir.agreement import agree
from vit_jax.rundir.lock import lock
from vit_jax.storage import as_path
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.training.cached_features import cache_features
from vit_jax.training.experiment import Experiment, Program, open_training_data
from vit_jax.training.init_from import inherit_model
from vit_jax.training.mesh_choice import make_mesh
from vit_jax.training.observer import Observer, observe
from vit_jax.training.reports import conclusion, run_summary
from vit_jax.training.state import TrainState, starting_point


def train(
    config: FrozenConfigDict,
    workdir: epath.PathLike,
    *,
    allow_config_change: bool = False,
    extend: bool = False,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]  # Untyped in JAX.
) -> int:
    """Trains a config to its end; resumes from the work directory if it has checkpoints.

    Args:
      config: has the keys of `vit_jax.config.base_config`.
      workdir: the work directory; created if it does not exist.
      allow_config_change: continue although the work directory was started with another config.
      extend: continue if only the length of the run differs, and is larger: what that means is said
        in vit_jax.rundir.extension.
      devices: the devices to train on; None: all.

    Returns:
      The exit code: 0 if the run is complete, 75 if it was stopped by a signal and has saved.

    Raises:
      VitJaxError: the config, the data or a checkpoint is wrong, or a loss is not finite.

    Example:
      >>> config = load_config("quickstart", {"total_steps": 2, "model.depth": 1})
      >>> exit_code = train(config, "runs/two-steps")
      model ...
      >>> int(exit_code)
      0
    """
    with ExitStack() as stack:
        # --- The experiment and its devices
        workdir = as_path(workdir, name="--workdir")
        stop_asked = stack.enter_context(processes.stop_signals(second_interrupts=True))
        validate(config)
        watch = stack.enter_context(Watch(config.timeout_seconds))
        config = inherit_model(config, workdir)
        source = open_training_data(config)
        mesh, mesh_reason = _mesh(config, devices, num_classes=source.num_classes)
        stack.enter_context(jax.set_mesh(mesh))
        experiment = Experiment.of(config, source, mesh, mesh_reason)
        config, total = experiment.config, experiment.total_steps
        program = experiment.program()
        clock = experiment.clock()
        flag = {value: processes.flag_array(value, mesh) for value in (False, True)}

        # --- The initial or restored state
        claim = _Claim(experiment, workdir)
        store = stack.enter_context(
            claim.acquire(allow_config_change=allow_config_change, extend=extend)
        )
        watch.at("the initial state")
        with clock.span("init"):
            # XLA compiles the update while a random state is made. A checkpoint may be refused,
            # and the process would not end before XLA does.
            others = config.init_from, config.resume, config.cache_features
            compiling = (
                None if store.steps() or any(others) else experiment.compile(program, flag[False])
            )
            state, loop_state, origin = _begin(experiment, program, store)
            if loop_state is not None:
                clock.load_state_dict(loop_state.get("clock"))
            start = int(state.step)
            # After `config.resume` the metric files here, if any, belong to another run.
            resumed = loop_state if store.steps() else None
            if config.cache_features:
                head, experiment = cache_features(experiment, state.params, progress=watch.iterate)
                program = experiment.program(head)

        # --- Batches and reports
        watch.at("the first batch")
        resume_step = None if resumed is None else start
        bad_examples = stack.enter_context(
            BadExamples(workdir, on_bad=config.data.on_bad, resume_step=resume_step)
        )
        batches = stack.enter_context(
            experiment.batches(start, on_bad=bad_examples.training_callback(experiment.source))
        )
        claim.write(experiment)  # The first batch is readable: the run can begin.
        observer = stack.enter_context(
            observe(
                experiment,
                workdir,
                store=store,
                watch=watch,
                clock=clock,
                bad_examples=bad_examples,
                start=start,
                resumed=resumed,
                origin=origin,
            )
        )
        if note := claim.describe_extension(start):
            observer.progress.note(note)
        # On an error this process ends before it closes anything that waits for the others.
        stack.push(watch.exit_on_error)
        stack.push(partial(failure.on_exit, workdir))  # A run that has begun keeps its error.

        # --- The loop: at the top of each turn, the state is the one after `step` updates
        step, stopping, pending, compiled = start, False, None, None
        stack.enter_context(jax.transfer_guard("disallow"))
        for step in range(start, total + 1):
            log_due = step == total or step % config.log.every_steps == 0
            evals_due, save_due = (
                experiment.evals_due(step),
                stopping or experiment.save_is_due(step),
            )
            if step > start and (evals_due or save_due):
                # Nothing is saved or evaluated before its metrics are known to be finite.
                stopping |= observer.report(step, pending, log=log_due or bool(evals_due))
                pending = None
                measured = observer.evaluate(step, state.ema or state.params)
                observer.writer.commit(step)
                if save_due or stopping:
                    observer.save(step, state, measured)
            if step == total or stopping:
                break

            watch.at(f"the batch of update {step + 1}")
            with clock.span("data"):
                batch = next(batches)
            stop = flag[stop_asked() > 0]
            if compiled is None:
                watch.at("the compilation of the update")
                # A function that is compiled ahead of time is never compiled again.
                with clock.span("compile"), observer.progress.compiling():
                    compiled = (compiling or experiment.compile(program, stop)).result()
                    release_unused_memory()
            watch.at(f"update {step + 1}")
            with clock.span("step"), observer.profiler.step(step):
                state, metrics = compiled(state, batch, stop)
            observer.profiler.after(step, metrics)
            clock.count(config.batch_size)
            if pending is not None:  # Reports the previous update while this one is computed.
                stopping = observer.report(step, pending, log=log_due)
                observer.writer.commit(step)
            pending = metrics

        # --- The last save and the summary
        watch.at("the last save")
        with clock.span("save"):
            store.finish()
        return _finish(observer, workdir, step)


def _mesh(
    config: FrozenConfigDict,
    devices: Sequence[jax.Device] | None,  # pyright: ignore[reportInvalidTypeForm]  # Untyped in JAX.
    *,
    num_classes: int,
) -> tuple[Mesh, str]:
    """Sets the compilation cache of a config; returns its mesh, and how that was chosen or ""."""
    enable_compilation_cache(config.log.compilation_cache)
    mesh, reason = make_mesh(config, num_classes=num_classes, devices=devices)
    meshes.check_batch_size(config.batch_size, accum_steps=config.optim.accum_steps, mesh=mesh)
    return mesh, reason


def _begin(
    experiment: Experiment, program: Program, store: Store
) -> tuple[TrainState, dict[str, Any] | None, str]:
    """Returns the first state, the loop state of its checkpoint or None, and its origin or ""."""
    state, loop_state, origin = starting_point(
        experiment.config,
        store,
        program.init,
        program.shapes,
        experiment.model_config,
        experiment.mesh,
    )
    if (step := int(state.step)) > experiment.total_steps:
        raise ConfigError(
            f"The restored state is of step {step:,}, beyond the end of this run at "
            f"{experiment.total_steps:,}: raise total_steps, _epochs or _examples."
        )
    return state, loop_state, origin


def _finish(observer: Observer, workdir: epath.Path, step: int) -> ExitCode:
    """Prints a summary and returns the exit code; draws the curves of a complete run."""
    total = observer.experiment.total_steps
    observer.progress.close()
    if step < total:
        observer.progress.note(
            f"Stopped and saved at step {step:,} of {total:,}: the same command resumes the run."
        )
        return ExitCode.STOPPED
    observer.watch.at("the curves")
    observer.writer.flush()
    if jax.process_index() == 0 and read_jsonl(workdir / "metrics.jsonl"):
        from vit_jax.analysis import figures

        figures.curves(
            workdir / "metrics.jsonl",
            workdir / "curves.png",
            train_loss=train_loss_difference(observer.experiment.config),
        )
    observer.progress.note(conclusion(workdir, observer.clock, total))
    return ExitCode.DONE


class _Claim:
    """A run's claim to its work directory: one run at a time, with one config and data set."""

    def __init__(self, experiment: Experiment, workdir: epath.Path):
        self._workdir, self._config = workdir, experiment.config
        self._remat: str | None = getattr(experiment.model_config, "remat", None)
        self._mesh_sizes = dict(experiment.mesh.shape)
        self._extended: FrozenConfigDict | None = None  # The config before it was extended.
        evals = {name: evaluation.fingerprint for name, evaluation in experiment.evals.items()}
        self._dataset = workdirs.describe_dataset(
            experiment.source, num_classes=experiment.model_config.num_classes, evals=evals
        )

    @contextlib.contextmanager
    def acquire(self, *, allow_config_change: bool, extend: bool) -> Iterator[Store]:
        """Creates the directory, locks it, and opens its checkpoints.

        Raises:
          VitJaxError: another run holds it or began in it, or the processes disagree.
        """
        workdirs.make(self._workdir)
        checkpoint = self._config.checkpoint
        with ExitStack() as stack:
            if jax.process_index() == 0:
                stack.enter_context(lock(self._workdir))
            agree(
                self._workdir,
                self._config,
                self._dataset,
                remat=self._remat,
                mesh=self._mesh_sizes,
            )
            self._extended = workdirs.check_claim(
                self._workdir,
                self._config,
                self._dataset,
                allow_config_change=allow_config_change,
                extend=extend,
            )
            yield stack.enter_context(
                Store(
                    self._workdir / workdirs.CHECKPOINTS,
                    keep_last=checkpoint.keep_last,
                    keep_every_steps=checkpoint.keep_every_steps,
                    keep_steps=checkpoint.keep_steps,
                    best_metric=checkpoint.best_metric,
                    best_mode=checkpoint.best_mode,
                )
            )

    def describe_extension(self, step: int) -> str:
        """Returns what extending the run at a step means; "" if it is not extended."""
        if self._extended is None:
            return ""
        examples = self._dataset["num_examples"]
        return extension.describe(self._extended, self._config, num_examples=examples, step=step)

    def write(self, experiment: Experiment) -> None:
        """Writes the files that describe the run."""
        if jax.process_index() == 0:
            workdirs.claim(self._workdir, self._config, self._dataset, run_summary(experiment))
            failure.forget(self._workdir)
