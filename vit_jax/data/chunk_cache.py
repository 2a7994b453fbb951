"""Reads whole chunks of examples for the two-level order, and holds them until they are used."""

import collections
import math
import threading
from collections.abc import Sequence

from vit_jax.data.base import Example, Source
from vit_jax.data.chunked_order import Chunks


class ChunkCache:
    """Reads the whole chunk of an example that it does not hold; forgets each example it returns.

    In the two-level order (`vit_jax.data.chunked_order`) a process uses every example of a chunk,
    each once, within a window. Thread-safe; a pickled copy, in a worker process, is empty.
    """

    def __init__(self, source: Source, size: int, *, max_examples: int):
        """Holds nothing yet.

        Args:
          source: the examples.
          size: examples in a chunk.
          max_examples: bound of the examples held, beyond which the chunk that was read first is
            dropped. The last chunk is held in any case.
        """
        self._source, self._size, self._max_examples = source, size, max_examples
        self._chunks: collections.OrderedDict[int, dict[int, Example]] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._reading: dict[int, threading.Lock] = {}

    def __reduce__(self) -> tuple:
        return _restore, (self._source, self._size, self._max_examples)

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns some examples of the source.

        Raises as `Source.read` does for a chunk with a bad example.
        """
        return [self._take(index) for index in indices]

    def _take(self, index: int) -> Example:
        number = index // self._size
        with self._lock:
            if (example := self._pop(number, index)) is not None:
                return example
            reading = self._reading.setdefault(number, threading.Lock())
        with reading:  # Threads that need the same chunk wait, and find it.
            with self._lock:
                if (example := self._pop(number, index)) is not None:
                    return example
            first = number * self._size
            members = range(first, min(first + self._size, len(self._source)))
            examples = dict(zip(members, self._source.read(members), strict=True))
            with self._lock:
                self._chunks[number] = examples
                self._chunks.move_to_end(number)
                self._reading.pop(number, None)
                held = sum(map(len, self._chunks.values()))
                while held > self._max_examples and len(self._chunks) > 1:
                    held -= len(self._chunks.popitem(last=False)[1])
                return examples.pop(index)

    def _pop(self, number: int, index: int) -> Example | None:
        chunk = self._chunks.get(number)
        if chunk is None:
            return None
        example = chunk.pop(index, None)
        if not chunk:
            del self._chunks[number]
        return example


def _restore(source: Source, size: int, max_examples: int) -> ChunkCache:
    return ChunkCache(source, size, max_examples=max_examples)


def held_examples(chunks: Chunks, *, rows: int, ahead: int) -> int:
    """Returns how many examples a process may hold: twice what it needs at once.

    What is left over, of chunks at the ends of lanes that another process uses too, is dropped
    beyond that.

    Args:
      chunks: sizes of the order.
      rows: rows of the global batch that the process loads.
      ahead: examples that are loaded before they are used.
    """
    lanes = math.ceil(rows * chunks.lanes / chunks.batch_size)
    return 2 * (lanes * chunks.lane_window + ahead)
