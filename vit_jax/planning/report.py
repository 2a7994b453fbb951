"""Writes a plan: a sentence, tables, and JSON."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from vit_jax.models import num_params
from vit_jax.planning.plan import Plan
from vit_jax.planning.roofline import PRODUCTS
from vit_jax.rundir.workdir import config_to_json
from vit_jax.telemetry.chips import GIB
from vit_jax.telemetry.progress import format_count
from vit_jax.training.reports import code_version


def sentence(plan: Plan, *, price: float = 0.0) -> str:
    """Returns the plan in a few words.

    Args:
      plan: the plan.
      price: the price of one chip for one hour, in any currency; 0: unknown.
    """
    where = plan.topology.describe()
    needed, available = plan.needed / GIB, plan.available / GIB
    offered = "of a device" if plan.topology.is_tpu else "that JAX takes of a device"
    if not plan.fits:
        size = f"{needed:.1f} GiB, " if plan.needed else ""
        return (
            f"Does not fit on {where}: it needs {size}more than the {available:.2f} GiB {offered}."
        )
    assert plan.roofline and plan.days and plan.chip_hours
    step = _range(plan.roofline.fastest * 1e3, plan.roofline.slowest * 1e3)
    images = plan.num_steps * plan.config.batch_size
    low, high = plan.chip_hours
    cost = f", at a cost of {_range(low * price, high * price)}" if price else ""
    answer = (
        f"Fits on {where}: {needed:.2f} of {available:.2f} GiB {offered} "
        f"({plan.needed / plan.available:.0%})"
    )
    if plan.at_risk:
        assert plan.compiled is not None
        answer = (
            f"At risk on {where}: the compiler accepts the step with a peak of "
            f"{plan.compiled.memory['peak'] / GIB:.2f} of {available:.2f} GiB of a device, but "
            f"arguments and temporaries are {needed:.2f} GiB"
        )
    return (
        f"{answer}. A step of {plan.config.batch_size:,} images takes {step} ms; "
        f"{format_count(plan.num_steps, 'step')} ({images:,} images) take {_days(*plan.days)}, "
        f"{_range(low, high)} chip-hours{cost}."
    )


def text(plan: Plan, advised: Sequence[str], *, price: float = 0.0) -> str:
    """Returns the whole plan as text.

    Args:
      plan: the plan.
      advised: the result of `vit_jax.planning.advice.advice`.
      price: see `sentence`.
    """
    how = "compiled" if plan.compiled is not None else "by formula: no program was compiled"
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    chosen = f" ({plan.mesh_reason})" if plan.mesh_reason else ""
    parts = [sentence(plan, price=price), f"\nmesh    {mesh}{chosen}; {how}", *_settings(plan)]
    parts += ["", *_memory(plan)]
    if plan.compiled is not None and plan.compiled.refusal:
        parts += ["", "The compiler:", *plan.compiled.refusal.splitlines()[:8]]
    if plan.roofline is not None:
        parts += ["", *_collectives(plan), "", *_time(plan)]
    if advised:
        parts += ["", "What to change:", *(f"- {each}" for each in advised)]
    took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in plan.seconds.items())
    return "\n".join([*parts, "", f"The plan took: {took}."])


def _settings(plan: Plan) -> Iterator[str]:
    remat = getattr(plan.model_config, "remat", "none")
    reason = f" ({plan.remat_reason})" if plan.remat_reason else ""
    model = plan.model_config
    yield f"model   {num_params(model):,} parameters, {format_count(model.num_classes, 'class')}"
    yield f"remat   {remat}{reason}"
    yield (
        f"images  {plan.images_per_device:,} on a device, in {plan.config.optim.accum_steps} "
        f"microbatch{'es' if plan.config.optim.accum_steps > 1 else ''}"
    )


def _memory(plan: Plan) -> Iterator[str]:
    estimate = plan.estimate
    rows = [
        ("parameters", estimate.params, "counted"),
        ("optimizer", estimate.optimizer, "counted"),
        ("moving average", estimate.average, "counted"),
        ("gradients", estimate.gradients, "counted"),
        ("parameters in bfloat16", estimate.cast, "counted"),
        ("kept for the backward pass", estimate.residuals, "by formula"),
        ("largest working set", estimate.working, "by formula"),
        ("batches, those loaded ahead included", estimate.batches, "counted"),
    ]
    yield "Memory of a device, MiB"
    for name, size, how in rows:
        if size:
            yield f"  {name:40}{size / 2**20:12,.1f}  {how}"
    yield f"  {'sum':40}{estimate.total / 2**20:12,.1f}"
    if plan.compiled is None or plan.compiled.refusal:
        return
    memory = plan.compiled.memory
    yield "  of the compiled program:"
    for name in ("arguments", "temporaries"):
        yield f"  {name:40}{memory[name] / 2**20:12,.1f}  compiler"
    yield f"  {'together':40}{plan.needed / 2**20:12,.1f}"
    yield f"  {'peak of what is alive at once':40}{memory['peak'] / 2**20:12,.1f}  compiler"
    for kept in plan.kept:
        name = f"  kept: {kept.what}"
        shape = f"{kept.count} x {kept.dtype}[{kept.formula}]"
        yield f"  {name:40}{kept.bytes / 2**20:12,.1f}  {shape}"


def _collectives(plan: Plan) -> Iterator[str]:
    if not plan.sends:
        yield "Nothing is sent between devices."
        return
    yield "Collectives of a step          axes         in loop  times  dtype      GB  GB sent"
    for each in plan.sends:
        if each.sent_bytes < 1e6:
            continue
        axes = ",".join(each.axes) + (" (net)" if each.network else "")
        yield (
            f"  {each.kind:28} {axes:12} {'yes' if each.in_loop else 'no':7} {each.executions:6} "
            f"{each.dtype:5} {each.total_bytes / 1e9:8.3f} {each.sent_bytes / 1e9:8.3f}"
        )
    if plan.model_config.dtype == plan.config.model.grad_sum_dtype == "bfloat16":
        yield "  Gradients are summed over devices in bfloat16: model.grad_sum_dtype."
    small = [each for each in plan.sends if each.sent_bytes < 1e6]
    if small:
        times = sum(each.executions for each in small)
        total = sum(each.sent_bytes for each in small) / 1e6
        yield f"  and {times} small ones, {total:.2f} MB sent in all"


def _time(plan: Plan) -> Iterator[str]:
    line, chip = plan.roofline, plan.topology.chip
    assert line is not None
    again = ""
    if getattr(plan.model_config, "remat", "none") != "none":
        again = f", of which {1 - plan.model_flops / plan.step_flops:.0%} for recomputing,"
    yield "Time of a step, ms"
    yield (
        f"  compute  {line.compute * 1e3:9.2f}  {plan.step_flops / 1e12:.2f} TFLOP{again} at "
        f"{plan.step_flops / line.compute / 1e12:,.0f} TFLOP/s"
    )
    least = plan.compiled is not None and not plan.compiled.full_effort
    yield (
        f"  memory   {line.memory * 1e3:9.2f}  {plan.hbm_bytes / 1e9:.2f} GB at "
        f"{chip.bandwidth / chip.devices / 1e9:,.0f} GB/s"
        + ("; compiled with the least effort: less with --full" if least else "")
    )
    sent = sum(each.sent_bytes for each in plan.sends if not each.network) / 1e9
    yield (
        f"  links    {line.links * 1e3:9.2f}  {sent:.2f} GB over all ports; over one axis "
        f"{line.links_one_axis * 1e3:.2f}"
    )
    if line.network:
        yield f"  network  {line.network * 1e3:9.2f}  at {chip.network / 1e9:,.1f} GB/s a chip"
    yield (
        f"  step     {line.fastest * 1e3:9.2f} if all are at their peak and at once (bound by "
        f"{line.bound}), {line.slowest * 1e3:.2f} if products reach {PRODUCTS:.0%} of it and "
        "nothing is at once"
    )
    seconds = line.slowest, line.fastest
    low, high = (plan.config.batch_size / each / plan.topology.num_chips for each in seconds)
    shares = [line.compute * plan.model_flops / plan.step_flops / each for each in seconds]
    yield (
        f"  rate     {low:,.1f} to {high:,.1f} img/s a chip; MFU {shares[0]:.0%} to {shares[1]:.0%}"
    )


def _days(low: float, high: float) -> str:
    if high < 1 / 24:
        return f"{_range(low * 1440, high * 1440)} minutes"
    if high < 1:
        return f"{_range(low * 24, high * 24)} hours"
    return f"{_range(low, high)} days"


def _range(low: float, high: float) -> str:
    return " to ".join(f"{end:,.0f}" if end >= 100 else f"{end:.3g}" for end in (low, high))


def to_json(plan: Plan, advised: Sequence[str], *, price: float = 0.0) -> dict[str, Any]:
    """Returns the plan as JSON: bytes, seconds and FLOPs of a device and a step; see `text`."""
    compiled = plan.compiled
    return {
        "summary": sentence(plan, price=price),
        "verdict": plan.verdict,
        "fits": plan.fits,
        "topology": plan.topology.name,
        "slices": plan.topology.slices,
        "chips": plan.topology.num_chips,
        "mesh": plan.mesh,
        "remat": getattr(plan.model_config, "remat", "none"),
        "batch_size": plan.config.batch_size,
        "accum_steps": plan.config.optim.accum_steps,
        "steps": plan.num_steps,
        "parameters": num_params(plan.model_config),
        "classes": plan.model_config.num_classes,
        "by_formula": compiled is None,
        "needed_bytes": plan.needed,
        "available_bytes": plan.available,
        "compiler_bytes": {} if compiled is None else compiled.memory,
        "refusal": "" if compiled is None else compiled.refusal,
        "estimated_bytes": dataclasses.asdict(plan.estimate),
        "kept": [dataclasses.asdict(kept) for kept in plan.kept],
        "model_flops": plan.model_flops,
        "step_flops": plan.step_flops,
        "hbm_bytes": plan.hbm_bytes,
        "collectives": [
            dataclasses.asdict(each) | {"sent_bytes": each.sent_bytes} for each in plan.sends
        ],
        "roofline_seconds": dataclasses.asdict(plan.roofline) if plan.roofline else None,
        "step_seconds": [plan.roofline.fastest, plan.roofline.slowest] if plan.roofline else None,
        "days": plan.days,
        "chip_hours": plan.chip_hours,
        "price": price or None,
        "cost": [price * end for end in plan.chip_hours] if price and plan.chip_hours else None,
        "advice": [*advised],
        "plan_seconds": plan.seconds,
        "config": config_to_json(plan.config),
        "code_version": code_version(),
    }
