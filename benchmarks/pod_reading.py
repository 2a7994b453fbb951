"""Simulates how fast the hosts of a pod read records from storage with latency.

    python -m benchmarks.pod_reading --out=benchmarks/pod_reading.svg [--check]

A host reads the records of its rows of each batch, block by block, in several threads, as
`vit_jax.data.blocks` does; which records these are, and in which order, comes from
`vit_jax.data.order`. A request takes the latency plus its bytes over the bandwidth of a connection;
all requests of a host share its link. Nothing else takes time: the result is the rate that reading
allows, whatever decoding costs. Time is virtual, so the result does not depend on the machine. The
sizes of records, bandwidths and latencies below are assumptions, not measurements of a service.

Patterns: the global permutation, one record after the other or the 32 of a block at once, by the
threads of `vit_jax.data.reading.in_parallel`; the two-level order, whose chunks are read by one
request each and held until they are used; the same without lanes, where every host reads all chunks
of the window.

--check compares with the loader itself: Grain's threads, blocks and chunk cache, on a source that
sleeps. Results: benchmarks/README.md.
"""

import dataclasses
import heapq
import math
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
from absl import app, flags
from matplotlib import rc_context
from matplotlib.figure import Figure

from vit_jax.analysis import figures
from vit_jax.data import batches, order
from vit_jax.data.base import Source
from vit_jax.data.blocks import BLOCK_ROWS, Blocks, ExampleLoader
from vit_jax.data.chunk_cache import ChunkCache, held_examples
from vit_jax.data.order import Chunks
from vit_jax.data.pipeline import _training_examples
from vit_jax.data.reading import READERS

NUM_EXAMPLES, BATCH_SIZE, CHUNK, WINDOW = 1_281_167, 4096, 64, 8192
_START = 100  # Step at which a simulation begins: in the middle of an epoch.
_PREFETCH = 2  # Batches read ahead, the default of data.prefetch.


@dataclasses.dataclass(frozen=True)
class Storage:
    """The assumed storage.

    Attributes:
      latency: seconds until the first byte of a request.
      connection: bytes per second of one request.
      link: bytes per second of a host.
      record: bytes of a record; the default is the mean of ImageNet's.
      requests: that begin in a second, for a host.
    """

    latency: float
    connection: float = 100e6
    link: float = 3e9
    record: int = 110_000
    requests: float = math.inf


class SingleLane(Chunks):
    """The two-level order without lanes, for comparison."""

    lanes = 1  # pyright: ignore[reportAssignmentType]  # Replaces the property.


PATTERNS = ("global, one by one", "global, in groups", "two-level", "two-level without lanes")


def chunks_of(pattern: str) -> Chunks | None:
    """Returns the chunks of a pattern's order."""
    if pattern.startswith("global"):
        return None
    kind = SingleLane if pattern.endswith("without lanes") else Chunks
    return kind(CHUNK, WINDOW, BATCH_SIZE)


@dataclasses.dataclass
class Result:
    """What a host has done.

    Attributes:
      images_per_second: that it could use.
      requests_per_image: requests divided by images used.
      bytes_per_image: bytes read divided by images used.
      held: most examples that were read and not yet used.
    """

    images_per_second: float
    requests_per_image: float
    bytes_per_image: float
    held: int


# Numbers of records, one for each of the requests that are made at once; or the time to wait for.
Wait = list[int] | float


class Host:
    """One host in virtual time."""

    def __init__(self, pattern: str, storage: Storage, *, hosts: int):
        """Nothing is read yet.

        Args:
          pattern: one of `PATTERNS`.
          storage: the assumptions.
          hosts: processes that share each batch; this is the first.
        """
        self.pattern, self.storage = pattern, storage
        self.rows = np.arange(BATCH_SIZE // hosts)
        self.per_batch = math.ceil(len(self.rows) / BLOCK_ROWS)
        self.chunks = chunks_of(pattern)
        self.requests = self.records = self.images = self.held = self.most_held = 0
        self._link_free = self._next_request = self._now = 0.0
        self._readers = [0.0] * READERS  # When each is free.
        self._bound = 0  # Of the examples held.
        self._ready: dict[int, float] = {}  # Chunk -> time at which it is there.
        self._unused: dict[int, set[int]] = {}

    def ids(self, block: int) -> list[int]:
        """Returns the examples of a block of this host; any, if every one is read by itself."""
        if self.chunks is None:
            return [0] * min(BLOCK_ROWS, len(self.rows))
        step, part = divmod(block, self.per_batch)
        rows = self.rows[part * BLOCK_ROWS : (part + 1) * BLOCK_ROWS]
        positions = (_START + step) * BATCH_SIZE + rows
        ids, _ = order.examples_at(positions, num_examples=NUM_EXAMPLES, seed=0, chunks=self.chunks)
        return ids.tolist()

    def finish(self, records: int) -> float:
        """Returns when a request of some records is answered; it begins now."""
        size = records * self.storage.record
        start = max(self._next_request, self._now, heapq.heappop(self._readers))
        self._next_request = start + 1 / self.storage.requests
        self._link_free = max(self._link_free, start) + size / self.storage.link
        self.requests += 1
        self.records += records
        alone = start + self.storage.latency + size / self.storage.connection
        end = max(alone, self._link_free + self.storage.latency)
        heapq.heappush(self._readers, end)
        return end

    def read(self, ids: list[int]) -> Iterator[Wait]:
        """Yields what a thread waits for while it reads a block."""
        if self.pattern == "global, one by one":
            for _ in ids:
                self.images += 1
                yield [1]
        elif self.pattern == "global, in groups":
            self.images += len(ids)
            yield [1] * len(ids)
        else:
            for i in ids:
                self.images += 1
                yield from self._read_chunk(i)

    def _read_chunk(self, i: int) -> Iterator[Wait]:
        number = i // CHUNK
        if i not in self._unused.get(number, ()):
            first = number * CHUNK
            self._unused[number] = set(range(first, min(first + CHUNK, NUM_EXAMPLES)))
            self._ready[number] = self.finish(len(self._unused[number]))
            self._count()
        if self._ready[number] > self._now:
            yield self._ready[number]
        self._unused.get(number, set()).discard(i)

    def _count(self) -> None:
        assert self.chunks is not None
        self._unused = {number: left for number, left in self._unused.items() if left}
        self.held = sum(map(len, self._unused.values()))
        while self.held > self._bound and len(self._unused) > 1:
            self.held -= len(self._unused.pop(next(iter(self._unused))))
        self.most_held = max(self.most_held, self.held)

    def run(self, threads: int, *, images: int) -> Result:
        """Reads until some images could be used, of which the first half are not timed."""
        options = batches.LoaderOptions(0, threads, _PREFETCH)
        ahead = options.rows_ahead(len(self.rows)) // BLOCK_ROWS
        if self.chunks is not None:
            self._bound = held_examples(self.chunks, rows=len(self.rows), ahead=ahead * BLOCK_ROWS)
        total = math.ceil(images / min(BLOCK_ROWS, len(self.rows)))
        ends: list[float] = [math.inf] * total  # Of each block.
        queue: list[tuple[float, int, Iterator[Wait], int]] = []
        free, begun, used, serial, counted = threads, 0, 0, 0, (0, 0, 0)
        times = []
        while used < total:
            while free and begun < total and begun < used + ahead:
                queue_entry = (self._now, serial, self.read(self.ids(begun)), begun)
                heapq.heappush(queue, queue_entry)
                begun, free, serial = begun + 1, free - 1, serial + 1
            self._now, _, work, block = heapq.heappop(queue)
            wait = next(work, None)
            if wait is None:
                ends[block] = self._now
                free += 1
            else:
                until = max(map(self.finish, wait)) if isinstance(wait, list) else wait
                heapq.heappush(queue, (until, serial, work, block))
                serial += 1
            while used < total and ends[used] <= self._now:
                used += 1
                times.append(self._now)
                if used == total // 2:
                    counted = self.requests, self.records, self.images
        block_rows = min(BLOCK_ROWS, len(self.rows))
        seconds = times[-1] - times[total // 2 - 1]
        read = self.images - counted[2]
        return Result(
            (total - total // 2) * block_rows / seconds,
            (self.requests - counted[0]) / read,
            (self.records - counted[1]) * self.storage.record / read,
            self.most_held,
        )


def simulate(pattern: str, storage: Storage, *, hosts: int, threads: int, windows: int = 6):
    """Returns the `Result` of a host after some windows' worth of images."""
    images = max(4000, windows * WINDOW // hosts, 8 * threads * BLOCK_ROWS)
    return Host(pattern, storage, hosts=hosts).run(threads, images=images)


class SleepingSource(Source):
    """Examples of one pixel, each read or range of which sleeps as `Storage` says."""

    name, split, class_names = "sleeping", "train", ("a", "b")
    reads_groups = False

    def __init__(self, storage: Storage, *, at_once: bool, as_range: bool):
        self._storage = storage
        self.reads_groups, self._as_range = at_once, as_range
        self._link_free, self._lock = 0.0, threading.Lock()

    def __len__(self) -> int:
        return NUM_EXAMPLES

    def _sleep(self, requests: Sequence[int]) -> None:
        start = end = time.monotonic()
        for records in requests:
            size = records * self._storage.record
            with self._lock:
                self._link_free = max(self._link_free, start) + size / self._storage.link
                alone = start + self._storage.latency + size / self._storage.connection
                end = max(end, alone, self._link_free + self._storage.latency)
        time.sleep(end - time.monotonic())

    def __getitem__(self, index: int) -> dict:
        self._sleep([1])
        return {"image": np.zeros((1, 1, 1), np.float32), "label": 0}

    def read(self, indices: Sequence[int]) -> list[dict]:
        self._sleep([len(indices)] if self._as_range else [1] * len(indices))
        return [{"image": np.zeros((1, 1, 1), np.float32), "label": 0} for _ in indices]


def loader_rate(pattern: str, storage: Storage, *, hosts: int, threads: int, images: int) -> float:
    """Returns images per second of the loader itself, in real time, for the first host's rows."""
    rows, chunks = np.arange(BATCH_SIZE // hosts), chunks_of(pattern)
    source = SleepingSource(
        storage, at_once=pattern == "global, in groups", as_range=chunks is not None
    )
    options = batches.LoaderOptions(workers=0, threads=threads, prefetch=_PREFETCH)
    cache = None
    if chunks is not None:
        most = held_examples(chunks, rows=len(rows), ahead=options.rows_ahead(len(rows)))
        cache = ChunkCache(source, CHUNK, max_examples=most)

    def assign(batch: int, some_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _training_examples(
            batch, some_rows, start_step=_START, batch_size=BATCH_SIZE,
            num_examples=NUM_EXAMPLES, seed=0, chunks=chunks,
        )  # fmt: skip

    load = ExampleLoader(source, lambda example, rng: example, 0, cache)
    template = {"image": np.zeros((1, 1, 1), np.float32), "label": np.zeros((), np.int32)}
    blocks = Blocks(load, assign, rows=rows, num_batches=None, template=template)
    loaded = batches._load(blocks, options)
    total = math.ceil(images / min(BLOCK_ROWS, len(rows)))
    for _ in range(total // 2):
        next(loaded)
    start = time.monotonic()
    for _ in range(total - total // 2):
        next(loaded)
    seconds = time.monotonic() - start
    loaded.close()
    return (total - total // 2) * min(BLOCK_ROWS, len(rows)) / seconds


LATENCIES, THREADS, HOSTS = (0.005, 0.02, 0.05), (1, 4, 16, 64, 128), (1, 8, 64)
SETTINGS = {
    "5 ms, 16 threads": (Storage(0.005), 16),
    "20 ms, 16": (Storage(0.02), 16),
    "50 ms, 16": (Storage(0.05), 16),
    "50 ms, 128": (Storage(0.05), 128),
    "20 ms, 16, 1,000 requests/s": (Storage(0.02, requests=1000), 16),
}


def draw() -> Figure:
    """Draws images per second and host against threads, one panel for each latency."""
    with rc_context(figures.STYLE):
        figure = Figure(figsize=(9, 3), layout="constrained")
        panels = figure.subplots(1, len(LATENCIES), sharey=True)
        for axes, latency in zip(panels, LATENCIES, strict=True):
            for pattern, colour in zip(PATTERNS, figures.COLOURS, strict=False):
                rates = [
                    simulate(pattern, Storage(latency), hosts=16, threads=n).images_per_second
                    for n in THREADS
                ]
                axes.plot(THREADS, rates, "o-", color=colour, label=pattern, markersize=3)
            axes.set_title(f"latency {latency * 1000:.0f} ms")
            axes.set_xlabel("threads")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(THREADS, map(str, THREADS))
        panels[0].set_ylabel("images per second and host")
        panels[0].legend(fontsize=7)
    return figure


def table() -> Iterator[str]:
    """Yields the lines of the table: each pattern and number of hosts, with each of `SETTINGS`."""
    names = ("pattern", "hosts", *SETTINGS, "requests / image", "MB / image", "examples held")
    yield f"| {' | '.join(names)} |"
    yield "|---" * len(names) + "|"
    for pattern in PATTERNS:
        for hosts in HOSTS:
            results = [
                simulate(pattern, storage, hosts=hosts, threads=threads)
                for storage, threads in SETTINGS.values()
            ]
            rates = " | ".join(f"{result.images_per_second:,.0f}" for result in results)
            result = results[1]
            yield (
                f"| {pattern} | {hosts} | {rates} | {result.requests_per_image:.3f} | "
                f"{result.bytes_per_image / 1e6:.2f} | {result.held:,} |"
            )


def checks() -> Iterator[str]:
    """Yields a table of simulated rates beside those of the loader."""
    yield "| pattern | hosts | latency | threads | simulated img/s | loader img/s |"
    yield "|---|---|---|---|---|---|"
    for pattern in PATTERNS[:3]:
        for latency, threads in ((0.02, 4), (0.05, 16)):
            storage = Storage(latency)
            simulated = simulate(pattern, storage, hosts=16, threads=threads).images_per_second
            images = int(min(8 * simulated, 20_000))
            real = loader_rate(pattern, storage, hosts=16, threads=threads, images=images)
            yield (
                f"| {pattern} | 16 | {latency * 1000:.0f} ms | {threads} | {simulated:,.0f} | "
                f"{real:,.0f} |"
            )


def main(argv: Sequence[str]) -> None:
    """Prints the tables and writes the figure."""
    del argv
    for line in checks() if _CHECK.value else table():
        print(line, flush=True)
    if _OUT.value:
        figures.save(draw(), _OUT.value)


if __name__ == "__main__":
    _OUT = flags.DEFINE_string("out", "", "File of the figure; empty: none.")
    _CHECK = flags.DEFINE_bool("check", False, "Compare with the loader in real time.")
    app.run(main)
