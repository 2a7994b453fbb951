"""Global batches on the mesh, loaded by Grain.

Each process loads only those rows of the global batch that its devices need, and transfers them
ahead of time. Rows are loaded in blocks, the unit of work of Grain's threads and worker processes.
A row depends only on its example, its epoch and the seed, and Grain preserves the order of the
blocks: so a batch is the same for any number of processes, workers and threads, and resuming needs
only the step.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Int64

from vit_jax.data import order
from vit_jax.data.base import Source
from vit_jax.data.batches import IF_FEW_ARE_BAD, Batches, LoaderOptions
from vit_jax.data.blocks import PADDING, Blocks, ExampleLoader, Ids, Transform, row_specs
from vit_jax.data.chunk_cache import ChunkCache, held_examples
from vit_jax.data.op import Scaling
from vit_jax.data.order import Chunks
from vit_jax.data.transforms import ComposedTransform
from vit_jax.errors import ConfigError, DataError

_MAX_TRIED = 1000  # Give up when this many leading examples are bad.


def train_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    sharding: Sharding,
    options: LoaderOptions,
    num_steps: int | None = None,
    on_bad: Callable[[int, int, int, str], None] | None = None,
    chunks: Chunks | None = None,
) -> Batches:
    """Returns an infinite iterator of the training batches, from step `start_step` on.

    Close the result, or use it as a context manager.

    Args:
      source: the examples.
      transform: from an example to {"image": f32[H,W,C], "label": int or f32[K]}; it gets a
        generator seeded with (seed, epoch, example).
      batch_size: rows of the global batch.
      seed: of the order and of the transform's randomness, not negative.
      start_step: number of batches to skip.
      sharding: of the global arrays; splits only their first axis.
      options: numbers of workers, threads and prefetched batches in each process.
      num_steps: number of batches that will be used, on which automatic options depend; None: one
        epoch. The iterator does not end after them.
      on_bad: called by `next` with (step, row, example, message) for an example that cannot be
        read, decoded or transformed, in the process that owns the row (`batches.owned_rows`). The
        row is zero and has weight 0; nothing else changes. None: such an example ends the iteration
        with a DataError.
      chunks: of the two-level order, for this batch size; None: one permutation of all examples.

    Returns:
      An iterator of {"image": f32[B,H,W,C], "label": i32[B] or f32[B,K], "weight": f32[B]}; weights
      are 1 except for bad examples.

    Raises:
      ConfigError: the devices do not divide the batch size.
      DataError: at once or from the iterator: an example is bad and `on_bad` is None (the message
        begins with its location); the first 1,000 examples are all bad; or the loader fails.
    """
    rows = local_rows(sharding, batch_size=batch_size)
    assign = functools.partial(
        _training_examples,
        start_step=start_step,
        batch_size=batch_size,
        num_examples=len(source),
        seed=seed,
        chunks=chunks,
    )
    to_levels, scaling = _stages(transform)
    load = ExampleLoader(source, to_levels, seed)
    template = first_example(load, skip_bad=on_bad is not None)
    steps = math.ceil(len(source) / batch_size) if num_steps is None else num_steps
    pixels = math.prod(template["image"].shape[:2])
    options = _local(options, transform).resolved(images=steps * len(rows), pixels=pixels)
    if chunks is not None:
        most = held_examples(chunks, rows=len(rows), ahead=options.rows_ahead(len(rows)))
        load = dataclasses.replace(load, cache=ChunkCache(source, chunks.size, max_examples=most))
    return Batches(
        Blocks(load, assign, rows=rows, num_batches=None, template=template),
        batch_size=batch_size,
        sharding=sharding,
        scaling=scaling,
        options=options,
        on_bad=on_bad and (lambda batch, bad: on_bad(start_step + batch, *bad)),
    )


def batch_shapes(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    sharding: Sharding,
    skip_bad: bool,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of the arrays of `train_batches`, with their shardings.

    Raises:
      DataError: as `first_example`.
    """
    example = first_example(ExampleLoader(source, transform, 0), skip_bad=skip_bad)
    return {
        key: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=sharding)
        for key, (shape, dtype) in row_specs(example).items()
    }


def eval_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    sharding: Sharding,
    options: LoaderOptions,
    on_bad: Callable[[int, str], None] | None = None,
) -> Batches:
    """Returns an iterator over all examples of a source, each exactly once, in order.

    Example i is row i % batch_size of batch i // batch_size. The last batch is padded with rows of
    weight 0: every process makes the same number of steps, and an average weighted by `weight` is
    exact.

    Args:
      source: the examples.
      transform: as for training, but its generator is seeded with (0, 0, example).
      batch_size: rows of the global batch.
      sharding: of the global arrays; splits only their first axis.
      options: as for training.
      on_bad: as for training, but called with (example, message). If all examples are bad, there is
        no batch.

    Returns:
      An iterator over batches as those of `train_batches`.

    Raises:
      ConfigError, DataError: as `train_batches`.
    """
    rows = local_rows(sharding, batch_size=batch_size)
    assign = functools.partial(
        _evaluation_examples, batch_size=batch_size, num_examples=len(source)
    )
    to_levels, scaling = _stages(transform)
    load = ExampleLoader(source, to_levels, 0)
    template, bad = _load_first_good(load) if on_bad else (first_example(load), [])
    if not template and on_bad is not None:
        for i, message in bad:
            on_bad(i, message)
    num_batches = math.ceil(len(source) / batch_size) if template else 0
    blocks = Blocks(load, assign, rows=rows, num_batches=num_batches, template=template)
    return Batches(
        blocks,
        batch_size=batch_size,
        sharding=sharding,
        scaling=scaling,
        options=_local(options, transform).resolved(
            images=num_batches * len(rows), pixels=blocks.pixels
        ),
        on_bad=on_bad and (lambda batch, row: on_bad(row.example, row.message)),
    )


def _stages(transform: Transform) -> tuple[Transform, Scaling | None]:
    return transform.stages() if isinstance(transform, ComposedTransform) else (transform, None)


def _local(options: LoaderOptions, transform: Transform) -> LoaderOptions:
    """Returns the options without processes that cannot reach the transform's cache."""
    cache = transform.cache if isinstance(transform, ComposedTransform) else None
    in_this_process = cache is not None and cache.store.in_this_process
    return dataclasses.replace(options, workers=0) if in_this_process else options


def local_rows(sharding: Sharding, *, batch_size: int) -> Int64[np.ndarray, "rows"]:
    """Returns the rows of the global batch that are on this process's devices, ascending.

    Raises:
      ConfigError: the devices do not divide the batch size.
    """
    try:
        indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    except ValueError as error:
        raise ConfigError(
            f"batch_size={batch_size} cannot be divided over the mesh. Set a multiple of "
            f"mesh.data x mesh.fsdp. JAX's error: {error}"
        ) from error
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))


def _training_examples(
    batch: int,
    rows: Ids,
    *,
    start_step: int,
    batch_size: int,
    num_examples: int,
    seed: int,
    chunks: Chunks | None = None,
) -> tuple[Ids, Ids]:
    positions = (start_step + batch) * batch_size + rows
    return order.examples_at(positions, num_examples=num_examples, seed=seed, chunks=chunks)


def _evaluation_examples(
    batch: int, rows: Ids, *, batch_size: int, num_examples: int
) -> tuple[Ids, Ids]:
    ids = batch * batch_size + rows
    return np.where(ids < num_examples, ids, PADDING), np.zeros_like(ids)


def first_example(load: ExampleLoader, *, skip_bad: bool = False) -> dict[str, np.ndarray]:
    """Returns the first example, or, with `skip_bad`, the first that can be loaded.

    Raises:
      DataError: the first example is bad; with `skip_bad`, the first `_MAX_TRIED` examples are all
        bad: the cause is not a few bad examples.
    """
    if not skip_bad:
        try:
            return load(0, epoch=0)
        except DataError as error:
            raise DataError(f"{error}{IF_FEW_ARE_BAD}") from error
    example, bad = _load_first_good(load, max_tried=_MAX_TRIED)
    if not example:
        raise DataError(
            f"None of the first {len(bad)} examples can be loaded: data.on_bad=skip is for a few "
            f"bad examples. The first error: {bad[0][1]}"
        )
    return example


def _load_first_good(
    load: ExampleLoader, *, max_tried: int | None = None
) -> tuple[dict[str, np.ndarray], list[tuple[int, str]]]:
    """Returns the first good example ({} if there is none) and the bad ones before it."""
    bad = []
    for i in range(len(load.source))[:max_tried]:
        try:
            return load(i, epoch=0), bad
        except DataError as error:
            bad.append((i, str(error)))
    return {}, bad
