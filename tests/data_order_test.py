"""The order of the data."""

import collections
import itertools

import numpy as np
import pytest
from scipy import stats

from tests.conftest import campaign
from vit_jax.data import order


def run_of_ids(num_batches, *, batch_size, num_examples, seed=0):
    return np.concatenate(
        [
            order.example_ids(t, batch_size=batch_size, num_examples=num_examples, seed=seed)
            for t in range(num_batches)
        ]
    )


def reference_id(position, *, num_examples, seed):
    """The same permutation with Python's integers, one example at a time."""
    epoch, index = divmod(position, num_examples)
    return reference_permuted(index, num_examples, seed=(seed, epoch))


def reference_permutation(size, *, seed):
    return [reference_permuted(index, size, seed=seed) for index in range(size)]


def reference_permuted(x, size, *, seed):
    """The image of one index under the permutation of range(size)."""
    keys = np.random.SeedSequence(seed).generate_state(12, np.uint64).tolist()
    bits = max(2, (size - 1).bit_length())
    low_bits, modulus = bits // 2, 2**64

    def mix(value, key):
        value ^= key
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % modulus
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % modulus
        return value ^ (value >> 31)

    while True:
        high, low = divmod(x, 2**low_bits)
        for r, key in enumerate(keys):
            if r % 2:
                high ^= mix(low, key) % 2 ** (bits - low_bits)
            else:
                low ^= mix(high, key) % 2**low_bits
        x = high * 2**low_bits + low
        if x < size:
            return x


def test_the_order_is_pinned():
    ids = order.example_ids(0, batch_size=8, num_examples=1797, seed=0)
    assert ids.tolist() == [41, 56, 834, 673, 103, 828, 1782, 661]
    ids = order.example_ids(1_000_000, batch_size=4, num_examples=1_281_167, seed=42)
    assert ids.tolist() == [646168, 1046523, 1097259, 934777]
    assert order.epochs(1_000_000, batch_size=4, num_examples=1_281_167).tolist() == [3] * 4


@pytest.mark.parametrize("num_examples", [1, 2, 3, 4, 5, 31, 32, 33, 1797])
def test_equals_a_second_formulation(num_examples):
    got = run_of_ids(3, batch_size=50, num_examples=num_examples, seed=7)
    expected = [reference_id(p, num_examples=num_examples, seed=7) for p in range(150)]
    assert got.tolist() == expected


@pytest.mark.parametrize(
    ("num_examples", "batch_size"),
    [
        campaign(n, size) if n > 100 * size else (n, size)  # Thousands of batches.
        for n in (1, 2, 3, 10, 64, 97, 1000)
        for size in (1, 7, 64, 300)
    ],
)
def test_every_example_occurs_once_per_epoch(num_examples, batch_size):
    num_epochs = 3
    ids = run_of_ids(
        -(-num_epochs * num_examples // batch_size),
        batch_size=batch_size,
        num_examples=num_examples,
    )
    for epoch in ids[: num_epochs * num_examples].reshape(num_epochs, num_examples):
        assert sorted(epoch) == list(range(num_examples))


def test_batches_cross_epochs():
    epochs = order.epochs(1, batch_size=8, num_examples=10)
    assert epochs.tolist() == [0, 0] + [1] * 6
    epochs = order.epochs(0, batch_size=8, num_examples=3)
    assert epochs.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_rows_need_not_be_computed_together():
    whole = run_of_ids(4, batch_size=30, num_examples=50, seed=3)
    shuffled = np.random.default_rng(0).permutation(120)
    ids, epochs = order.examples_at(shuffled, num_examples=50, seed=3)
    np.testing.assert_array_equal(ids, whole[shuffled])
    np.testing.assert_array_equal(epochs, shuffled // 50)


def test_seeds_and_epochs_have_different_orders():
    orders = [
        tuple(order.examples_at(np.arange(100) + 100 * epoch, num_examples=100, seed=seed)[0])
        for epoch, seed in itertools.product(range(10), range(10))
    ]
    assert len(set(orders)) == 100


@pytest.mark.medium
@pytest.mark.parametrize("seeds", [15, campaign(60)])
def test_all_permutations_are_equally_likely(seeds):
    """Of five examples, over 100 epochs of each seed."""
    ids = [order.examples_at(np.arange(500), num_examples=5, seed=seed)[0] for seed in range(seeds)]
    counts = collections.Counter(map(tuple, np.concatenate(ids).reshape(-1, 5).tolist()))
    assert len(counts) == 120
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.medium
@pytest.mark.parametrize("num_examples", [60, 64, 100])
def test_positions_and_neighbours_are_uniform(num_examples):
    """Positions of an example, and differences between neighbours, over 500 epochs."""
    epochs = 500
    ids = order.examples_at(np.arange(epochs * num_examples), num_examples=num_examples, seed=1)[0]
    ids = ids.reshape(epochs, num_examples)
    counts_of_position = np.zeros((num_examples, num_examples))
    np.add.at(counts_of_position, (np.arange(num_examples)[None], ids), 1)
    assert stats.chisquare(counts_of_position, axis=None).pvalue > 1e-3
    steps = np.diff(ids, axis=1) % num_examples
    counts = np.bincount(steps.ravel(), minlength=num_examples)[1:]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_memory_does_not_grow_with_the_data_set():
    ids = order.example_ids(10**9, batch_size=64, num_examples=2**40 + 1, seed=0)
    assert len(set(ids.tolist())) == 64
    assert ids.max() <= 2**40
