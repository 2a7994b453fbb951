"""Batches of training and evaluation: their content, errors, memory and processes.

That they do not depend on mesh, processes, workers, threads and start is in data_exact_order_test.
"""

import gc
import multiprocessing
import os
import pathlib
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding

from vit_jax.data import order, pipeline
from vit_jax.data.base import Source
from vit_jax.data.batch_memory import BatchMemory
from vit_jax.data.batches import LoaderOptions
from vit_jax.data.blocks import BLOCK_ROWS
from vit_jax.errors import ConfigError, DataError

HERE = pathlib.Path(__file__).resolve().parent


class Numbers(Source):
    """Example i is a 2x3 image with all pixels i, of class i % 10."""

    name, split, channels = "numbers", "train", 1
    class_names = tuple("0123456789")

    def __init__(self, size, *, bad=(), label_of_bad=None):
        self.size, self.bad, self.label_of_bad = size, bad, label_of_bad
        self.reads = 0

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.reads += 1
        label = index % 10
        if index in self.bad:
            if self.label_of_bad is None:
                raise DataError("it is broken.")
            label = self.label_of_bad
        return {"image": np.full((2, 3, 1), index, np.int64), "label": label}


def noisy(example, rng):
    """Pixel 0 identifies the example, pixel 1 the random numbers."""
    image = example["image"].astype(np.float32)
    image[0, 1] = rng.uniform()
    return {**example, "image": image}


def mesh_sharding(*shape):
    mesh = jax.make_mesh(shape, ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    return NamedSharding(mesh, PartitionSpec("data"))


def one_device():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    return NamedSharding(mesh, PartitionSpec("data"))


def training(source, *, sharding=None, workers=0, threads=2, prefetch=2, **arguments):
    """Returns training batches, by default on one device from the first step on."""
    arguments = {"batch_size": 64, "seed": 3, "start_step": 0, **arguments}
    return pipeline.train_batches(
        source,
        noisy,
        sharding=sharding or one_device(),
        options=LoaderOptions(workers, threads, prefetch),
        **arguments,
    )


def take(count, *, size=100, batch_size=16, **arguments):
    """Returns the first training batches as NumPy arrays."""
    with training(Numbers(size), batch_size=batch_size, **arguments) as batches:
        return [jax.device_get(next(batches)) for _ in range(count)]


def expected_batch(step, *, size=100, batch_size=16, seed=3):
    """Returns a batch from its definition, without the pipeline."""
    ids = order.example_ids(step, batch_size=batch_size, num_examples=size, seed=seed)
    epochs = order.epochs(step, batch_size=batch_size, num_examples=size)
    source, rows = Numbers(size), []
    for i, epoch in zip(ids.tolist(), epochs.tolist(), strict=True):
        rows.append(noisy(source[i], np.random.default_rng((seed, epoch, i))))
    return {
        "image": np.stack([row["image"] for row in rows]),
        "label": np.array([row["label"] for row in rows], np.int32),
        "weight": np.ones(batch_size, np.float32),
    }


def assert_same(got, expected):
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype
            np.testing.assert_array_equal(one[key], other[key])


class ProcessOf(Sharding):
    """The sharding as process `index` of `count` sees it: its devices are the addressable ones."""

    def __init__(self, sharding, index, count):
        self.sharding, self.index, self.count = sharding, index, count

    def addressable_devices_indices_map(self, shape):
        indices = self.sharding.devices_indices_map(shape)
        share = len(indices) // self.count
        devices = list(indices)[self.index * share : (self.index + 1) * share]
        return {device: indices[device] for device in devices}


@pytest.mark.parametrize("size", [1, 8, 100])
@pytest.mark.parametrize("batch_size", [8, 72])
@pytest.mark.parametrize("mesh", [(1, 8), (8, 1)])
def test_evaluation_sees_every_example_once(size, batch_size, mesh):
    got = evaluate(Numbers(size), batch_size=batch_size, sharding=mesh_sharding(*mesh))
    assert len(got) == -(-size // batch_size)
    image = np.concatenate([batch["image"] for batch in got])
    label = np.concatenate([batch["label"] for batch in got])
    weight = np.concatenate([batch["weight"] for batch in got])
    np.testing.assert_array_equal(weight, np.arange(len(weight)) < size)
    np.testing.assert_array_equal(image[:size, 0, 0, 0], np.arange(size))
    np.testing.assert_array_equal(label[:size], np.arange(size) % 10)
    assert not image[size:].any()


@pytest.mark.medium
def test_evaluation_with_more_workers_than_blocks():
    got = evaluate(Numbers(BLOCK_ROWS + 8), batch_size=BLOCK_ROWS, workers=3)
    ids = np.concatenate([batch["image"][:, 0, 0, 0] for batch in got])
    np.testing.assert_array_equal(ids[: BLOCK_ROWS + 8], np.arange(BLOCK_ROWS + 8))


def test_multi_label():
    class Many(Numbers):
        multi_label = True

        def __getitem__(self, index):
            hot = np.zeros(10, np.float64)
            hot[[index % 10, (index + 1) % 10]] = 1
            return {**super().__getitem__(index), "label": hot}

    label = evaluate(Many(5))[0]["label"]
    assert label.dtype == np.float32
    np.testing.assert_array_equal(label.sum(1), [2] * 5 + [0] * 3)


def evaluate(source, *, transform=noisy, sharding=None, workers=0, batch_size=8, on_bad=None):
    """Returns the batches of an evaluation as NumPy arrays."""
    with pipeline.eval_batches(
        source,
        transform,
        batch_size=batch_size,
        sharding=sharding or one_device(),
        options=LoaderOptions(workers, threads=2, prefetch=2),
        on_bad=on_bad,
    ) as batches:
        return [jax.device_get(batch) for batch in batches]


@pytest.mark.medium
@pytest.mark.parametrize(("workers", "bad"), [(0, 0), (1, 13)])
def test_a_bad_example_is_named(workers, bad):
    with pytest.raises(DataError) as error:
        evaluate(Numbers(20, bad=(bad,)), workers=workers)
    assert str(error.value).startswith(f"numbers train[{bad}]: it is broken.\nIf few")
    assert "--config.data.on_bad=skip" in str(error.value)


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_out_of_range_is_named(label):
    with pytest.raises(DataError, match=rf"numbers train\[4\]: its label is {label}, .* 0 to 9"):
        evaluate(Numbers(20, bad=(4,), label_of_bad=label))


def test_a_fault_of_a_transform_is_named_with_its_line():
    def broken(example, rng):
        return {"image": example["image"] / rng.no_such_method(), "label": example["label"]}

    with pytest.raises(DataError, match=r"numbers train\[0\]: AttributeError: .*_test.py, line"):
        evaluate(Numbers(20), transform=broken)


def test_images_of_other_sizes_are_named():
    def grows(example, rng):
        return {**example, "image": np.zeros((2 + example["label"], 2, 1), np.float32)}

    with pytest.raises(DataError, match=r"train\[1\]: image has shape \(3, 2, 1\) .* Add a resize"):
        evaluate(Numbers(20), transform=grows)


def test_bad_examples_can_be_reported_instead():
    reports = []
    got = evaluate(Numbers(20, bad=(0, 13)), on_bad=lambda *report: reports.append(report))
    assert reports == [(i, f"numbers train[{i}]: it is broken.") for i in (0, 13)]
    weight = np.concatenate([batch["weight"] for batch in got])
    np.testing.assert_array_equal(np.flatnonzero(weight == 0), [0, 13, 20, 21, 22, 23])
    reports.clear()
    bad = evaluate(Numbers(2, bad=(0, 1)), on_bad=lambda *report: reports.append(report))
    assert bad == []
    assert [i for i, _ in reports] == [0, 1]


def test_mistakes():
    with pytest.raises(ConfigError, match="batch_size=12 cannot be divided"):
        take(1, batch_size=12, sharding=mesh_sharding(8, 1))


@pytest.mark.medium
def test_memory_is_bounded():
    """Nothing is loaded beyond what the options allow, however long the consumer takes."""
    source = Numbers(100)
    with training(source) as batches:
        next(batches)
        time.sleep(0.5)
        # One returned, `prefetch` on the devices, one in the thread, `prefetch` in Grain.
        assert source.reads <= 64 * (1 + 2 + 1 + 2) + 1


def test_memory_is_used_again_only_when_nothing_refers_to_it():
    memory, shape, dtype = BatchMemory(), (4, 1000), np.dtype(np.float32)
    first = memory.empty(shape, dtype)
    first[...] = 7
    address = first.ctypes.data
    assert address % 64 == 0
    on_device = jax.device_put(first)  # A CPU device has no copy.
    view = first[1:, ::2]
    del first
    assert memory.empty(shape, dtype).ctypes.data != address
    np.testing.assert_array_equal(on_device, 7)
    del on_device
    gc.collect()  # JAX releases what it refers to.
    assert memory.empty(shape, dtype).ctypes.data != address
    np.testing.assert_array_equal(view, 7)
    del view
    # Of the two that were released, the last is used first.
    assert memory.empty(shape, dtype).ctypes.data == address


def live_threads():
    return [t for t in threading.enumerate() if t.name.startswith(("batches", "grain-prefetch"))]


def assert_nothing_lives():
    deadline = time.monotonic() + 10
    while live_threads() or multiprocessing.active_children():
        assert time.monotonic() < deadline, (live_threads(), multiprocessing.active_children())
        time.sleep(0.01)


@pytest.mark.medium
@pytest.mark.parametrize("workers", [0, 2])
def test_a_consumer_that_raises_leaves_nothing_behind(workers):
    with pytest.raises(KeyboardInterrupt), training(Numbers(100), workers=workers) as batches:
        next(batches)
        raise KeyboardInterrupt
    assert_nothing_lives()
    assert list(batches) == []  # Closed: exhausted.


@pytest.mark.medium
def test_a_dropped_iterator_closes_itself():
    batches = training(Numbers(100))
    next(batches)
    del batches
    gc.collect()
    assert_nothing_lives()


PARENT = """
import sys, multiprocessing
sys.path[:0] = sys.argv[1:3]
if __name__ == "__main__":
    from data_pipeline_test import Numbers, training
    batches = training(Numbers(100), workers=2, threads=1, prefetch=1)
    next(batches)
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    sys.stdin.read()
"""


def is_running(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_workers_do_not_outlive_their_process(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, script, HERE, HERE.parent],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(is_running(pid) for pid in workers)
        parent.kill()
        parent.wait(timeout=60)
    deadline = time.monotonic() + 10
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, workers
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("cores", "images", "pixels", "workers", "threads"),
    [
        (2, 10**7, 224**2, 0, 4),  # A few cores: threads are as fast.
        (4, 10**7, 224**2, 0, 4),
        (16, 134 * 10, 384**2, 1, 4),  # A small folder.
        (16, 500, 224**2, 0, 16),
        (16, 1442 * 135, 8**2, 0, 16),  # Many, but tiny images.
        (16, 10**7, 224**2, 14, 4),
        (224, 10**7, 224**2, 16, 4),
        (224, 0, 0, 0, 16),
    ],
)
def test_automatic_options_fit_the_machine_and_the_data(cores, images, pixels, workers, threads):
    resolved = LoaderOptions().resolved(images=images, pixels=pixels, cores=cores)
    assert (resolved.workers, resolved.threads) == (workers, threads)
    chosen = LoaderOptions(3, 2, 5)
    assert chosen.resolved(images=images, pixels=pixels, cores=cores) == chosen


def test_automatic_options_depend_on_the_steps_and_change_no_batch(monkeypatch):
    resolved = []
    original = LoaderOptions.resolved

    def spy(self, **arguments):
        resolved.append(arguments)
        return original(self, **arguments)

    monkeypatch.setattr(LoaderOptions, "resolved", spy)
    expected = take(3)
    assert resolved[-1] == {"images": 7 * 16, "pixels": 6}  # An epoch of 100 examples.
    for one, other in zip(take(3, workers=-1, threads=-1, num_steps=1000), expected, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
    assert resolved[-1] == {"images": 16_000, "pixels": 6}
