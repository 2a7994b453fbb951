"""Trains a Vision Transformer. The whole story, top to bottom.

    python -m vit_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

The same command goes on where a killed run stopped. A run starts from the first of these that
there is: the newest readable checkpoint in the work directory; the checkpoint `config.resume`
(the whole state, step included); the parameters of `config.init_from`; fresh parameters.

The order of the loop is a contract: what is due at step t (evaluations, then the checkpoint) sees
the state after exactly t updates, before the batch of step t is drawn. That batch, its
augmentation and its dropout are functions of (config.seed, t) alone.

Exit codes: 0 finished; 2 an error that the message explains; 75 told to stop (SIGTERM, SIGINT)
and saved: run the same command again to go on.
"""

import pathlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import jax
import optax
from absl import flags
from jaxtyping import Array
from ml_collections import FrozenConfigDict

from vit_jax import cli
from vit_jax import workdir as workdirs
from vit_jax.analysis import figures
from vit_jax.checkpoints.store import Store
from vit_jax.config import validate
from vit_jax.data import mixing, pipeline, transforms
from vit_jax.data.sources import open_source
from vit_jax.errors import ConfigError
from vit_jax.evals.build import build_evals
from vit_jax.models import Vit, param_shapes, train_flops, vit_config
from vit_jax.optim import (
    ema,
    frozen_mask,
    loss_by_name,
    make_optimizer,
    make_schedule,
    total_steps,
    value_and_grad,
)
from vit_jax.parallel import mesh as meshes
from vit_jax.parallel import processes
from vit_jax.reports import check_finite, conclusion, describe
from vit_jax.state import TrainState, make_init, starting_point, state_layout
from vit_jax.telemetry.clock import Clock
from vit_jax.telemetry.devices import peak_flops
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.telemetry.profiler import StepProfiler
from vit_jax.telemetry.progress import Progress
from vit_jax.telemetry.writers import MetricWriter

EXIT_STOPPED = 75  # EX_TEMPFAIL: a scheduler may requeue the job.

# ------------------------------------------------------------------------------- one update


def make_train_step(
    config: FrozenConfigDict,
    model: Vit,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """A function (state, batch, stop) -> (state, metrics): one update, to be jitted."""
    loss_of = loss_by_name(config.loss.name)

    def loss_fn(params, batch, rng):
        logits, _ = model.apply(
            {"params": params}, batch["image"], train=True, rngs={"dropout": rng}
        )
        losses = loss_of(logits, batch["label"], label_smoothing=config.loss.label_smoothing)
        hits = logits.argmax(axis=-1) == batch["label"].argmax(axis=-1)
        return losses.mean(), {"top1": hits.mean()}

    def train_step(state: TrainState, batch: dict[str, Array], stop: Array):
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
        rng_mix, rng_model = jax.random.split(rng)

        images, labels = batch["image"], batch["label"]
        if labels.ndim == 1:
            labels = jax.nn.one_hot(labels, model.cfg.num_classes)
        images, labels = mixing.mix(
            rng_mix,
            images,
            labels,
            mixup_alpha=config.mix.mixup_alpha,
            cutmix_alpha=config.mix.cutmix_alpha,
        )

        (loss, metrics), grads = value_and_grad(
            loss_fn,
            state.params,
            {"image": images, "label": labels},
            rng_model,
            accum_steps=config.optim.accum_steps,
            sam_rho=config.optim.sam_rho,
            frozen=frozen_mask(config.optim, state.params),
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        step, average = state.step + 1, state.ema
        if config.optim.ema_decay:
            average = ema.update(average, params, decay=config.optim.ema_decay, count=step)
        metrics = {
            "train/loss": loss,
            "train/top1": metrics["top1"],
            "train/lr": config.optim.lr * schedule(state.step),
            "train/grad_norm": optax.tree.norm(grads),
            "train/update_norm": optax.tree.norm(updates),
            "train/param_norm": optax.tree.norm(params),
            "stop": processes.any_flag(stop),
        }
        return TrainState(step=step, params=params, opt_state=opt_state, ema=average), metrics

    return train_step


# ------------------------------------------------------------------------------------- the run


def train(
    config: FrozenConfigDict,
    workdir: pathlib.Path,
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

        stop_asked = stack.enter_context(processes.stop_signals())
        validate(config)
        is_main = jax.process_index() == 0
        if config.log.compilation_cache:
            jax.config.update("jax_compilation_cache_dir", config.log.compilation_cache)
        mesh = meshes.make_mesh(config.mesh, devices=devices)
        stack.enter_context(jax.set_mesh(mesh))
        meshes.check_batch_size(config.batch_size, accum_steps=config.optim.accum_steps, mesh=mesh)

        source = open_source(config.data, split=config.data.split, seed=config.seed)
        cfg = vit_config(config.model, num_classes=source.num_classes)
        if cfg.num_classes < source.num_classes:
            raise ConfigError(
                f"model.num_classes is {cfg.num_classes}, but {source.name} has "
                f"{source.num_classes} classes."
            )
        transform = transforms.build(config.data.train_transforms, image_size=cfg.image_size)
        evals = build_evals(config, cfg, mesh, class_names=source.class_names)

        total = total_steps(config, len(source))
        schedule = make_schedule(
            config.optim.schedule,
            total_steps=total,
            batch_size=config.batch_size,
            num_examples=len(source),
        )
        tx = make_optimizer(config.optim, param_shapes(cfg), schedule=schedule)
        clock = Clock(
            num_devices=mesh.size,
            flops_per_example=train_flops(cfg) * (2 if config.optim.sam_rho else 1),
            peak_flops=peak_flops(mesh.devices.flat[0].device_kind),
        )

        # --- The work directory: whose is it, and where has it got to?

        dataset = workdirs.describe_dataset(source, num_classes=cfg.num_classes)
        workdirs.check_claim(workdir, config, dataset, allow_config_change=allow_config_change)
        store = stack.enter_context(
            Store(
                workdir / workdirs.CHECKPOINTS,
                keep_last=config.checkpoint.keep_last,
                keep_every_steps=config.checkpoint.keep_every_steps,
                best_metric=config.checkpoint.best_metric,
                best_mode=config.checkpoint.best_mode,
            )
        )

        # --- The state, and the step that changes it

        with clock.span("init"):
            init = make_init(config, Vit(cfg), tx)
            layout = state_layout(jax.eval_shape(init, jax.random.key(0)), mesh)
            state, chrono = starting_point(config, store, init, layout, mesh)
            start = int(state.step)
            if start > total:
                raise ConfigError(
                    f"The state to go on from is of step {start:,}, beyond the end of this run at "
                    f"{total:,}: raise total_steps, _epochs or _examples."
                )
            if chrono is not None:
                clock.load_state_dict(chrono["clock"])
        train_step = jax.jit(
            make_train_step(config, Vit(cfg), tx, schedule),
            donate_argnums=0,
            out_shardings=(layout, meshes.replicated(mesh)),
        )

        # --- Batches in, reports out

        if is_main:
            workdirs.claim(workdir, config, dataset)

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
            )
        )
        writer = stack.enter_context(
            MetricWriter(
                workdir,
                resume_step=None if chrono is None else start,
                tensorboard=config.log.tensorboard,
                wandb_project=config.log.wandb_project,
                config=workdirs.config_to_json(config),
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
            save_due = stopping or step == total or step % config.checkpoint.every_steps == 0
            if step > start and (evals_due or save_due):
                # Nothing is saved or measured before it is known to be finite.
                stopping = settle(step, log=log_due or bool(evals_due)) or stopping
                pending = None
                measured = {}
                with clock.span("eval"):
                    for name in evals_due:
                        values = evals[name].run(state.ema or state.params)
                        measured |= {f"{name}/{key}": value for key, value in values.items()}
                if measured:
                    writer.write(step, measured)
                writer.commit(step)
                if save_due or stopping:
                    with clock.span("save"):
                        writer.flush()  # The metrics are never behind a checkpoint.
                        store.save(
                            step,
                            {
                                "params": state.params,
                                "opt_state": state.opt_state,
                                "ema": state.ema,
                            },
                            {"step": step, "clock": clock.state_dict()},
                            metrics=measured,
                        )
            if step == total or stopping:
                break

            with clock.span("data"):
                batch = next(batches)
            stop = flag[stop_asked()]
            if compiled is None:
                # Ahead of time: a compiled function cannot be compiled a second time.
                with clock.span("compile"):
                    compiled = train_step.lower(state, batch, stop).compile()
            with clock.span("step"), profiler.step(step):
                state, metrics = compiled(state, batch, stop)
                meshes.wait_if_simulated(metrics)
            profiler.after(step, metrics)
            clock.count(config.batch_size)
            if pending is not None:  # The update before this one, while this one is computed.
                stopping = settle(step, log=log_due)
                writer.commit(step)
            pending = metrics

        # --- What is left behind

        with clock.span("save"):
            store.wait()
        if step < total:
            progress.note(
                f"Stopped and saved at step {step:,} of {total:,}: run it again to go on."
            )
            return EXIT_STOPPED
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
            cli.local_path(_WORKDIR.value, flag="workdir"),
            allow_config_change=_ALLOW_CONFIG_CHANGE.value,
        )

    cli.run(main)
