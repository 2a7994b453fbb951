"""Trains a Vision Transformer. The whole story, top to bottom.

    python -m vit_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

The same command goes on where a killed run stopped. A run starts from the first of these that
there is: the newest readable checkpoint in the work directory; the checkpoint `config.resume`
(the whole state, step included); the model and the parameters of `config.init_from`, a checkpoint
of ours or a published one (vit_jax.training.init_from); fresh parameters.

The order of the loop is a contract: what is due at step t (evaluations, then the checkpoint) sees
the state after exactly t updates, before the batch of step t is drawn. That batch, its
augmentation and its dropout are functions of (config.seed, t) alone.

Exit codes: 0 finished; 2 an error that the message explains; 75 told to stop (SIGTERM, SIGINT)
and saved; 76 nothing happened for `config.timeout_seconds`, or another process of the run is lost.
After 75 and 76 the same command goes on.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import jax
from absl import flags
from etils import epath
from ml_collections import FrozenConfigDict

from vit_jax import cli
from vit_jax.analysis import figures
from vit_jax.checkpoints.store import Store
from vit_jax.config import check_best, validate
from vit_jax.data import pipeline, transforms
from vit_jax.data.bad_examples import BadExamples
from vit_jax.data.sources import open_source
from vit_jax.data.subset import few_shot, random_part
from vit_jax.errors import ConfigError, ExitCode
from vit_jax.evals.build import build_evals
from vit_jax.models import build, model_config, param_shapes, update_flops_per_image
from vit_jax.optim import make_optimizer, make_schedule, total_steps
from vit_jax.parallel import mesh as meshes
from vit_jax.parallel import processes
from vit_jax.parallel.compilation import enable_compilation_cache
from vit_jax.parallel.watch import Watch
from vit_jax.rundir import workdir as workdirs
from vit_jax.rundir.agreement import agree
from vit_jax.rundir.lock import lock
from vit_jax.storage import as_path
from vit_jax.telemetry.clock import Clock
from vit_jax.telemetry.devices import peak_flops
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.telemetry.profiler import StepProfiler
from vit_jax.telemetry.progress import Progress
from vit_jax.telemetry.writers import MetricWriter
from vit_jax.training import cached_features
from vit_jax.training.init_from import inherit_model
from vit_jax.training.reports import check_finite, conclusion, describe, numbers
from vit_jax.training.state import make_init, starting_point, state_layout
from vit_jax.training.update import make_train_step


def train(
    config: FrozenConfigDict,
    workdir: epath.PathLike,
    *,
    allow_config_change: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> int:
    """Runs a config to its end, from wherever the work directory has got to.

    Args:
      config: of `vit_jax.config.base_config`'s form.
      workdir: of the run; made if it is not there.
      allow_config_change: go on although the work directory was started with another config.
      devices: to train on, in place of all of them.

    Returns:
      The exit code: 0 if the run is complete, 75 if it was told to stop and has saved.

    Raises:
      VitJaxError: the config, the data or a checkpoint is wrong, or a loss is not finite.
    """
    with ExitStack() as stack:
        # --- Devices, data, model, optimizer

        workdir = as_path(workdir, name="--workdir")
        stop_asked = stack.enter_context(processes.stop_signals())
        validate(config)
        watch = stack.enter_context(Watch(config.timeout_seconds))
        is_main = jax.process_index() == 0
        if config.log.compilation_cache:
            enable_compilation_cache(config.log.compilation_cache)
        mesh = meshes.make_mesh(config.mesh, devices=devices)
        stack.enter_context(jax.set_mesh(mesh))
        meshes.check_batch_size(config.batch_size, accum_steps=config.optim.accum_steps, mesh=mesh)

        config = inherit_model(config, workdir)
        source = open_source(config.data, split=config.data.split)
        source = random_part(source, config.data.examples, seed=config.seed)
        source = few_shot(source, config.data.shots, seed=config.seed)
        cfg = model_config(config.model, num_classes=source.num_classes)
        if cfg.num_classes < source.num_classes:
            raise ConfigError(
                f"model.num_classes is {cfg.num_classes}, but {source.name} has "
                f"{source.num_classes} classes."
            )
        transform = transforms.build(
            config.data.train_transforms,
            image_size=cfg.image_size,
            channels=cfg.channels,
            key="data.train_transforms",
        )
        evals = build_evals(config, cfg, mesh, class_names=source.class_names)

        total = total_steps(config, len(source))
        check_best(config, total_steps=total)
        schedule = make_schedule(
            config.optim.schedule,
            total_steps=total,
            batch_size=config.batch_size,
            num_examples=len(source),
        )
        tx = make_optimizer(config.optim, param_shapes(cfg), schedule=schedule)
        clock = Clock(
            num_devices=mesh.size,
            flops_per_example=update_flops_per_image(cfg, config),
            peak_flops=peak_flops(mesh.devices.flat[0].device_kind),
        )

        # --- The work directory: whose is it, and where has it got to?

        workdirs.make(workdir)
        if is_main:
            stack.enter_context(lock(workdir))
        dataset = workdirs.describe_dataset(
            source,
            num_classes=cfg.num_classes,
            evals={name: evaluation.fingerprint for name, evaluation in evals.items()},
        )
        agree(workdir, config, dataset)
        workdirs.check_claim(workdir, config, dataset, allow_config_change=allow_config_change)
        store = stack.enter_context(
            Store(
                workdir / workdirs.CHECKPOINTS,
                keep_last=config.checkpoint.keep_last,
                keep_every_steps=config.checkpoint.keep_every_steps,
                keep_steps=config.checkpoint.keep_steps,
                best_metric=config.checkpoint.best_metric,
                best_mode=config.checkpoint.best_mode,
            )
        )

        # --- The state, and the step that changes it

        watch.at("the initial state")
        with clock.span("init"):
            init = make_init(config, build(cfg), tx)
            layout = state_layout(jax.eval_shape(init, jax.random.key(0)), mesh)
            state, chrono = starting_point(config, store, init, layout, cfg, mesh)
            start = int(state.step)
            if start > total:
                raise ConfigError(
                    f"The state to go on from is of step {start:,}, beyond the end of this run at "
                    f"{total:,}: raise total_steps, _epochs or _examples."
                )
            if chrono is not None:
                clock.load_state_dict(chrono.get("clock"))
            # After `config.resume` there are lines and reports of another run, if any, here.
            resumed = start if chrono is not None and store.steps() else None
            model = build(cfg)
            if config.cache_features:
                model, source, transform, evals = cached_features.cache_features(
                    config, cfg, source, evals, state.params, mesh, over=watch.over
                )
        train_step = jax.jit(
            make_train_step(config, model, tx, schedule),
            donate_argnums=0,
            out_shardings=(layout, meshes.replicated(mesh)),
        )

        # --- Batches in, reports out

        watch.at("the first batch")
        bad_examples = stack.enter_context(
            BadExamples(
                workdir,
                on_bad=config.data.on_bad,
                resume_step=resumed,
            )
        )
        batches = stack.enter_context(
            pipeline.train_batches(
                source,
                transform,
                batch_size=config.batch_size,
                seed=config.seed,
                start_step=start,
                sharding=meshes.batch_sharding(mesh),
                workers=config.data.workers,
                threads=config.data.threads,
                prefetch=config.data.prefetch,
                on_bad=bad_examples.of_training(source),
            )
        )
        if is_main:  # Now that it can begin.
            workdirs.claim(workdir, config, dataset, numbers(config, cfg, source, mesh, total))
        writer = stack.enter_context(
            MetricWriter(
                workdir,
                resume_step=resumed,
                tensorboard=config.log.tensorboard,
                wandb_project=config.log.wandb_project,
                config=workdirs.config_to_json(config),
                last_line=None if resumed is None else chrono.get("last_line"),
                is_main=is_main,
            )
        )
        progress = stack.enter_context(
            Progress(
                total_steps=total,
                start_step=start,
                steps_per_epoch=len(source) / config.batch_size,
                is_main=is_main,
            )
        )
        profiler = stack.enter_context(StepProfiler(workdir, steps=config.log.profile_steps))
        progress.note(describe(config, cfg, source, mesh, start=start, total=total))

        # The others are told of an error before anything is closed that waits for them.
        stack.push(watch.tell)
        flag = {value: processes.flag_array(value, mesh) for value in (False, True)}
        stopping = False
        pending = None  # Metrics of the last update, perhaps still being computed.
        compiled = None

        def settle(step: int, *, log: bool) -> bool:
            """Waits for the update that led to `step`; was any process told to stop?"""
            with clock.span("step"):
                values = jax.device_get(pending)
            stop = bool(values.pop("stop"))
            check_finite(values, step, config, source, store)
            if log:
                timing = clock.summary() | clock.window()
                writer.write(step, values)
                writer.write_timing(step, timing)
                progress.log(
                    step,
                    loss=float(values["train/loss"]),
                    lr=float(values["train/lr"]),
                    images_per_second=timing.get("speed/img_per_s"),
                )
            else:
                progress.update(step)
            return stop

        # --- The loop: at the top of each turn, the state is the one after `step` updates

        stack.enter_context(jax.transfer_guard("disallow"))
        for step in range(start, total + 1):
            log_due = step == total or step % config.log.every_steps == 0
            evals_due = [name for name in evals if evals[name].due(step, total)]
            save_due = (
                stopping
                or step == total
                or step % config.checkpoint.every_steps == 0
                or step in config.checkpoint.keep_steps
            )
            if step > start and (evals_due or save_due):
                # Nothing is saved or measured before it is known to be finite.
                stopping = settle(step, log=log_due or bool(evals_due)) or stopping
                pending = None
                measured = {}
                with clock.span("eval"):
                    for name in evals_due:
                        place = f"the evaluation {name} after {step} updates"
                        values = evals[name].run(
                            state.ema or state.params,
                            partial(watch.over, place=place),
                            bad_examples.of_evaluation(step),
                        )
                        measured |= {f"{name}/{key}": value for key, value in values.items()}
                if measured:
                    writer.write(step, measured)
                writer.commit(step)
                if save_due or stopping:
                    watch.at(f"the save after {step} updates")
                    with clock.span("save"):
                        writer.flush()  # The metrics are never behind a checkpoint,
                        bad_examples.flush()  # nor is the report of bad examples.
                        store.save(
                            step,
                            {
                                "params": state.params,
                                "opt_state": state.opt_state,
                                "ema": state.ema,
                            },
                            {
                                "step": step,
                                "clock": clock.state_dict(),
                                "last_line": writer.last_step,
                            },
                            metrics=measured,
                        )
            if step == total or stopping:
                break

            watch.at(f"the batch of update {step + 1}")
            with clock.span("data"):
                batch = next(batches)
            stop = flag[stop_asked()]
            if compiled is None:
                watch.at("the compilation of the update")
                # Ahead of time: a compiled function cannot be compiled a second time.
                with clock.span("compile"):
                    compiled = train_step.lower(state, batch, stop).compile()
            watch.at(f"update {step + 1}")
            with clock.span("step"), profiler.step(step):
                state, metrics = compiled(state, batch, stop)
            profiler.after(step, metrics)
            clock.count(config.batch_size)
            if pending is not None:  # The update before this one, while this one is computed.
                stopping = settle(step, log=log_due)
                writer.commit(step)
            pending = metrics

        # --- What is left behind

        watch.at("the last save")
        with clock.span("save"):
            store.finish()
        if step < total:
            progress.note(
                f"Stopped and saved at step {step:,} of {total:,}: run it again to go on."
            )
            return ExitCode.STOPPED
        watch.at("the curves")
        writer.flush()
        if is_main and read_jsonl(workdir / "metrics.jsonl"):
            figures.curves(workdir / "metrics.jsonl", workdir / "curves.png")
        progress.note(conclusion(workdir, clock, total))
        return 0


if __name__ == "__main__":
    _CONFIG = cli.define_config()
    flags.declare_key_flag("config")  # So that --help shows it.
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if it is not there.")
    _ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
        "allow_config_change", False, "Go on in a work directory that was started otherwise."
    )
    flags.mark_flags_as_required(["config", "workdir"])

    def main(argv: Sequence[str]) -> int:
        cli.no_arguments(argv)
        processes.start()
        return train(
            cli.read_config(_CONFIG),
            as_path(_WORKDIR.value, name="--workdir"),
            allow_config_change=_ALLOW_CONFIG_CHANGE.value,
        )

    cli.run(main)
