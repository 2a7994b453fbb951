"""What is wrong or wasteful in a plan, each with its remedy."""

from collections.abc import Iterator

from vit_jax.models import MixerConfig, VitConfig, param_shapes
from vit_jax.parallel import mesh as meshes
from vit_jax.parallel import rules
from vit_jax.planning.plan import Plan
from vit_jax.planning.remedies import ROOM, remedies
from vit_jax.telemetry.chips import GIB
from vit_jax.training.rematerialisation import POLICIES, estimates

MIB = 2**20
FEW_IMAGES = 8  # With fewer on a device, its matrix units idle or its links are the bottleneck.
TILE_ROWS = 16  # Rows of a TPU's tile of bfloat16 numbers; smaller shards are padded.
LITTLE = 0.05  # Of the bytes that a step sends: not worth a change.


def advice(plan: Plan) -> list[str]:
    """Returns sentences, each of which names a fault and what to change."""
    checks = (_fit, _remat, _images, _shards, _sums, _tensor, _kept)
    return [each for check in checks for each in check(plan)]


def _fit(plan: Plan) -> Iterator[str]:
    if not _is_tight(plan):
        return
    share = plan.needed / plan.available
    found = " or ".join(remedies(plan))
    if not plan.fits:
        problem = "The step does not fit."
        otherwise = (
            "No change of one setting (recomputation, microbatches, mesh.fsdp, batch_size) is "
            "enough by the estimate: --search combines them, or take more chips."
        )
    elif plan.compiled is None:
        problem = (
            f"The estimate is {share:.0%} of the memory: what the compiler allocates beyond it may "
            "not fit."
        )
        otherwise = "Lower data.prefetch, or take more chips."
    else:
        problem = (
            f"Arguments and temporaries are {share:.0%} of the memory: the batches that are loaded "
            f"ahead ({plan.estimate.batches / MIB:,.0f} MiB) may not fit beside the step."
        )
        otherwise = "Lower data.prefetch, or take more chips."
    remedy = f"By the estimate, one of these is enough: {found}." if found else otherwise
    yield f"{problem} {remedy}"


def _is_tight(plan: Plan) -> bool:
    """Returns whether a step does not fit, or leaves too little room beside it."""
    return not plan.fits or plan.needed > ROOM * plan.available


def _remat(plan: Plan) -> Iterator[str]:
    used = getattr(plan.model_config, "remat", "none")
    splits = isinstance(plan.model_config, VitConfig | MixerConfig)
    if not splits or used not in POLICIES or plan.config.model.remat == "auto" or _is_tight(plan):
        return
    mesh = meshes.abstract_mesh(plan.mesh)
    *_, needed = estimates(plan.config, plan.model_config, mesh, plan.available)
    if POLICIES.index(used) > POLICIES.index(needed):
        yield (
            f"model.remat={used} recomputes more than needed: by the estimate {needed} fits. Set "
            "model.remat=auto."
        )


def _images(plan: Plan) -> Iterator[str]:
    images = plan.images_per_device // plan.config.optim.accum_steps
    if images < FEW_IMAGES:
        yield (
            f"A device computes {images} images at once, fewer than {FEW_IMAGES}: take fewer "
            "chips, raise batch_size, lower optim.accum_steps, or split with mesh.tensor."
        )


def _shards(plan: Plan) -> Iterator[str]:
    """Shards that the compiler pads, or splits that it cannot scatter."""
    if plan.mesh["fsdp"] == 1 or not plan.topology.is_tpu:
        return
    rows = {}
    shapes = param_shapes(plan.model_config)
    layouts = rules.named_leaves(rules.param_shardings(shapes, meshes.abstract_mesh(plan.mesh)))
    for name, leaf in rules.named_leaves(shapes).items():
        shard = layouts[name].shard_shape(leaf.shape)
        # The last two dimensions lie in tiles.
        for size, axis in list(zip(shard, layouts[name].spec, strict=True))[-2:]:
            axes = axis if isinstance(axis, tuple) else (axis,)
            if "fsdp" in axes and leaf.size >= rules.LARGE:
                rows[name] = size
    if rows and min(rows.values()) < TILE_ROWS:
        name = min(rows, key=lambda each: rows[each])
        yield (
            f"mesh.fsdp={plan.mesh['fsdp']} leaves shards of {rows[name]} rows ({name}), and a "
            f"tile has {TILE_ROWS}: choose a smaller mesh.fsdp."
        )


def _sums(plan: Plan) -> Iterator[str]:
    if plan.compiled is None:
        return
    whole = [
        each
        for each in plan.sends
        if each.kind == "all-reduce" and "fsdp" in each.axes and each.bytes >= MIB
    ]
    total = sum(each.sent_bytes for each in whole)
    if plan.mesh["fsdp"] > 1 and total > LITTLE * sum(each.sent_bytes for each in plan.sends):
        remedy = "Take data of 2 or more." if plan.mesh["data"] == 1 else "Try another mesh.fsdp."
        yield (
            f"Gradients are all-reduced over fsdp ({total / 1e9:.2f} GB sent in a step), where a "
            f"reduce-scatter would send half: the compiler did not scatter them. {remedy}"
        )
    if moved := [
        each
        for each in plan.sends
        if each.kind == "collective-permute" and each.in_loop and "fsdp" in each.axes
    ]:
        total = sum(each.total_bytes for each in moved)
        yield (
            f"Shards are padded and moved in each block ({total / 1e6:.1f} MB in a step): a "
            "mesh.fsdp that divides the width into multiples of 128 needs none of it."
        )


def _tensor(plan: Plan) -> Iterator[str]:
    tensor, model = plan.mesh["tensor"], plan.model_config
    if tensor > 1 and isinstance(model, VitConfig) and model.num_tokens % tensor:
        others = model.num_tokens - model.has_class_token
        remedy = (
            f"Without class token (model.pool=gap or map, class_token=False) there are {others}."
            if model.has_class_token and others % tensor == 0
            else "Choose another mesh.tensor or model.image_size."
        )
        yield (
            f"{model.num_tokens} tokens do not split over mesh.tensor={tensor}: each of these "
            f"devices keeps the whole residual stream. {remedy}"
        )


def _kept(plan: Plan) -> Iterator[str]:
    remat = getattr(plan.model_config, "remat", "")
    if plan.model_config.dtype != "bfloat16" or remat not in ("none", "dots"):
        return
    wide = sum(kept.bytes for kept in plan.kept if kept.dtype == "f32")
    if wide > 0.05 * plan.available:
        yield (
            f"{wide / GIB:.1f} GiB of what is kept for the backward pass is float32 in a bfloat16 "
            "model: model.remat=named keeps less."
        )
