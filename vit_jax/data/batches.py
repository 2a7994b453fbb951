"""The iterator over global batches: prefetches Grain's blocks and transfers them to the devices."""

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import queue
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

import jax
import numpy as np
from absl import flags
from jax.sharding import Sharding
from jaxtyping import Int64
from ml_collections import FrozenConfigDict

from vit_jax.data.batch_memory import BatchMemory
from vit_jax.data.blocks import BLOCK_ROWS, BadRow, Blocks, RowBlock
from vit_jax.data.op import Scaling
from vit_jax.errors import DataError, LostError, VitJaxError
from vit_jax.telemetry.notes import leave_notes_to_others

if TYPE_CHECKING:
    import grain

Batch = dict[str, jax.Array]

# The end of the error of a bad example.
IF_FEW_ARE_BAD = (
    "\nIf few examples are bad: --config.data.on_bad=skip leaves them out of a run and lists them "
    "in bad_examples.jsonl. A run that has begun may continue with it."
)

AUTOMATIC = -1  # Of workers and threads.
# With at most this many cores, threads of the main process load as fast as worker processes.
_CORES_OF_THREADS = 4
_MAX_WORKERS = 16
# After the transforms: 2,000 images of 224x224, which take a core about 8 s. A worker takes a core
# 2 s to start and 1 s to end (see docs/training.md).
_PIXELS_PER_WORKER = 2_000 * 224**2
_THREADS_PER_WORKER, _MAX_THREADS = 4, 16

_CLOSE_TIMEOUT_SECONDS = 10.0  # For the thread to end.
_BLOCKS_AHEAD = 2  # Per worker: one is copied while the next is loaded.


@dataclasses.dataclass(frozen=True)
class LoaderOptions:
    """Options of `config.data` that change the speed of loading, but no batch.

    Attributes:
      workers: loader processes of this process; 0: load in threads; `AUTOMATIC`: see `resolved`.
      threads: in this process, or in each worker; `AUTOMATIC`: see `resolved`.
      prefetch: batches loaded ahead in host memory, and as many on the devices.
    """

    workers: int = AUTOMATIC
    threads: int = AUTOMATIC
    prefetch: int = 2

    @classmethod
    def from_config(cls, data: FrozenConfigDict, *, workers: int | None = None) -> "LoaderOptions":
        """Returns the options of `config.data`; `workers`, if given, replaces its own."""
        return cls(data.workers if workers is None else workers, data.threads, data.prefetch)

    def resolved(self, *, images: int, pixels: int, cores: int | None = None) -> "LoaderOptions":
        """Returns the options with automatic values replaced by numbers.

        Args:
          images: number of images that this process will load.
          pixels: of one of them, after the transforms.
          cores: None: those on which this process may run.
        """
        cores = _available_cores() if cores is None else cores
        workers, threads = self.workers, self.threads
        if workers == AUTOMATIC:
            workers = automatic_workers(cores=cores, images=images, pixels=pixels)
        if threads == AUTOMATIC:
            threads = automatic_threads(cores=cores, workers=workers)
        return dataclasses.replace(self, workers=workers, threads=threads)

    def rows_ahead(self, rows: int) -> int:
        """Returns how many rows are loaded ahead, at most, in this process or in a worker.

        Args:
          rows: rows of the global batch that this process loads; no option is automatic.
        """
        in_batch = math.ceil(rows / BLOCK_ROWS)
        return max(self.threads, self.prefetch * in_batch, _BLOCKS_AHEAD) * BLOCK_ROWS


def _available_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only.
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def automatic_workers(*, cores: int, images: int, pixels: int) -> int:
    """Returns a number of loader processes that costs less than it saves: from 0 to 16.

    It is 0 on a few cores, where threads are as fast; otherwise two cores are left to the main
    process, and there is at most one worker for 2,000 images of 224x224 (or as many pixels).

    Args:
      cores: on which this process may run.
      images: number of images to load.
      pixels: of one of them, after the transforms.
    """
    if cores <= _CORES_OF_THREADS:
        return 0
    return min(cores - 2, images * pixels // _PIXELS_PER_WORKER, _MAX_WORKERS)


def automatic_threads(*, cores: int, workers: int) -> int:
    """Returns a number of reading threads: 4 in a worker; else one per core, from 4 to 16."""
    if workers:
        return _THREADS_PER_WORKER
    return max(_THREADS_PER_WORKER, min(cores, _MAX_THREADS))


class Batches:
    """An iterator over global batches. Close it, or use it as a context manager.

    A thread takes blocks from Grain's threads or worker processes, assembles batches and starts
    their transfer to the devices, `prefetch` batches ahead. Closing ends all of these; so does
    garbage collection, later.
    """

    def __init__(
        self,
        blocks: Blocks,
        *,
        batch_size: int,
        sharding: Sharding,
        options: LoaderOptions,
        scaling: Scaling | None = None,
        on_bad: Callable[[int, BadRow], None] | None = None,
    ):
        """Starts to load.

        Args:
          blocks: of this process's rows.
          batch_size: rows of the global batch.
          sharding: of the global arrays; splits only their first axis.
          options: numbers of processes, threads and prefetched batches, none of them automatic.
          scaling: of the images in the blocks, uint8, to those of the batches, float32; None: they
            are the same.
          on_bad: called by `next` for each bad row of `owned_rows`, with the number of the batch
            and the row; None: a bad row ends the iteration with a DataError.
        """
        self._on_bad = on_bad
        self._owned = set(owned_rows(sharding, batch_size=batch_size).tolist())
        self._num_returned = 0
        # (batch, its bad rows); at the end None, or the exception that ended it.
        self._batches: queue.Queue = queue.Queue(maxsize=options.prefetch)
        to_devices = functools.partial(
            _to_devices, rows=blocks.rows, batch_size=batch_size, sharding=sharding
        )
        load = functools.partial(_load, blocks, options)
        assemble = functools.partial(
            _assemble, blocks=blocks, scaling=scaling, memory=BatchMemory()
        )
        stop = threading.Event()
        # The thread has no reference to self: otherwise the iterator would never be collected.
        thread = threading.Thread(
            target=_produce,
            args=(self._batches, stop, load, assemble, to_devices),
            name="batches",
            daemon=True,
        )
        thread.start()
        self._close = weakref.finalize(self, _stop_thread, stop, thread)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
          DataError: an example is bad and `on_bad` is None, or the loader failed.
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
            raise item if isinstance(item, VitJaxError) else _loader_error(item) from item
        batch, bad = item
        if bad and self._on_bad is None:
            self.close()
            raise DataError(bad[0].message + IF_FEW_ARE_BAD)
        for row in bad:
            if self._on_bad is not None and row.row in self._owned:
                self._on_bad(self._num_returned, row)
        self._num_returned += 1
        return batch

    def close(self) -> None:
        """Ends all threads and processes. The iterator is then exhausted."""
        self._close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()


def _stop_thread(stop: threading.Event, thread: threading.Thread) -> None:
    """Ends the thread and its loader; the time-out is for a read that hangs."""
    stop.set()
    thread.join(_CLOSE_TIMEOUT_SECONDS)


def _loader_error(error: Exception) -> VitJaxError:
    # Grain has no exception type for a killed worker.
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


def owned_rows(sharding: Sharding, *, batch_size: int) -> Int64[np.ndarray, "rows"]:
    """Returns the rows of the global batch that are here and in no process of a lower index.

    Every row is owned by exactly one process, even if several have a copy.
    """
    owner = np.full(batch_size, jax.process_count())
    for device, (rows,) in sharding.devices_indices_map((batch_size,)).items():
        owner[rows] = np.minimum(owner[rows], device.process_index)
    return np.flatnonzero(owner == jax.process_index())


def _produce(
    output: queue.Queue,
    stop: threading.Event,
    load: Callable[[], "grain.DatasetIterator"],
    assemble: Callable[[Iterator[RowBlock]], tuple[dict[str, np.ndarray], list[BadRow]]],
    to_devices: Callable[[dict[str, np.ndarray]], Batch],
) -> None:
    """Body of the thread: puts (batch, its bad rows), and at the end None or an exception."""

    def put(item) -> None:
        while not stop.is_set():
            try:
                return output.put(item, timeout=0.1)
            except queue.Full:
                continue

    try:
        with contextlib.closing(load()) as loaded:
            while not stop.is_set():
                local, bad = assemble(loaded)
                if not local:
                    return put(None)
                put((to_devices(local), bad))
    except Exception as error:
        put(error)


def _load(blocks: Blocks, options: LoaderOptions) -> "grain.DatasetIterator":
    """Starts to load the blocks, in threads of this process or of worker processes."""
    import grain

    workers, threads = min(options.workers, len(blocks)), options.threads
    ahead = _BLOCKS_AHEAD if workers else options.prefetch * blocks.per_batch
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, ahead))
    dataset = grain.MapDataset.source(blocks).to_iter_dataset(reading)
    if workers:
        # Ctrl-C and a scheduler's SIGTERM reach the whole process group, but the main process needs
        # batches until it has saved. So the signals are blocked in this thread, which starts the
        # workers: they inherit that, and later ignore the signals. The resource tracker unblocks
        # the signals when it starts, so it is started before.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        if not flags.FLAGS.is_parsed():  # Grain 0.2.18 reads one; only commands parse them.
            flags.FLAGS.mark_as_parsed()
        processes = grain.MultiprocessingOptions(workers, per_worker_buffer_size=_BLOCKS_AHEAD)
        dataset = dataset.mp_prefetch(processes, worker_init_fn=_follow_parent)
    return iter(dataset)


def _follow_parent(index: int, count: int) -> None:
    """Makes this worker process ignore signals, and end when its parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if index:  # All workers find the same.
        leave_notes_to_others()
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _assemble(
    loaded: Iterator[RowBlock], *, blocks: Blocks, scaling: Scaling | None, memory: BatchMemory
) -> tuple[dict[str, np.ndarray], list[BadRow]]:
    """Returns this process's rows of the next batch, and the bad ones; both empty at the end."""
    local: dict[str, np.ndarray] = {}
    bad: list[BadRow] = []
    row = 0
    for block in itertools.islice(loaded, blocks.per_batch):
        bad += block.pop("bad")
        for key, array in block.items():
            scale = scaling if key == "image" else None
            if key not in local:
                dtype = np.dtype(np.float32) if scale else array.dtype
                local[key] = memory.empty((len(blocks.rows), *array.shape[1:]), dtype)
            target = local[key][row : row + len(array)]
            if scale is None:
                target[...] = array
                continue
            for i, weight in enumerate(block["weight"]):  # One image at a time: it stays in cache.
                if weight:
                    scale.write(array[i], target[i])
                else:
                    target[i] = 0
        row += len(block["weight"])
    return local, bad


def _to_devices(
    local: dict[str, np.ndarray],
    *,
    rows: Int64[np.ndarray, "rows"],
    batch_size: int,
    sharding: Sharding,
) -> Batch:
    """Makes a global batch of this process's rows. Transfers are asynchronous."""
    indices = sharding.addressable_devices_indices_map((batch_size,))

    def to_global(array: np.ndarray) -> jax.Array:
        shards = []
        for index in indices.values():
            assert index is not None  # Every device of this process has rows.
            (device_rows,) = index
            start, stop, _ = device_rows.indices(batch_size)
            first = np.searchsorted(rows, start)
            shards.append(array[first : first + stop - start])
        # An explicit transfer, which the transfer guard allows.
        shards = jax.device_put(shards, list(indices))
        return jax.make_array_from_single_device_arrays(
            (batch_size, *array.shape[1:]), sharding, shards
        )

    return {key: to_global(array) for key, array in local.items()}
