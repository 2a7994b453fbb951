"""Loader processes: blocks in order, from processes that may be killed, stopped or hang.

A worker and the main process share a pipe of their own and memory that belongs to the main
process, and no lock: whatever happens to a worker, at whatever moment, nothing waits for it, and
nothing of it is left. (Grain's worker processes share locks with the main process. One that was
killed while it held one kept it waiting for ever: that happened within 40 kills.)
"""

import atexit
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory

import grain
import numpy as np

from vit_jax.data.blocks import BLOCK_ROWS, Block, Blocks

BEAT = 1.0  # Seconds. So often every worker counts up a number, in a thread of its own,
SILENCE = 60  # and after so many waits of this length without a count it is lost,
START_UP = 600  # or after so many before its first count: imports may come from a slow disk.

_LOOKS = 10  # At what closes the iterator, in each `BEAT`.
_SLOTS = 2  # Of each worker: a block is read from one while the next is written to the other.
_BOARD = struct.Struct("q")  # At the beginning of a worker's memory: its count.
_ALIGN = 64  # Bytes, of every array.


class WorkerLost(Exception):
    """A worker was killed, is stopped or hangs: another one could do its work."""


class Workers:
    """An iterator over blocks that are loaded in processes. Must be closed."""

    def __init__(self, blocks: Blocks, *, count: int, threads: int, stop: threading.Event):
        """Starts the processes, which takes as long as their imports.

        Args:
          blocks: all that are wanted, in order. Block i is loaded by worker i % count.
          count: number of processes.
          threads: in each of them.
          stop: ends the iteration when it is set.
        """
        self._stop = stop
        self._length = len(blocks)
        self._given = 0
        self._done: tuple[int, int] | None = None  # Worker and slot of the block given last.
        size = _BOARD.size + _ALIGN + _SLOTS * sum(_sizes(blocks))
        self._memory = [SharedMemory(create=True, size=size) for _ in range(count)]
        self._named = set(range(count))  # Whose memory still has a name, under /dev/shm.
        self._arrays = [_views(memory, blocks) for memory in self._memory]
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        atexit.register(self._kill)  # Before multiprocessing waits for its children.
        try:
            self._start(blocks, threads)
        except BaseException:
            self.close()
            raise

    def _start(self, blocks: Blocks, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        count, theirs = len(self._memory), []
        for index in range(count):
            ours, their = context.Pipe()
            self._pipes.append(ours)
            theirs.append(their)
            arguments = (blocks, their, self._memory[index].name, index, count, threads)
            self._processes.append(
                context.Process(target=_work, args=arguments, daemon=True, name=f"loader-{index}")
            )
        # Side by side: each waits until its process has read what it is to do.
        with concurrent.futures.ThreadPoolExecutor(count) as starters:
            list(starters.map(_start_deaf, self._processes))
        for their in theirs:
            their.close()  # So that the end of a worker is the end of what its pipe gives.
        for index, slot in itertools.product(range(count), range(_SLOTS)):
            self._free(index, slot)

    def __iter__(self) -> Iterator[Block]:
        return self

    def __next__(self) -> Block:
        """The next block. Its arrays are valid until the next call.

        Raises:
          WorkerLost: a worker was killed, or does not move.
          RuntimeError: a worker failed; another one would fail, too.
        """
        if self._done:
            self._free(*self._done)
            self._done = None
        if self._given == self._length:
            raise StopIteration
        index = self._given % len(self._pipes)
        answer = self._answer_of(index)
        if isinstance(answer, str):
            raise RuntimeError(answer)
        slot, rows, bad = answer
        self._given += 1
        self._done = (index, slot)
        arrays = self._arrays[index][slot]
        return {**{key: array[:rows] for key, array in arrays.items()}, "bad": bad}

    def close(self) -> None:
        """Ends the processes at once and frees their memory."""
        self._kill()
        atexit.unregister(self._kill)
        for pipe in self._pipes:
            pipe.close()
        self._arrays = []
        for index, memory in enumerate(self._memory):
            self._forget_name(index)
            memory.close()

    def _forget_name(self, index: int) -> None:
        """From here on the memory ends with the two processes that have it, however they end."""
        if index in self._named:
            self._named.remove(index)
            self._memory[index].unlink()

    def _kill(self) -> None:
        started = [process for process in self._processes if process.pid is not None]
        for process in started:
            process.kill()
        for process in started:
            process.join()

    def _answer_of(self, index: int):
        """What a worker sends next: (slot, rows, bad rows), or a str that says why it failed."""
        pipe, process = self._pipes[index], self._processes[index]
        name = f"loader worker {index} (process {process.pid})"
        count, silent = 0, 0
        try:
            for wait in itertools.count(1):
                if pipe.poll(BEAT / _LOOKS):
                    answer = pipe.recv()
                    self._forget_name(index)
                    return answer
                if self._stop.is_set():
                    raise RuntimeError("it was told to stop")
                if wait % _LOOKS:
                    continue
                # Waits are counted, not seconds: if this process is stopped along with its
                # workers (as by Ctrl-Z), they have moved again by the next look.
                before, (count,) = count, _BOARD.unpack_from(self._memory[index].buf)
                silent = silent + 1 if count == before else 0
                if silent >= (SILENCE if count else START_UP):
                    raise WorkerLost(f"{name} has not moved for {silent} s")
        except (EOFError, OSError):
            process.join(10)
        if (process.exitcode or 0) > 0:
            raise RuntimeError(f"{name} ended with exit code {process.exitcode}: see above")
        reason = "was killed, which often means that memory ran out"
        if process.exitcode == -signal.SIGBUS:
            reason = "found no room in /dev/shm (in Docker: --shm-size makes it larger)"
        raise WorkerLost(f"{name} {reason} (exit code {process.exitcode})")

    def _free(self, index: int, slot: int) -> None:
        with contextlib.suppress(OSError):  # It is lost: reading from it will say so.
            self._pipes[index].send(slot)


def _start_deaf(process: BaseProcess) -> None:
    """Starts a process that hears neither Ctrl-C nor a scheduler's SIGTERM, from the first moment.

    They reach the whole group; the main process then still needs batches up to its last step, and
    ends its workers itself. A process inherits what the thread that starts it has blocked.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    process.start()


def _sizes(blocks: Blocks) -> list[int]:
    """Bytes of each array of a block, rounded up."""
    rows = min(len(blocks.rows), BLOCK_ROWS)
    return [
        -(-rows * int(np.prod(shape)) * dtype.itemsize // _ALIGN) * _ALIGN
        for shape, dtype in blocks.arrays.values()
    ]


def _views(memory: SharedMemory, blocks: Blocks) -> list[dict[str, np.ndarray]]:
    """The arrays of each slot, in a worker's memory."""
    rows, at = min(len(blocks.rows), BLOCK_ROWS), _ALIGN
    slots: list[dict[str, np.ndarray]] = []
    for _ in range(_SLOTS):
        slots.append({})
        for (key, (shape, dtype)), size in zip(blocks.arrays.items(), _sizes(blocks), strict=True):
            slots[-1][key] = np.ndarray((rows, *shape), dtype, buffer=memory.buf, offset=at)
            at += size
    return slots


def _work(
    blocks: Blocks, pipe: Connection, memory_name: str, index: int, count: int, threads: int
) -> None:
    """Body of a worker process."""
    try:
        memory = SharedMemory(memory_name)
        threading.Thread(target=_beat, args=(memory, os.getppid()), daemon=True).start()
        slots = _views(memory, blocks)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, _SLOTS))
        for block in grain.MapDataset.source(blocks)[index::count].to_iter_dataset(options):
            slot = pipe.recv()  # One that has been read.
            bad, rows = block.pop("bad"), len(block["weight"])
            for key, array in block.items():
                slots[slot][key][:rows] = array
            pipe.send((slot, rows, bad))
        pipe.recv()  # What was sent last is not lost: this waits for the main process to close.
    except (EOFError, ConnectionError):
        pass  # The main process is done with it, or is no more.
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {error}")
        time.sleep(BEAT)
    finally:
        os._exit(0)  # Threads that still read keep nothing waiting.


def _beat(memory: SharedMemory, parent: int) -> None:
    for count in itertools.count(1):
        if os.getppid() != parent:
            os._exit(1)
        _BOARD.pack_into(memory.buf, 0, count)
        time.sleep(BEAT)
