"""Messages of a run: when it starts, when it diverges, and when it is done."""

import math
import pathlib
import subprocess
from typing import Any

import jax
from etils import epath
from ml_collections import FrozenConfigDict

import vit_jax
from vit_jax.checkpoints.store import Store
from vit_jax.data import bad_examples, order
from vit_jax.data.base import Source
from vit_jax.errors import DataError, NonFiniteError
from vit_jax.models import (
    VitConfig,
    describe_model,
    forward_flops,
    num_params,
    num_params_non_embedding,
    param_shapes,
    update_flops_per_image,
)
from vit_jax.models.attention import current_platform, resolve_backend
from vit_jax.optim import frozen_mask, train_loss_difference
from vit_jax.parallel.compilation import describe_compilation_cache
from vit_jax.telemetry.clock import Clock
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.telemetry.progress import format_count
from vit_jax.training.experiment import Experiment

FEW_UPDATES = 20  # With fewer, a note says that they can hardly train a model.


def check_finite(
    values: dict[str, Any], step: int, config: FrozenConfigDict, source: Source, store: Store
) -> None:
    """Checks the metrics of an update.

    Raises:
      NonFiniteError: a metric is NaN or infinite; the message names the examples of the batch.
      DataError: every example of the batch is bad, which leaves all metrics finite.
    """
    if values.get("train/skipped") == config.batch_size:
        raise DataError(
            f"Every example of the batch of update {step} is bad: is the storage of the data still "
            "there? The report of bad examples in the work directory gives the reason for each."
        )
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if not broken:
        return
    ids = order.example_ids(
        step - 1,
        batch_size=config.batch_size,
        num_examples=len(source),
        seed=config.seed,
        chunks=order.Chunks.from_config(config),
    )
    saved = store.steps()
    last_good = f"{store.folder / str(saved[-1])}" if saved else "none was saved yet"
    raise NonFiniteError(
        f"Update {step} gave "
        + ", ".join(f"{name} = {values[name]}" for name in broken)
        + f".\nLast good checkpoint: {last_good}.\nThe batch was of {source.name}, {source.split}, "
        f"examples {', '.join(map(str, ids))} (the first is {source.describe(int(ids[0]))}).\n"
        "Look at these examples; or lower optim.lr, lengthen the warm-up or set optim.clip_norm."
    )


def describe(experiment: Experiment, *, start: int, origin: str = "") -> str:
    """Returns a few lines that describe the model, the data, the devices and the run.

    Args:
      experiment: the run.
      start: the number of updates made before this process started.
      origin: what was taken from `config.init_from`; "" if nothing was.
    """
    config, model_config, total = experiment.config, experiment.model_config, experiment.total_steps
    source, mesh = experiment.source, experiment.mesh
    device = mesh.devices.flat[0]
    attention = ""
    if isinstance(model_config, VitConfig):
        backend = resolve_backend(model_config, train=True, platform=current_platform())
        attention = f", attention by {backend}"
    policy, reason = getattr(model_config, "remat", "none"), experiment.remat_reason
    remat = f", remat {policy}" if reason or policy != "none" else ""
    remat += f" ({reason})" if reason else ""
    height, width = model_config.image_size
    flops = update_flops_per_image(model_config, config)
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    shape += f"; {experiment.mesh_reason}" if experiment.mesh_reason else ""
    # How many examples are bad is known when all are read.
    up_to = "up to " if config.data.on_bad == "skip" else ""
    begins = f", continued at step {start:,}" if start else ""
    begins = ", which is complete" if start == total else begins
    lines = [
        f"model   {describe_model(model_config)} on images of {height}x{width}: "
        f"{_count_params(experiment)}, {flops / 1e9:.3g} GFLOPs to train on an image, "
        f"{model_config.dtype}{attention}{remat}",
        f"data    {source.name}, {source.split}: {up_to}{format_count(len(source), 'image')}, "
        f"{format_count(model_config.num_classes, 'class')}",
        f"devices {mesh.size} x {device.device_kind} ({shape}), "
        f"{format_count(jax.process_count(), 'process')}",
        f"run     {format_count(total, 'step')} of {format_count(config.batch_size, 'image')}, "
        f"{total * config.batch_size / len(source):.4g} epochs{_rounded(experiment)}{begins}",
    ]
    if experiment.cache is not None:
        lines.append(f"cache   {experiment.cache.describe()}")
    if cache := describe_compilation_cache():
        lines.append(f"cache   {cache}")
    if origin:
        lines.insert(1, f"init    {origin}")
    if start < total < FEW_UPDATES:
        lines.append(
            f"few     {format_count(total, 'update')} can hardly train a model: for more, lower "
            "--config.batch_size or raise --config.total_epochs"
        )
    if difference := train_loss_difference(config):
        lines.append(
            f"loss    the training loss is computed {difference}, that of an evaluation without: "
            "the two cannot be compared"
        )
    return "\n".join(lines)


def _rounded(experiment: Experiment) -> str:
    """Returns why a run has not the epochs that its config states; "" if it has them."""
    config = experiment.config
    steps = (config.total_epochs or 0) * len(experiment.source) / config.batch_size
    if not steps or abs(steps - experiment.total_steps) < 0.01 * steps:
        return ""
    return f" ({config.total_epochs:g} in whole batches)"


def _count_params(experiment: Experiment) -> str:
    """Returns the number of parameters, and how many are trained if some are frozen."""
    count, trained = num_params(experiment.model_config), _num_trained(experiment)
    text = format_count(count, "parameter")
    return text if trained == count else f"{text}, of which {trained:,} are trained"


def _num_trained(experiment: Experiment) -> int:
    """Returns the number of parameters that are not frozen."""
    shapes = param_shapes(experiment.model_config)
    frozen = jax.tree.leaves(frozen_mask(experiment.config.optim, shapes))
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)]
    return sum(size for size, is_frozen in zip(sizes, frozen, strict=True) if not is_frozen)


def run_summary(experiment: Experiment) -> dict[str, Any]:
    """Returns the content of `run.json`: numbers that a scaling study needs.

    Returns:
      params, params_non_embedding   number of parameters of the model;
      params_trained                 of these, the ones that are not frozen;
      forward_flops                  for one image, counted analytically (vit_jax.models.flops);
      update_flops_per_image         of an update, without gradients of frozen parameters;
      examples                       number of training examples in an epoch;
      total_steps, batch_size        of the run;
      remat                          what the backward pass recomputed, also if it was "auto"; None:
                                     the model has no such setting;
      compiler_options               XLA's options for the train step (parallel.xla_options);
      mesh                           sizes of data, fsdp and tensor, also if they were chosen;
      device, num_devices            kind and number of the devices of all processes;
      code_version                   release, and commit if it is a checkout.
    """
    model_config, mesh = experiment.model_config, experiment.mesh
    return {
        "params": num_params(model_config),
        "params_non_embedding": num_params_non_embedding(model_config),
        "params_trained": _num_trained(experiment),
        "forward_flops": forward_flops(model_config),
        "update_flops_per_image": update_flops_per_image(model_config, experiment.config),
        "examples": len(experiment.source),
        "total_steps": experiment.total_steps,
        "batch_size": experiment.config.batch_size,
        "remat": getattr(model_config, "remat", None),
        "compiler_options": experiment.compiler_options,
        "mesh": dict(mesh.shape),
        "device": mesh.devices.flat[0].device_kind,
        "num_devices": mesh.size,
        "code_version": code_version(),
    }


def code_version() -> str:
    """Returns the release, with the commit of a checkout: "0.2.0+g1a2b3c4" or with ".dirty"."""
    folder = pathlib.Path(vit_jax.__file__).parent
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty=.dirty", "--abbrev=7", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):  # No checkout, or no git.
        return vit_jax.__version__
    # An installed copy may lie in the checkout of another project.
    is_checkout = (folder.parent / ".git").exists()
    return f"{vit_jax.__version__}+g{commit}" if is_checkout else vit_jax.__version__


def conclusion(workdir: epath.Path, clock: Clock, total: int) -> str:
    """Returns the results of a finished run, and the commands to type next."""
    results = {}
    for line in read_jsonl(workdir / "metrics.jsonl"):
        results |= {name: value for name, value in line.items() if name.endswith("/top1")}
    results.pop("train/top1", None)
    timing = clock.summary()
    reached = [f"{name} {value:.2%}" for name, value in results.items()]
    if "speed/img_per_s" in timing:
        reached.append(f"{timing['speed/img_per_s']:,.0f} img/s")
    return (
        f"Done:   {'; '.join((format_count(total, 'step'), *reached))}\n"
        f"{_times(clock)}"
        f"{bad_examples.summary(workdir)}"
        f"Curves: {workdir / 'curves.png'}\n"
        f"Next:   vit-jax evaluate --workdir={workdir}\n"
        f"        vit-jax predict --checkpoint={workdir} IMAGE_OR_FOLDER"
    )


def _times(clock: Clock) -> str:
    """Returns the time of this start, and that of all starts if there were others."""
    timing, spans = clock.summary(), clock.process_seconds()
    own = sum(spans.values())
    parts = ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in spans.items())
    wall = timing["time/wall_s"]
    hours = f"{timing['time/device_hours']:.3g} device-hours"
    if wall - own < 0.5:
        return f"Time:   {own:,.0f} s ({parts}); {hours}\n"
    return (
        f"Time:   {own:,.0f} s since this start ({parts})\n"
        f"        {wall:,.0f} s in all starts of the run; {hours}\n"
    )
