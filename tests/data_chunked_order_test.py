"""The two-level order: a permutation of each epoch, read in whole chunks by any number of hosts."""

import collections

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import slow
from tests.data_order_test import reference_permutation
from tests.data_pipeline_test import Numbers, assert_same, noisy, training
from vit_jax.config import base_config, validate
from vit_jax.data import order
from vit_jax.data.chunk_cache import ChunkCache, held_examples
from vit_jax.data.order import Chunks
from vit_jax.errors import ConfigError, DataError

SIZES = st.builds(
    lambda size, times, batch_size: Chunks(size, int(size * times), batch_size),
    st.integers(1, 40),
    st.floats(1, 30),
    st.integers(1, 96),
)


def reference_ids(*, num_examples, seed, epoch, chunks):
    """The order of an epoch, from its definition: sorts positions, moves whole lists."""
    window, size = chunks.lane_window, chunks.size
    permuted = reference_permutation(num_examples // size, seed=(seed, epoch))
    stream = [chunk * size + i for chunk in permuted for i in range(size)]  # Without the tail.
    windows = [stream[i : i + window] for i in range(0, len(stream), window)]
    for w, members in enumerate(windows):
        places = reference_permutation(len(members), seed=(seed, epoch, w + 1))
        windows[w] = [members[place] for place in places]
    tail = range(len(stream), num_examples)
    places = reference_permutation(len(tail), seed=(seed, epoch, len(windows) + 1))
    keys = np.random.SeedSequence((seed, epoch)).generate_state(12, np.uint64)
    windows.insert(int(keys[0]) % (len(windows) + 1), [tail[place] for place in places])
    examples = [example for members in windows for example in members]
    lane_rows = chunks.batch_size // chunks.lanes
    positions = range(epoch * num_examples, (epoch + 1) * num_examples)
    by_lane = sorted(positions, key=lambda p: (p % chunks.batch_size // lane_rows, p))
    return dict(zip(by_lane, examples, strict=True))


@pytest.mark.medium
@settings(max_examples=80, deadline=None, derandomize=True)
@given(num_examples=st.integers(1, 300), epoch=st.integers(0, 5), chunks=SIZES)
def test_equals_a_second_formulation_and_is_a_permutation(num_examples, epoch, chunks):
    positions = np.arange(epoch * num_examples, (epoch + 1) * num_examples)
    ids, epochs = order.examples_at(positions, num_examples=num_examples, seed=7, chunks=chunks)
    assert sorted(ids.tolist()) == list(range(num_examples)) and set(epochs.tolist()) == {epoch}
    expected = reference_ids(num_examples=num_examples, seed=7, epoch=epoch, chunks=chunks)
    assert dict(zip(positions.tolist(), ids.tolist(), strict=True)) == expected


def test_the_order_is_pinned():
    chunks = Chunks(64, 8192, 256)
    ids = order.example_ids(
        1_000_000, batch_size=256, num_examples=1_281_167, seed=42, chunks=chunks
    )
    assert ids[:4].tolist() == [1026511, 1026496, 596143, 596144]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(num_examples=st.integers(1, 500), chunks=SIZES, step=st.integers(0, 10**9))
def test_rows_need_not_be_computed_together(num_examples, chunks, step):
    """So a batch is the same for any number of processes, and from any step on."""
    batch = {"num_examples": num_examples, "seed": 3, "chunks": chunks}
    whole = order.example_ids(step, batch_size=chunks.batch_size, **batch)
    rows = np.random.default_rng(0).permutation(chunks.batch_size)
    for part in np.array_split(rows, 3):
        ids, _ = order.examples_at(step * chunks.batch_size + part, **batch)
        np.testing.assert_array_equal(ids, whole[part])


def test_lanes_and_windows():
    assert (Chunks(64, 8192, 4096).lanes, Chunks(64, 8192, 4096).lane_window) == (128, 64)
    assert (Chunks(64, 8192, 96).lanes, Chunks(64, 8192, 96).lane_window) == (32, 256)
    assert (Chunks(64, 100, 128).lanes, Chunks(64, 100, 128).lane_window) == (1, 64)
    assert Chunks(64, 8192, 33).lanes == 1
    assert (
        order.example_ids(
            10**9, batch_size=64, num_examples=2**40 + 1, seed=0, chunks=Chunks(64, 8192, 64)
        ).max()
        <= 2**40
    )


@pytest.mark.medium
@pytest.mark.parametrize("hosts", [1, 4, 16])
def test_hosts_share_hardly_any_chunk(hosts):
    """Only the windows at the ends of lanes are read by two hosts."""
    num_examples, chunks = 64_000, Chunks(16, 256, 64)
    positions = np.arange(num_examples)
    ids, _ = order.examples_at(positions, num_examples=num_examples, seed=0, chunks=chunks)
    host = positions % 64 // (64 // hosts)
    reads = len(set(zip(host.tolist(), (ids // 16).tolist(), strict=True)))
    assert 4000 <= reads <= 4000 + hosts - 1
    # Within a lane a window has ended before the next begins.
    lane = ids[positions % 64 < 4]
    assert all(len(set(part.tolist())) == 1 for part in (lane // 16).reshape(-1, 16)[:200])


def test_epochs_and_seeds_have_different_orders():
    orders = collections.Counter(
        tuple(
            order.examples_at(
                np.arange(100) + 100 * epoch, num_examples=100, seed=seed, chunks=Chunks(8, 32, 4)
            )[0]
        )
        for epoch in range(10)
        for seed in range(10)
    )
    assert len(orders) == 100


class Counted(Numbers):
    """Counts the reads of each example."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.groups = []

    def read(self, indices):
        self.groups.append(list(indices))
        return super().read(indices)


def expected(step, *, size, chunks, bad=()):
    ids = order.example_ids(
        step, batch_size=chunks.batch_size, num_examples=size, seed=3, chunks=chunks
    )
    epochs = order.epochs(step, batch_size=chunks.batch_size, num_examples=size)
    rows = [
        noisy(Numbers(size)[i], np.random.default_rng((3, epoch, i)))
        for i, epoch in zip(ids.tolist(), epochs.tolist(), strict=True)
    ]
    batch = {
        "image": np.stack([row["image"] for row in rows]),
        "label": np.array([row["label"] for row in rows], np.int32),
        "weight": np.ones(len(rows), np.float32),
    }
    for row in np.flatnonzero(np.isin(ids, bad)).tolist():
        for array in batch.values():
            array[row] = 0
    return batch


@pytest.mark.medium
@pytest.mark.parametrize("workers", [0, slow(2)])
@pytest.mark.parametrize("bad", [(), (5, 83)])
def test_batches_of_the_pipeline(workers, bad):
    """From a step in the middle of an epoch to the next one but one; a bad example is alone."""
    size, chunks = 200, Chunks(8, 64, 40)
    source, reports = Counted(size, bad=bad), []
    with training(
        source, batch_size=40, start_step=2, workers=workers, chunks=chunks,
        on_bad=(lambda *report: reports.append(report)) if bad else None,
    ) as batches:  # fmt: skip
        got = [jax.device_get(next(batches)) for _ in range(11)]
    assert_same(got, [expected(t, size=size, chunks=chunks, bad=bad) for t in range(2, 13)])
    assert {report[2] for report in reports} == set(bad)
    if not workers:
        assert all(len(group) == 8 for group in source.groups)


def test_the_cache_reads_each_chunk_once_and_forgets_what_it_returns():
    source = Counted(100)
    cache = ChunkCache(source, 16, max_examples=1000)
    ids = np.random.default_rng(0).permutation(100).tolist()
    for part in np.array_split(ids, 7):
        examples = cache.read(part.tolist())
        assert [int(example["image"][0, 0, 0]) for example in examples] == part.tolist()
    assert sorted(map(len, source.groups)) == [4, *[16] * 6]
    assert not cache._chunks and not cache._reading


def test_the_cache_is_bounded():
    source = Counted(1000)
    cache = ChunkCache(source, 16, max_examples=40)
    for i in range(0, 1000, 16):
        cache.read([i])
    assert sum(map(len, cache._chunks.values())) <= 40
    cache.read([1])  # Of a chunk that was dropped.
    assert len(source.groups) == 64
    # Two lanes of 64 examples, and what is loaded ahead, twice.
    assert held_examples(Chunks(64, 8192, 4096), rows=64, ahead=100) == 2 * (2 * 64 + 100)


def test_a_cache_with_a_bad_example_names_none():
    cache = ChunkCache(Numbers(32, bad=[3]), 16, max_examples=100)
    assert cache.read([20])[0]["label"] == 0
    for _ in range(2):
        with pytest.raises(DataError, match="broken"):
            cache.read([4])


def test_a_window_smaller_than_a_chunk_is_refused():
    config = base_config()
    assert Chunks.from_config(config) is None
    config.data.chunk = 64
    assert Chunks.from_config(config) == Chunks(64, 8192, 128)
    config.data.window = 63
    with pytest.raises(ConfigError, match=r"data\.window is 63, less than data\.chunk, 64"):
        validate(config)
