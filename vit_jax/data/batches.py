"""The iterator over global batches: from Grain's blocks to arrays on the devices, ahead of time.

A batch is a function of its number alone, so a loader that is lost is no loss: another one goes on
at the first batch that has not been given out, and gives the same.
"""

import contextlib
import functools
import itertools
import queue
import threading
import weakref
from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np
from absl import logging
from jax.sharding import Sharding
from jaxtyping import Int64

from vit_jax.data.blocks import BadRow, Block, Blocks
from vit_jax.data.workers import WorkerLost, Workers
from vit_jax.errors import ConfigError, DataError, VitJaxError

Batch = dict[str, jax.Array]

MAX_RESTARTS = 3  # Of a loader,
FORGIVEN = 1000  # within so many batches: over weeks a worker may well be killed more often.
_GRACE = 10.0  # Seconds that closing waits for the thread, at most.


class Batches:
    """An iterator over global batches. Must be closed, which also leaving it as a context does.

    A thread takes blocks from Grain's threads or from worker processes, puts batches together and
    starts their transfer to the devices, `prefetch` batches ahead. Closing ends all of these; so
    does garbage collection, later. A worker process that is killed, stopped or hung
    (`workers.SILENCE`) is replaced, `MAX_RESTARTS` times in `FORGIVEN` batches.
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
        on_bad: Callable[[int, BadRow], None] | None = None,
    ):
        """Starts to load.

        Args:
          blocks: of this process's rows.
          batch_size: rows of the global batch.
          sharding: of the global arrays; splits their first axis only.
          workers: loader processes of this process; 0: load in threads.
          threads: in this process, or in each worker.
          prefetch: batches kept loaded, and as many on the devices.
          on_bad: called by `next` with the number of its batch and each bad row of it that this
            process is the first to hold; None: a bad row ends the iteration with a DataError.
        """
        for name, value, least in (
            ("workers", workers, 0),
            ("threads", threads, 1),
            ("prefetch", prefetch, 1),
        ):
            if value < least:
                raise ConfigError(f"data.{name}={value}: it must be at least {least}.")
        self._on_bad = on_bad
        self._reported = set(first_held_rows(sharding, batch_size=batch_size).tolist())
        self._blocks = blocks
        self._start = functools.partial(
            _Loader,
            to_devices=functools.partial(
                _to_devices, rows=blocks.rows, batch_size=batch_size, sharding=sharding
            ),
            workers=workers,
            threads=threads,
            prefetch=prefetch,
        )
        self._given = 0
        self._restarts, self._restarted_at = 0, 0
        # It holds no reference to self, so that an iterator that is dropped is closed too.
        self._loader = [self._start(blocks)]
        self._close = weakref.finalize(self, _close_last, self._loader)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        if not self._close.alive:
            raise StopIteration
        item = self._wait()
        if item is None:
            self.close()
            raise StopIteration
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

    def _wait(self) -> tuple[Batch, list[BadRow]] | None:
        """The next batch and its bad rows, None at the end; from another loader if need be."""
        while True:
            item = self._loader[0].batches.get()
            if not isinstance(item, Exception):
                return item
            if self._given - self._restarted_at >= FORGIVEN:
                self._restarts = 0
            if isinstance(item, WorkerLost) and self._restarts < MAX_RESTARTS:
                self._restart(item)
                continue
            self.close()
            raise item if isinstance(item, VitJaxError) else self._explain(item) from item

    def _restart(self, fault: WorkerLost) -> None:
        self._restarts, self._restarted_at = self._restarts + 1, self._given
        logging.warning(
            "The data loader is started again (%d of at most %d times), which changes no batch: %s",
            self._restarts,
            MAX_RESTARTS,
            fault,
        )
        self._loader[0].close()
        self._loader[0] = self._start(self._blocks.starting_at(self._given))

    def _explain(self, fault: Exception) -> DataError:
        after = f" after {self._restarts} new starts" if self._restarts else ""
        return DataError(
            f"The data loader failed{after}: {str(fault) or type(fault).__name__}. If memory or "
            "open files run out, lower data.workers, data.threads or data.prefetch."
        )


def first_held_rows(sharding: Sharding, *, batch_size: int) -> Int64[np.ndarray, "rows"]:
    """The rows of the global batch that no process of a lower number holds as well."""
    holder = np.full(batch_size, jax.process_count())
    for device, (rows,) in sharding.devices_indices_map((batch_size,)).items():
        holder[rows] = np.minimum(holder[rows], device.process_index)
    return np.flatnonzero(holder == jax.process_index())


class _Loader:
    """A thread that makes batches of blocks, and what loads these."""

    def __init__(
        self,
        blocks: Blocks,
        *,
        to_devices: Callable[[dict[str, np.ndarray]], Batch],
        workers: int,
        threads: int,
        prefetch: int,
    ):
        # (batch, its bad rows); at the end None, or the exception that ended it.
        self.batches: queue.Queue = queue.Queue(maxsize=prefetch)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_feed,
            args=(self.batches, self._stop, blocks, to_devices, workers, threads, prefetch),
            name="batches",
            daemon=True,
        )
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and what loads for it; does not wait for a file that does not come."""
        self._stop.set()
        self._thread.join(_GRACE)


def _close_last(loaders: list[_Loader]) -> None:
    loaders[0].close()


def _feed(
    output: queue.Queue,
    stop: threading.Event,
    blocks: Blocks,
    to_devices: Callable[[dict[str, np.ndarray]], Batch],
    workers: int,
    threads: int,
    prefetch: int,
) -> None:
    """Body of the thread: puts (batch, its bad rows), and None or an exception at the end."""

    def put(item) -> None:
        while not stop.is_set():
            try:
                return output.put(item, timeout=0.1)
            except queue.Full:
                continue

    try:
        with contextlib.closing(_start(blocks, workers, threads, prefetch, stop)) as loaded:
            while not stop.is_set():
                local, bad = _gather(loaded, blocks)
                if not local:
                    return put(None)
                put((to_devices(local), bad))
    except Exception as error:
        put(error)


def _start(blocks: Blocks, workers: int, threads: int, prefetch: int, stop: threading.Event):
    """An iterator over the blocks, in threads or in worker processes."""
    if workers and len(blocks):
        return Workers(blocks, count=min(workers, len(blocks)), threads=threads, stop=stop)
    # About `prefetch` batches of blocks in memory.
    ahead = max(threads, prefetch * blocks.per_batch)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.source(blocks).to_iter_dataset(options))


def _gather(loaded: Iterator[Block], blocks: Blocks) -> tuple[dict[str, np.ndarray], list[BadRow]]:
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
        del array, block  # They may be views of memory that is to be freed.
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
