"""The iterator over global batches: from Grain's blocks to arrays on the devices, ahead of time."""

import contextlib
import dataclasses
import functools
import itertools
import os
import queue
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker

import grain
import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Int64
from ml_collections import FrozenConfigDict

from vit_jax.data.blocks import BadRow, Blocks, RowBlock
from vit_jax.errors import DataError, LostError, VitJaxError

Batch = dict[str, jax.Array]

_CLOSE_SECONDS = 10.0  # The longest that closing waits for the thread.
_BLOCKS_AHEAD = 2  # Of each worker: one is copied from while the next is loaded.


@dataclasses.dataclass(frozen=True)
class Loading:
    """How batches are loaded; it changes no batch. As in `config.data`.

    Attributes:
      workers: loader processes of this process; 0: load in threads.
      threads: in this process, or in each worker.
      prefetch: batches kept loaded, and as many on the devices.
    """

    workers: int = 0
    threads: int = 4
    prefetch: int = 2

    @classmethod
    def of(cls, data: FrozenConfigDict, *, workers: int | None = None) -> "Loading":
        """Returns what `config.data` says, with another number of workers if one is given."""
        workers = data.workers if workers is None else workers
        return cls(workers, data.threads, data.prefetch)


class Batches:
    """An iterator over global batches. Must be closed, which leaving it as a context does, too.

    A thread takes blocks from Grain's threads or worker processes, puts batches together and starts
    their transfer to the devices, `prefetch` batches ahead. Closing ends all of these; so does
    garbage collection, later.
    """

    def __init__(
        self,
        blocks: Blocks,
        *,
        batch_size: int,
        sharding: Sharding,
        loading: Loading,
        on_bad: Callable[[int, BadRow], None] | None = None,
    ):
        """Starts to load.

        Args:
          blocks: of this process's rows.
          batch_size: rows of the global batch.
          sharding: of the global arrays; splits their first axis only.
          loading: by how many processes and threads, and how far ahead.
          on_bad: called by `next` with the number of its batch and each bad row of it that this
            process is the first to hold; None: a bad row ends the iteration with a DataError.
        """
        self._on_bad = on_bad
        self._reported = set(first_held_rows(sharding, batch_size=batch_size).tolist())
        self._given = 0
        # (batch, its bad rows); at the end None, or the exception that ended it.
        self._batches: queue.Queue = queue.Queue(maxsize=loading.prefetch)
        to_devices = functools.partial(
            _to_devices, rows=blocks.rows, batch_size=batch_size, sharding=sharding
        )
        load = functools.partial(_load, blocks, loading)
        stop = threading.Event()
        # The thread has no reference to self, so that an iterator that is dropped is closed, too.
        thread = threading.Thread(
            target=_feed,
            args=(self._batches, stop, blocks, load, to_devices),
            name="batches",
            daemon=True,
        )
        thread.start()
        self._close = weakref.finalize(self, _end, stop, thread)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          DataError: an example is bad and `on_bad` None, or the loader failed.
          LostError: a worker process was killed.
        """
        if not self._close.alive:
            raise StopIteration
        item = self._batches.get()
        if item is None:
            self.close()
            raise StopIteration
        if isinstance(item, Exception):
            self.close()
            raise item if isinstance(item, VitJaxError) else _explained(item) from item
        batch, bad = item
        if bad and self._on_bad is None:
            self.close()
            raise DataError(bad[0].message)
        for row in bad:
            if row.row in self._reported:
                self._on_bad(self._given, row)
        self._given += 1
        return batch

    def close(self) -> None:
        """Ends all threads and processes. The iterator is then exhausted."""
        self._close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()


def _end(stop: threading.Event, thread: threading.Thread) -> None:
    """Ends the thread and what loads for it; does not wait for a file that does not come."""
    stop.set()
    thread.join(_CLOSE_SECONDS)


def _explained(error: Exception) -> VitJaxError:
    # Grain has no type for it.
    if isinstance(error, RuntimeError) and "terminated unexpectedly" in str(error):
        return LostError(
            f"A data loader process was killed, which often means that memory ran out: {error} The "
            "last checkpoint is kept. Start the same command again, with lower data.workers, "
            "data.threads or data.prefetch if it happens often."
        )
    return DataError(
        f"The data loader failed: {str(error) or type(error).__name__}. If memory or open files "
        "run out, lower data.workers, data.threads or data.prefetch."
    )


def first_held_rows(sharding: Sharding, *, batch_size: int) -> Int64[np.ndarray, "rows"]:
    """The rows of the global batch that no process of a lower number holds as well."""
    holder = np.full(batch_size, jax.process_count())
    for device, (rows,) in sharding.devices_indices_map((batch_size,)).items():
        holder[rows] = np.minimum(holder[rows], device.process_index)
    return np.flatnonzero(holder == jax.process_index())


def _feed(
    output: queue.Queue,
    stop: threading.Event,
    blocks: Blocks,
    load: Callable[[], Iterator[RowBlock]],
    to_devices: Callable[[dict[str, np.ndarray]], Batch],
) -> None:
    """Body of the thread: puts (batch, its bad rows), and None or an exception at the end."""

    def put(item) -> None:
        while not stop.is_set():
            try:
                return output.put(item, timeout=0.1)
            except queue.Full:
                continue

    try:
        with contextlib.closing(load()) as loaded:
            while not stop.is_set():
                local, bad = _gather(loaded, blocks)
                if not local:
                    return put(None)
                put((to_devices(local), bad))
    except Exception as error:
        put(error)


def _load(blocks: Blocks, loading: Loading) -> Iterator[RowBlock]:
    """Starts to load the blocks, in threads of this process or of worker processes."""
    workers, threads = min(loading.workers, len(blocks)), loading.threads
    ahead = _BLOCKS_AHEAD if workers else loading.prefetch * blocks.per_batch
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, ahead))
    dataset = grain.MapDataset.source(blocks).to_iter_dataset(options)
    if workers:
        # Worker processes inherit the signals that this thread, which starts them, has blocked,
        # and ignore them later. Ctrl-C and a scheduler's SIGTERM reach the whole group; the main
        # process needs batches until it saves. The tracker unblocks them when it starts, so it
        # comes first.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        processes = grain.MultiprocessingOptions(workers, per_worker_buffer_size=_BLOCKS_AHEAD)
        dataset = dataset.mp_prefetch(processes, worker_init_fn=_follow_parent)
    return iter(dataset)


def _follow_parent(index: int, count: int) -> None:
    """Lets only the parent end this worker process, and ends it when the parent was killed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _gather(
    loaded: Iterator[RowBlock], blocks: Blocks
) -> tuple[dict[str, np.ndarray], list[BadRow]]:
    """The rows of the next batch of this process, and the bad ones of them; empty at the end."""
    local: dict[str, np.ndarray] = {}
    bad: list[BadRow] = []
    row = 0
    for block in itertools.islice(loaded, blocks.per_batch):
        bad += block.pop("bad")
        for key, array in block.items():
            if key not in local:
                local[key] = np.empty((len(blocks.rows), *array.shape[1:]), array.dtype)
            local[key][row : row + len(array)] = array
        row += len(block["weight"])
    return local, bad


def _to_devices(
    local: dict[str, np.ndarray],
    *,
    rows: Int64[np.ndarray, "rows"],
    batch_size: int,
    sharding: Sharding,
) -> Batch:
    """One global batch, of this process's rows; their transfer is started, not awaited."""
    indices = sharding.addressable_devices_indices_map((batch_size,))

    def globalise(array: np.ndarray) -> jax.Array:
        shards = []
        for (of_device,) in indices.values():
            start, stop, _ = of_device.indices(batch_size)
            first = np.searchsorted(rows, start)
            shards.append(array[first : first + stop - start])
        # An explicit transfer, which a transfer guard lets through.
        shards = jax.device_put(shards, list(indices))
        return jax.make_array_from_single_device_arrays(
            (batch_size, *array.shape[1:]), sharding, shards
        )

    return {key: globalise(array) for key, array in local.items()}
