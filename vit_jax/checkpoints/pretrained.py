"""Any published checkpoint, as a model of ours with its parameters.

    pretrained = load_pretrained("vit-base-patch16-224")  # A folder, a file, hf:NAME, gs://...
    images = pretrained.preprocess(["cat.jpg"])
    logits, intermediates = pretrained.model.apply({"params": pretrained.params}, images)

The format is recognised from the contents. Every tensor of the file is used, or is known to be of
no use, or was named by the caller to be left out; anything else is an error with both sides.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from jaxtyping import PyTree

from vit_jax.checkpoints.foreign import open_foreign
from vit_jax.checkpoints.formats import FORMATS, Description, Foreign, Format, Hints
from vit_jax.checkpoints.formats import entries as tables
from vit_jax.checkpoints.formats.names import Renamed
from vit_jax.checkpoints.preprocess import Preprocess
from vit_jax.errors import CheckpointError
from vit_jax.models import ModelConfig, build, param_shapes
from vit_jax.models.resize import resize_patches, resize_posemb
from vit_jax.parallel.rules import param_shardings, path_name


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A published model.

    Attributes:
      model: its `apply({"params": params}, images)` gives `(logits, intermediates)`.
      params: float32, blocks stacked.
      config: architecture and numerics.
      preprocess: pictures -> float32 [b, height, width, channels], as its publisher evaluates.
      labels: names of its classes, or None.
      format: that the checkpoint was in.
      published: the config as the checkpoint has it, before it was brought to another size or head.
      left_out: names of tensors that the model has no use for.
      notes: what was done to it: resized, initialised anew.
    """

    model: nn.Module
    params: PyTree
    config: ModelConfig
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    format: str
    published: ModelConfig
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where every parameter of a model comes from, before a tensor is read."""

    foreign: Foreign
    format: Format
    description: Description
    sources: Mapping[str, tables.Source]
    fresh: tuple[str, ...]  # Paths that the caller left out: they get initial values.
    left_out: tuple[str, ...]


def load_pretrained(
    path: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    hints: Mapping[str, Any] | None = None,
    resize: str | None = None,
    leave_out: Collection[str] = (),
    mesh: Mesh | None = None,
) -> Pretrained:
    """Loads a checkpoint of any known format.

    Args:
      path: a file, a folder, a name on a hub: see `vit_jax.checkpoints.hub.resolve`.
      image_size: side, or (height, width), in pixels, if not its own: position embeddings are
        resized by its publisher's kernel.
      patch_size: likewise: the patch embedding is resized as in FlexiViT (arXiv 2212.08013).
      num_classes: another number of classes gets a new head, of zeros; 0: no head.
      hints: what the file does not tell, in the names of the goldens' manifest: `num_heads`,
        `image_size` (as it was trained), `ln_eps`, `gelu`, `pool`, ...
      resize: another kernel for position embeddings: a key of `vit_jax.models.resize.KERNELS`.
      leave_out: patterns of whole names, of theirs or of our parameters: tensors that are not
        read, parameters that get initial values.
      mesh: to lay the parameters on by our sharding rules; no process reads more than its shards.

    Raises:
      CheckpointError: the file is damaged, of no known format, or does not account for every
        parameter and tensor.
      ConfigError: a hint, size or kernel is none.
    """
    plan = make_plan(path, hints=hints, leave_out=leave_out)
    published = plan.description.config
    config = adapted(
        published,
        image_size=image_size,
        patch_size=patch_size,
        num_classes=num_classes,
        resize=resize,
    )
    params, notes = _read(plan, config, mesh)
    same_classes = config.num_classes == published.num_classes
    return Pretrained(
        model=build(config),
        params=params,
        config=config,
        preprocess=Preprocess(plan.description.transforms, published.image_size).for_size(
            config.image_size
        ),
        labels=plan.description.labels if same_classes else None,
        format=plan.format.name,
        published=published,
        left_out=plan.left_out,
        notes=(*plan.description.notes, *notes),
    )


def make_plan(
    path: str, *, hints: Mapping[str, Any] | None = None, leave_out: Collection[str] = ()
) -> Plan:
    """Recognises a checkpoint and accounts for all its tensors, without reading them.

    Raises:
      CheckpointError: see `load_pretrained`.
    """
    foreign = open_foreign(path)
    found = next((format_ for format_ in FORMATS if format_.recognises(foreign)), None)
    if found is None:
        some = ", ".join(list(foreign.tensors)[:6])
        raise CheckpointError(
            f"{path} holds {len(foreign.tensors):,} tensors ({some}, ...), of no known format: "
            f"{', '.join(format_.name for format_ in FORMATS)}."
        )
    description = found.describe(foreign, Hints(hints))
    return _account(Plan(foreign, found, description, {}, (), ()), leave_out)


def _account(plan: Plan, leave_out: Collection[str]) -> Plan:
    """Finds a source for every parameter, and a use or a name for every tensor."""
    description, tensors = plan.description, plan.description.tensors
    wanted = [re.compile(pattern) for pattern in leave_out]
    unused = wanted + [re.compile(pattern) for pattern in description.unused]
    shapes = unrolled_shapes(description.config)
    entries = plan.format.entries(description.config)
    sources, missing = tables.find(entries, shapes, tensors)
    fresh = tuple(path for path in shapes if _matches(wanted, path))
    sources = {path: source for path, source in sources.items() if path not in fresh}

    used = {source.theirs for source in sources.values()}
    others = {name: tensors[name].shape for name in tensors if name not in used}
    others |= {name: plan.foreign.tensors[name].shape for name in _beside(plan)}
    left_out = tuple(name for name in others if _matches(unused, name))
    lines = [(name, others[name], "-", None) for name in others if name not in left_out]
    lines += [("-", None, path, shapes[path]) for path in missing if path not in fresh]
    for path, source in sources.items():
        theirs = tensors[source.theirs].shape
        if not tables.fits(source, theirs, shapes[path]):
            lines.append((source.theirs, theirs, path, shapes[path]))
    if lines:
        raise CheckpointError(
            f"{plan.foreign.path} ({plan.format.name}) does not fit the model that it describes, "
            f"{describe_briefly(description.config)}:\n{_table(lines)}\n"
            "Name in leave_out (--leave_out) what may be missing or is of no use."
        )
    return dataclasses.replace(plan, sources=sources, fresh=fresh, left_out=left_out)


def _matches(patterns: Collection[re.Pattern[str]], name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in patterns)


def _beside(plan: Plan) -> list[str]:
    """The tensors of the file that are not under the model's prefix."""
    layer, seen = plan.description.tensors, set(plan.foreign.tensors)
    while isinstance(layer, Renamed):  # Stacked blocks are renamed twice.
        names = {theirs for theirs, _ in layer.original.values()}
        if layer.below is plan.foreign.tensors:
            return sorted(seen - names)
        layer = layer.below
    return []


def describe_briefly(config: ModelConfig) -> str:
    """A model in a few words: sizes."""
    fields = ("width", "depth", "mlp_dim", "num_heads", "num_classes")
    return ", ".join(f"{f} {getattr(config, f)}" for f in fields if hasattr(config, f))


def _table(lines) -> str:
    """Their tensors and our parameters side by side, at most twenty lines."""
    rows = [("tensor", "shape", "parameter", "shape")]
    rows += [(a, _shape(b), c, _shape(d)) for a, b, c, d in lines[:20]]
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    text = ["  " + "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
    more = [f"  ... and {len(lines) - 20} more"] if len(lines) > 20 else []
    return "\n".join([line.rstrip() for line in text] + more)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else "x".join(map(str, shape)) or "scalar"


def unrolled_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's parameters by path, blocks one by one."""
    if hasattr(config, "scan"):
        config = dataclasses.replace(config, scan=False)
    leaves = jax.tree_util.tree_leaves_with_path(param_shapes(config))
    return {path_name(path): leaf.shape for path, leaf in leaves}


def adapted(
    published: ModelConfig,
    *,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    resize: str | None = None,
) -> ModelConfig:
    """A checkpoint's config for another size or head: see `load_pretrained`."""
    changes: dict[str, Any] = {
        "image_size": None if image_size is None else _pair(image_size),
        "patch_size": None if patch_size is None else _pair(patch_size),
        "num_classes": num_classes,
        "posemb_resize": resize,
    }
    return dataclasses.replace(
        published, **{field: value for field, value in changes.items() if value is not None}
    )


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _read(plan: Plan, config: ModelConfig, mesh: Mesh | None) -> tuple[PyTree, tuple[str, ...]]:
    """The parameters of the adapted model, each read where it will lie."""
    reader = Reader(plan, config)
    targets = param_shapes(config)
    if mesh is None:
        device = SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, targets)
    else:
        shardings = param_shardings(targets, mesh)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf, sharding: reader.array(path_name(path), leaf.shape, sharding),
        targets,
        shardings,
    )
    return params, tuple(reader.notes)


class Reader:
    """Reads parameters of a model out of a plan's file, shard by shard."""

    def __init__(self, plan: Plan, config: ModelConfig):
        self.plan = plan
        self.config = config
        self.notes: list[str] = []
        self._published = unrolled_shapes(plan.description.config)
        self._initial: dict[str, np.ndarray] | None = None

    def array(self, path: str, shape: tuple[int, ...], sharding: Sharding) -> jax.Array:
        """One parameter of the model, laid out by the sharding."""
        if "/blocks/" not in path:
            whole = self._leaf(path, shape)
            return jax.make_array_from_callback(shape, sharding, lambda index: whole[index])

        def stack(index: tuple[slice, ...]) -> np.ndarray:
            layers = range(*index[0].indices(shape[0]))
            probe = np.broadcast_to(np.zeros((), np.float32), shape[1:])[index[1:]]
            # Aligned, so that JAX on the CPU takes it as it is.
            out = _aligned((len(layers), *probe.shape))
            for k, i in enumerate(layers):
                out[k] = self._leaf(path.replace("/blocks/", f"/block_{i}/"), shape[1:])[index[1:]]
            return out

        return jax.make_array_from_callback(shape, sharding, stack)

    def _leaf(self, path: str, shape: tuple[int, ...]) -> np.ndarray:
        """A parameter of one block, or of none: float32."""
        if path.startswith("head") and self._published.get(path) != shape:
            self._note("new head, of zeros")
            value = self.config.head_bias_init if path.endswith("bias") else 0.0
            return np.full(shape, value, np.float32)
        if path in self.plan.fresh:
            return self._initialised(path)
        source = self.plan.sources[path]
        tensors = self.plan.description.tensors
        stored = tensors[source.theirs].shape
        rows = tables.rows_of(source, stored) if source.part[1] > 1 else None
        array = tables.load(tensors.read(source.theirs, rows), source, self._published[path])
        array = array.astype(np.float32, copy=False)
        if path == "pos_embedding" and self.config.grid != self.plan.description.config.grid:
            array = self._resized(array)
        if path == "embedding/kernel" and array.shape != shape:
            self._note(f"patch embedding resized to {shape[0]}x{shape[1]} (FlexiViT)")
            array = np.asarray(resize_patches(jnp.asarray(array), new=shape[:2]))
        return array

    def _resized(self, posemb: np.ndarray) -> np.ndarray:
        old, new = self.plan.description.config, self.config
        self._note(
            f"position embedding resized from {old.grid[0]}x{old.grid[1]} to {new.grid[0]}x"
            f"{new.grid[1]} patches ({new.posemb_resize})"
        )
        resized = resize_posemb(
            jnp.asarray(posemb), old=old.grid, new=new.grid, prefix=old.posemb_rows,
            kernel=new.posemb_resize,
        )  # fmt: skip
        return np.asarray(resized)

    def _initialised(self, path: str) -> np.ndarray:
        if self._initial is None:
            config = dataclasses.replace(self.config, scan=False)
            images = jnp.zeros((1, *config.image_size, config.channels))
            params = jax.jit(build(config).init)(jax.random.key(0), images)["params"]
            self._initial = {
                path_name(path): np.asarray(leaf)
                for path, leaf in jax.tree_util.tree_leaves_with_path(params)
            }
        self._note(f"{path} initialised")
        return self._initial[path]

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape)) * 4
    buffer = np.empty(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size].view(np.float32).reshape(shape)
