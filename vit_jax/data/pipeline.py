"""Global batches on the mesh, loaded by Grain.

Each process computes which rows of the global batch its devices hold, loads those alone, and gives
them to its devices ahead of time. Rows are loaded in blocks, the unit that Grain hands to threads
and worker processes. What a row holds depends on its example, its epoch and the seed, and Grain
keeps the order of the blocks: so a batch is the same for any number of processes, workers and
threads, and to resume it takes the step alone.
"""

import functools
import itertools
import math
import os
import queue
import signal
import threading
import time
import weakref
from collections.abc import Callable

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Sharding
from jaxtyping import Int64

from vit_jax.data import order
from vit_jax.data.base import Source
from vit_jax.data.blocks import PADDING, Block, Blocks, ExampleLoader, Ids, Transform
from vit_jax.errors import ConfigError, DataError, VitJaxError

Batch = dict[str, jax.Array]


def train_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    sharding: Sharding,
    workers: int,
    threads: int,
    prefetch: int,
) -> "Batches":
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
      workers: loader processes of this process; 0: load in threads.
      threads: in this process, or in each worker.
      prefetch: batches kept loaded, and as many on the devices, per process.

    Returns:
      An iterator of {"image": f32[B,H,W,C], "label": i32[B] or f32[B,K], "weight": f32[B], all 1}.

    Raises:
      ConfigError: a number that makes no sense, or a batch size that the devices do not divide.
      DataError: at once or from the iterator: an example that cannot be read, decoded or
        transformed; the message begins with its place.
    """
    rows = local_rows(sharding, batch_size=batch_size)
    plan = functools.partial(
        _train_plan,
        start_step=start_step,
        batch_size=batch_size,
        num_examples=len(source),
        seed=seed,
    )
    plan(0, rows[:1])  # Checks the seed.
    load = ExampleLoader(source, transform, seed)
    blocks = Blocks(load, plan, rows=rows, num_batches=None, like=load(0, epoch=0))
    return Batches(
        blocks,
        batch_size=batch_size,
        sharding=sharding,
        workers=workers,
        threads=threads,
        prefetch=prefetch,
    )


def eval_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    sharding: Sharding,
    workers: int,
    threads: int,
    prefetch: int,
    on_bad: Callable[[int, str], None] | None = None,
) -> "Batches":
    """Every example of a source exactly once, in order.

    Example i is row i % batch_size of batch i // batch_size. The last batch is filled up with rows
    of weight 0: every process makes the same number of steps, and an average weighted by `weight`
    is exact.

    Args:
      source: the examples.
      transform: as for training, but its generator is seeded with (0, 0, example).
      batch_size: rows of the global batch.
      sharding: of the global arrays; splits their first axis only.
      workers: loader processes of this process; 0: load in threads.
      threads: in this process, or in each worker.
      prefetch: batches kept loaded, and as many on the devices, per process.
      on_bad: None: an example that cannot be loaded ends the iteration with a DataError. Otherwise
        it is called with the example's id and the message when the iterator comes to its batch, in
        the process that loads it; its row is zero and has weight 0. If no example at all can be
        loaded, there is no batch.

    Returns:
      An iterator as `train_batches` returns; of finite length.

    Raises:
      ConfigError, DataError: as `train_batches`.
    """
    rows = local_rows(sharding, batch_size=batch_size)
    plan = functools.partial(_eval_plan, batch_size=batch_size, num_examples=len(source))
    load = ExampleLoader(source, transform, 0)
    like = _first_loaded(load, on_bad=on_bad)
    num_batches = math.ceil(len(source) / batch_size) if like else 0
    blocks = Blocks(load, plan, rows=rows, num_batches=num_batches, like=like)
    return Batches(
        blocks,
        batch_size=batch_size,
        sharding=sharding,
        workers=workers,
        threads=threads,
        prefetch=prefetch,
        on_bad=on_bad,
    )


def local_rows(sharding: Sharding, *, batch_size: int) -> Int64[np.ndarray, "rows"]:
    """The rows of the global batch that this process's devices hold, ascending.

    Raises:
      ConfigError: the devices do not divide the batch.
    """
    try:
        if batch_size < 1:
            raise ValueError("It must be at least 1.")
        indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    except ValueError as error:
        raise ConfigError(
            f"batch_size={batch_size} cannot be divided over the mesh. Take a multiple of "
            f"mesh.data x mesh.fsdp. JAX says: {error}"
        ) from error
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for (rows,) in indices]))


class Batches:
    """An iterator over global batches. Must be closed, which also leaving it as a context does.

    A thread takes blocks from Grain, puts batches together and starts their transfer to the
    devices, `prefetch` batches ahead. Closing ends it, Grain's threads and the worker processes,
    and frees their shared memory; so does garbage collection, later.
    """

    def __init__(
        self,
        blocks: Blocks,
        *,
        batch_size: int,
        sharding: Sharding,
        workers: int,
        threads: int,
        prefetch: int,
        on_bad: Callable[[int, str], None] | None = None,
    ):
        for name, value, least in (
            ("workers", workers, 0),
            ("threads", threads, 1),
            ("prefetch", prefetch, 1),
        ):
            if value < least:
                raise ConfigError(f"data.{name}={value}: it must be at least {least}.")
        self._on_bad = on_bad
        self._queue = queue.Queue(maxsize=prefetch)
        stop = threading.Event()
        loader = _start_grain(blocks, workers=workers, threads=threads, prefetch=prefetch)
        feeder = threading.Thread(
            target=_feed,
            args=(self._queue, stop, loader, blocks, batch_size, sharding),
            name="batches",
            daemon=True,
        )
        # It holds no reference to self, so that an iterator that is dropped is closed too.
        self._close = weakref.finalize(self, _shut_down, feeder, stop, loader)
        feeder.start()

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        if not self._close.alive:
            raise StopIteration
        item = self._queue.get()
        if item is None or isinstance(item, Exception):
            self.close()
            raise StopIteration if item is None else item
        batch, failures = item
        if failures and self._on_bad is None:
            self.close()
            raise DataError(failures[0][1])
        for i, message in failures:
            self._on_bad(i, message)
        return batch

    def close(self) -> None:
        """Ends all threads and processes. The iterator is then exhausted."""
        self._close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()


def _train_plan(
    batch: int, rows: Ids, *, start_step: int, batch_size: int, num_examples: int, seed: int
) -> tuple[Ids, Ids]:
    positions = (start_step + batch) * batch_size + rows
    return order.locate(positions, num_examples=num_examples, seed=seed)


def _eval_plan(batch: int, rows: Ids, *, batch_size: int, num_examples: int) -> tuple[Ids, Ids]:
    ids = batch * batch_size + rows
    return np.where(ids < num_examples, ids, PADDING), np.zeros_like(ids)


def _first_loaded(
    load: ExampleLoader, *, on_bad: Callable[[int, str], None] | None
) -> dict[str, np.ndarray]:
    """The first example that can be loaded, which shows the shapes; empty if none can be."""
    failures = []
    for i in range(len(load.source)):
        try:
            return load(i, epoch=0)
        except DataError as error:
            if on_bad is None:
                raise
            failures.append((i, str(error)))
    for i, message in failures:
        on_bad(i, message)
    return {}


def _start_grain(
    blocks: Blocks, *, workers: int, threads: int, prefetch: int
) -> grain.DatasetIterator:
    """An iterator over the blocks in order, about `prefetch` batches of them in memory."""
    workers = min(workers, len(blocks))
    ahead = math.ceil(prefetch * blocks.per_batch / max(workers, 1))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, ahead))
    dataset = grain.MapDataset.source(blocks).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # In a notebook: Grain reads a flag of its own.
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1),
            worker_init_fn=_init_worker,
        )
    return iter(dataset)


def _init_worker(index: int, count: int) -> None:
    """Makes a worker process live exactly as long as the process that it loads for."""
    del index, count
    # Ctrl-C and a scheduler's SIGTERM reach the whole group; the main process then still needs
    # batches up to its last step, and closes its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()


def _feed(
    output: queue.Queue,
    stop: threading.Event,
    loader: grain.DatasetIterator,
    blocks: Blocks,
    batch_size: int,
    sharding: Sharding,
) -> None:
    """Body of the feeding thread: puts (batch, failures), and None or an exception at the end."""

    def put(item) -> None:
        while not stop.is_set():
            try:
                return output.put(item, timeout=0.1)
            except queue.Full:
                continue

    try:
        while not stop.is_set():
            parts = list(itertools.islice(loader, blocks.per_batch))
            if not parts:
                return put(None)
            failures = [failure for part in parts for failure in part.pop("failures")]
            put((_to_devices(parts, blocks.rows, batch_size, sharding), failures))
    except VitJaxError as error:
        put(error)
    except Exception as error:
        fault = DataError(
            f"The data loader failed: {error} (A worker that is killed often means that memory ran "
            "out: lower data.workers or data.prefetch.)"
        )
        fault.__cause__ = error
        put(fault)


def _to_devices(
    parts: list[Block], rows: Int64[np.ndarray, "rows"], batch_size: int, sharding: Sharding
) -> Batch:
    """One global batch, of this process's rows; their transfer is started, not awaited."""
    indices = sharding.addressable_devices_indices_map((batch_size,))

    def globalise(local: np.ndarray) -> jax.Array:
        shards = []
        for (of_device,) in indices.values():
            start, stop, _ = of_device.indices(batch_size)
            first = np.searchsorted(rows, start)
            shards.append(local[first : first + stop - start])
        # An explicit transfer, which a transfer guard lets through.
        shards = jax.device_put(shards, list(indices))
        return jax.make_array_from_single_device_arrays(
            (batch_size, *local.shape[1:]), sharding, shards
        )

    # Concatenating copies out of the shared memory, which Grain frees when a block is dropped.
    return {key: globalise(np.concatenate([p[key] for p in parts])) for key in parts[0]}


def _shut_down(
    feeder: threading.Thread, stop: threading.Event, loader: grain.DatasetIterator
) -> None:
    stop.set()
    feeder.join(timeout=10)  # Longer only if a block takes longer; then Grain's end is its end.
    loader.close()
