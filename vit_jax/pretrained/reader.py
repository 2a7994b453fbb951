"""Reads the parameters of a published checkpoint, one tensor at a time, as sharded arrays."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding
from jaxtyping import PyTree

from vit_jax.models import ModelConfig, build, param_shapes
from vit_jax.parallel.rules import named_leaves, param_shardings, path_name
from vit_jax.pretrained.adaptation import adapt_leaf
from vit_jax.pretrained.formats import entries as tables
from vit_jax.pretrained.mapping import CheckpointMap, unrolled_shapes


def read(mapping: CheckpointMap, config: ModelConfig, mesh: Mesh) -> tuple[PyTree, tuple[str, ...]]:
    """Returns the parameters of a model, and notes about those that were changed.

    `config` is the checkpoint's, possibly with another image size, patch size or head. The
    parameters are sharded on the mesh by `vit_jax.parallel.rules`.
    """
    reader = Reader(mapping, config)
    targets = param_shapes(config)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf, sharding: reader.array(path_name(path), leaf.shape, sharding),
        targets,
        param_shardings(targets, mesh),
    )
    return params, tuple(reader.notes)


class Reader:
    """Reads the parameters of a model, and collects notes about those that were changed."""

    def __init__(self, mapping: CheckpointMap, config: ModelConfig):
        self.mapping = mapping
        self.config = config
        self.notes: list[str] = []
        self._published = unrolled_shapes(mapping.description.config)
        self._initial: dict[str, np.ndarray] | None = None

    def array(self, path: str, shape: tuple[int, ...], sharding: Sharding) -> jax.Array:
        """Reads one parameter with the given sharding; stacked blocks are read one by one."""
        if "/blocks/" not in path:
            whole = self._leaf(path, shape)
            return jax.make_array_from_callback(shape, sharding, lambda index: whole[index])

        # Each tensor of the file is read once, however many devices hold a shard of it.
        shards = {}
        for index in sharding.addressable_devices_indices_map(shape).values():
            assert index is not None  # An addressable device holds a shard.
            shard_shape = [len(range(*s.indices(n))) for s, n in zip(index, shape, strict=True)]
            shards[_bounds(index, shape)] = (index, _aligned(shard_shape))
        for i in range(shape[0]):
            name = path.replace("/blocks/", f"/block_{i}/")
            leaf = None
            for bounds, (index, shard) in shards.items():
                first, last = bounds[0]
                if first <= i < last:
                    leaf = self._leaf(name, shape[1:]) if leaf is None else leaf
                    shard[i - first] = leaf[index[1:]]

        def shard_at(index):
            return shards[_bounds(index, shape)][1]

        return jax.make_array_from_callback(shape, sharding, shard_at)

    def _leaf(self, path: str, shape: tuple[int, ...]) -> np.ndarray:
        """Returns a parameter outside the blocks, or of one block, as float32."""
        old, new = self.mapping.description.config, self.config
        new_head = path.startswith("head") and old.num_classes != new.num_classes
        if path in self.mapping.fresh and not new_head:
            return self._initialised(path)
        leaf = None if new_head else self._stored(path, self.mapping.sources[path])
        array, note = adapt_leaf(path, leaf, old=old, new=new, shape=shape)
        self._note(note)
        return np.asarray(array)

    def _stored(self, path: str, source: tables.TensorLocation) -> np.ndarray:
        """Returns a parameter of the published model, as float32."""
        tensors = self.mapping.description.tensors
        stored = tensors[source.theirs].shape
        rows = tables.rows_of(source, stored) if source.part[1] > 1 else None
        array = tables.load(tensors.read(source.theirs, rows), source, self._published[path])
        return array.astype(np.float32, copy=False)

    def _initialised(self, path: str) -> np.ndarray:
        initial = self._initial
        if initial is None:
            config = dataclasses.replace(self.config, scan=False)
            images = jnp.zeros((1, *config.image_size, config.channels))

            @jax.jit  # Of the model, only what is returned is computed.
            def initialise(key):
                params = named_leaves(build(config).init(key, images)["params"])
                return {path: params[path] for path in self.mapping.fresh if path in params}

            self._initial = initial = jax.device_get(initialise(jax.random.key(0)))
        self._note(f"{path} initialised")
        return initial[path]

    def _note(self, note: str) -> None:
        if note and note not in self.notes:
            self.notes.append(note)


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Returns the (start, stop) of a shard along each axis."""
    return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))


def _aligned(shape: Sequence[int]) -> np.ndarray:
    """Allocates a float32 array aligned to 64 bytes, which JAX on a CPU uses without a copy."""
    size = int(np.prod(shape)) * 4
    buffer = np.empty(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size].view(np.float32).reshape(shape)
