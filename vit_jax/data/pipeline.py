"""Global batches on the mesh, loaded by Grain.

Each process computes which rows of the global batch its devices hold, loads those alone, and gives
them to its devices ahead of time. Rows are loaded in blocks, the unit that Grain hands to threads
and worker processes. What a row holds depends on its example, its epoch and the seed, and Grain
keeps the order of the blocks: so a batch is the same for any number of processes, workers and
threads, and to resume it takes the step alone.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
from jax.sharding import Sharding
from jaxtyping import Int64

from vit_jax.data import order
from vit_jax.data.base import Source
from vit_jax.data.batches import Batches, Loading
from vit_jax.data.blocks import PADDING, Blocks, ExampleLoader, Ids, Transform
from vit_jax.errors import ConfigError, DataError

_MOST_TRIED = 1000  # Bad examples at the beginning of a data set, in search of a good one.


def train_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    sharding: Sharding,
    loading: Loading,
    on_bad: Callable[[int, int, int, str], None] | None = None,
) -> Batches:
    """The endless training batches, from that of step `start_step` on.

    Close the result, or use it as a context manager.

    Args:
      source: the examples.
      transform: from an example to {"image": f32[H,W,C], "label": int or f32[K]}; it gets a
        generator seeded with (seed, epoch, example).
      batch_size: rows of the global batch.
      seed: of the order and of the transform's randomness, not negative.
      start_step: number of batches to leave out.
      sharding: of the global arrays; splits their first axis only.
      loading: by how many processes and threads, and how far ahead, in each process.
      on_bad: None: an example that cannot be read, decoded or transformed ends the iteration with
        a DataError. Otherwise its row is zero and has weight 0, and nothing else changes; `next`
        calls this with the step of its batch, the row, the example's id and the message, in the
        first of the processes that hold the row.

    Returns:
      An iterator of {"image": f32[B,H,W,C], "label": i32[B] or f32[B,K], "weight": f32[B]}; the
      weights are 1 but for bad examples.

    Raises:
      ConfigError: the devices do not divide the batch size.
      DataError: at once or from the iterator: an example is bad, and `on_bad` None (the message
        begins with its place); none of the first examples is good; or the loader fails.
    """
    rows = local_rows(sharding, batch_size=batch_size)
    assign = functools.partial(
        _training_examples,
        start_step=start_step,
        batch_size=batch_size,
        num_examples=len(source),
        seed=seed,
    )
    load = ExampleLoader(source, transform, seed)
    like = load(0, epoch=0) if on_bad is None else first_good(load)
    blocks = Blocks(load, assign, rows=rows, num_batches=None, like=like)
    return Batches(
        blocks,
        batch_size=batch_size,
        sharding=sharding,
        loading=loading,
        on_bad=on_bad and (lambda batch, bad: on_bad(start_step + batch, *bad)),
    )


def eval_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    sharding: Sharding,
    loading: Loading,
    on_bad: Callable[[int, str], None] | None = None,
) -> Batches:
    """Every example of a source exactly once, in order.

    Example i is row i % batch_size of batch i // batch_size. The last batch is filled up with rows
    of weight 0: every process makes the same number of steps, and an average weighted by `weight`
    is exact.

    Args:
      source: the examples.
      transform: as for training, but its generator is seeded with (0, 0, example).
      batch_size: rows of the global batch.
      sharding: of the global arrays; splits their first axis only.
      loading: by how many processes and threads, and how far ahead, in each process.
      on_bad: None: an example that cannot be loaded ends the iteration with a DataError. Otherwise
        it is called with the example's id and the message when the iterator comes to its batch, in
        the first of the processes that hold it; its row is zero and has weight 0. If no example at
        all can be loaded, there is no batch.

    Returns:
      An iterator as `train_batches` returns; of finite length.

    Raises:
      ConfigError, DataError: as `train_batches`.
    """
    rows = local_rows(sharding, batch_size=batch_size)
    assign = functools.partial(
        _evaluation_examples, batch_size=batch_size, num_examples=len(source)
    )
    load = ExampleLoader(source, transform, 0)
    like, bad = (load(0, epoch=0), []) if on_bad is None else _try_all(load)
    if not like:
        for i, message in bad:
            on_bad(i, message)
    num_batches = math.ceil(len(source) / batch_size) if like else 0
    blocks = Blocks(load, assign, rows=rows, num_batches=num_batches, like=like)
    return Batches(
        blocks,
        batch_size=batch_size,
        sharding=sharding,
        loading=loading,
        on_bad=on_bad and (lambda batch, bad: on_bad(bad.example, bad.message)),
    )


def local_rows(sharding: Sharding, *, batch_size: int) -> Int64[np.ndarray, "rows"]:
    """The rows of the global batch that this process's devices hold, ascending.

    Raises:
      ConfigError: the devices do not divide the batch.
    """
    try:
        indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    except ValueError as error:
        raise ConfigError(
            f"batch_size={batch_size} cannot be divided over the mesh. Take a multiple of "
            f"mesh.data x mesh.fsdp. JAX says: {error}"
        ) from error
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for (rows,) in indices]))


def _training_examples(
    batch: int, rows: Ids, *, start_step: int, batch_size: int, num_examples: int, seed: int
) -> tuple[Ids, Ids]:
    positions = (start_step + batch) * batch_size + rows
    return order.examples_at(positions, num_examples=num_examples, seed=seed)


def _evaluation_examples(
    batch: int, rows: Ids, *, batch_size: int, num_examples: int
) -> tuple[Ids, Ids]:
    ids = batch * batch_size + rows
    return np.where(ids < num_examples, ids, PADDING), np.zeros_like(ids)


def first_good(load: ExampleLoader) -> dict[str, np.ndarray]:
    """The first example that can be loaded, which shows the shapes.

    Raises:
      DataError: none of the first ones can be, so that something else must be wrong.
    """
    example, bad = _try_all(load, at_most=_MOST_TRIED)
    if not example:
        raise DataError(
            f"None of the first {len(bad)} examples can be used, which is no matter of a few bad "
            f"ones to skip (data.on_bad). The first: {bad[0][1]}"
        )
    return example


def _try_all(
    load: ExampleLoader, *, at_most: int | None = None
) -> tuple[dict[str, np.ndarray], list[tuple[int, str]]]:
    """The first good example, {} if there is none, and the bad ones before it."""
    bad = []
    for i in range(len(load.source))[:at_most]:
        try:
            return load(i, epoch=0), bad
        except DataError as error:
            bad.append((i, str(error)))
    return {}, bad
