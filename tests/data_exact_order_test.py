"""Property tests: ids and pixels of a batch depend only on (seed, step).

They do not depend on the numbers of processes, workers and threads, the mesh or the first step,
also if the batch size does not divide the size of the data set.
"""

import functools
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import campaign, slow
from tests.data_order_test import reference_id
from tests.data_pipeline_test import (
    Numbers,
    ProcessOf,
    assert_same,
    expected_batch,
    mesh_sharding,
    noisy,
    take,
    training,
)
from vit_jax.data import pipeline
from vit_jax.data.blocks import Blocks, ExampleLoader

SEED = 3
MESHES = [(8, 1), (4, 2), (2, 4), (1, 8)]
sharding_of = functools.cache(mesh_sharding)


def loaded_by(process, count, *, mesh, size, batch_size, start_step, batch):
    """Returns {row: (image, label, weight)} that one of `count` processes loads of a batch."""
    sharding = ProcessOf(sharding_of(*mesh), process, count)
    rows = pipeline.local_rows(sharding, batch_size=batch_size)
    assign = functools.partial(
        pipeline._training_examples,
        start_step=start_step,
        batch_size=batch_size,
        num_examples=size,
        seed=SEED,
    )
    load = ExampleLoader(Numbers(size), noisy, SEED)
    blocks = Blocks(load, assign, rows=rows, num_batches=None, template=load(0, epoch=0))
    first = batch * blocks.per_batch
    parts = [blocks[first + i] for i in range(blocks.per_batch)]
    arrays = [np.concatenate([part[key] for part in parts]) for key in ("image", "label", "weight")]
    return dict(zip(rows.tolist(), zip(*arrays, strict=True), strict=True))


@pytest.mark.medium
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    size=st.integers(1, 300),
    per_device=st.integers(1, 12),
    count=st.sampled_from([1, 2, 4, 8]),
    mesh=st.sampled_from(MESHES),
    start_step=st.one_of(st.integers(0, 40), st.integers(0, 10**9)),
    batch=st.integers(0, 3),
)
def test_any_number_of_processes_from_any_step(size, per_device, count, mesh, start_step, batch):
    batch_size, step = 8 * per_device, start_step + batch
    expected = expected_batch(step, size=size, batch_size=batch_size)
    ids = [
        reference_id(step * batch_size + row, num_examples=size, seed=SEED)
        for row in range(batch_size)
    ]
    np.testing.assert_array_equal(expected["image"][:, 0, 0, 0], ids)
    covered = set()
    for process in range(count):
        rows = loaded_by(
            process, count, mesh=mesh, size=size, batch_size=batch_size, start_step=start_step,
            batch=batch,
        )  # fmt: skip
        for row, (image, label, weight) in rows.items():
            np.testing.assert_array_equal(image, expected["image"][row])
            assert (label, weight) == (expected["label"][row], 1)
        covered |= set(rows)
    assert covered == set(range(batch_size))


@pytest.mark.medium
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    size=st.integers(1, 200),
    per_device=st.integers(1, 10),
    mesh=st.sampled_from(MESHES),
    start_step=st.one_of(st.integers(0, 40), st.integers(0, 10**9)),
    threads=st.integers(1, 5),
    prefetch=st.integers(1, 3),
)
def test_the_iterator_from_any_step(size, per_device, mesh, start_step, threads, prefetch):
    shape = {"size": size, "batch_size": 8 * per_device}
    got = take(
        3, start_step=start_step, sharding=sharding_of(*mesh), threads=threads, prefetch=prefetch,
        **shape,
    )  # fmt: skip
    assert_same(got, [expected_batch(start_step + t, **shape) for t in range(3)])


# 40 and 104 rows are a part of a block, and several blocks for several workers; 37 examples divide
# neither, and their epochs end in the middle of batches.
@pytest.mark.medium
@pytest.mark.parametrize(
    ("workers", "batch_size"),
    [
        (0, 40),
        (0, 104),
        (2, 104),
        slow(3, 40),
        *(campaign(*c) for c in ((1, 40), (1, 104), (2, 40), (3, 104))),
    ],
)
def test_any_number_of_workers_across_the_borders_of_epochs(workers, batch_size):
    shape = {"size": 37, "batch_size": batch_size}
    got = take(4, start_step=11, workers=workers, **shape)
    assert_same(got, [expected_batch(t, **shape) for t in range(11, 15)])


@pytest.mark.parametrize(("size", "batch_size"), [(37, 8), (100, 16), (8, 24), (64, 16), (1, 8)])
@pytest.mark.parametrize("stops", [(), (3,), (1, 2, 7)])
def test_every_example_is_seen_once_an_epoch_however_often_it_resumes(size, batch_size, stops):
    """Pixels identify the examples; the iterator is restarted at each of `stops`."""
    num_epochs = 3
    total = -(-num_epochs * size // batch_size)
    seen, noise = [], []
    borders = [0, *(stop for stop in stops if stop < total), total]
    for first, last in itertools.pairwise(borders):
        with training(Numbers(size), batch_size=batch_size, start_step=first) as batches:
            for _ in range(first, last):
                image = jax.device_get(next(batches)["image"])
                seen += image[:, 0, 0, 0].tolist()
                noise += image[:, 0, 1, 0].tolist()
    for epoch in range(num_epochs):
        of_epoch = slice(epoch * size, (epoch + 1) * size)
        assert sorted(seen[of_epoch]) == list(range(size))
    assert len(set(noise)) == len(noise)  # Augmentations differ between epochs.
