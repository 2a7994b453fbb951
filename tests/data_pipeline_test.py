"""Batches: the same for any mesh, number of processes, workers and threads, and any start."""

import gc
import multiprocessing
import os
import pathlib
import signal
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
from vit_jax.data.blocks import BLOCK_ROWS, Blocks, ExampleLoader
from vit_jax.errors import ConfigError, DataError

HERE = pathlib.Path(__file__).resolve().parent


class Numbers(Source):
    """Example i is a 2x3 image of the number i, of class i % 10."""

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
    """Pixel 0 tells the example, pixel 1 the randomness."""
    image = example["image"].astype(np.float32)
    image[0, 1] = rng.uniform()
    return {**example, "image": image}


def mesh_sharding(*shape):
    mesh = jax.make_mesh(shape, ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    return NamedSharding(mesh, PartitionSpec("data"))


def one_device():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    return NamedSharding(mesh, PartitionSpec("data"))


LOADER = {"workers": 0, "threads": 2, "prefetch": 2}


def take(count, *, size=100, batch_size=16, seed=3, start_step=0, sharding=None, **loader):
    """The first batches of training, as NumPy arrays."""
    with pipeline.train_batches(
        Numbers(size),
        noisy,
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        sharding=sharding or one_device(),
        **{**LOADER, **loader},
    ) as batches:
        return [jax.device_get(next(batches)) for _ in range(count)]


def expected_batch(step, *, size=100, batch_size=16, seed=3):
    """A batch from its definition, without the pipeline."""
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


# Sizes that the batch divides and does not, a batch across three epochs, one of several blocks.
@pytest.mark.parametrize(("size", "batch_size"), [(96, 16), (100, 16), (7, 16), (500, 104)])
def test_batches_are_what_the_order_says(size, batch_size):
    got = take(5, size=size, batch_size=batch_size)
    assert_same(got, [expected_batch(t, size=size, batch_size=batch_size) for t in range(5)])


@pytest.mark.parametrize(
    "loader",
    [
        {"threads": 1, "prefetch": 1},
        {"threads": 5},
        pytest.param({"workers": 2}, marks=pytest.mark.slow),
    ],
)
def test_workers_threads_and_prefetch_change_nothing(loader):
    got = take(4, batch_size=72, **loader)
    assert_same(got, [expected_batch(t, batch_size=72) for t in range(4)])


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (1, 8)])
def test_meshes_change_nothing(shape):
    assert_same(take(3, sharding=mesh_sharding(*shape)), [expected_batch(t) for t in range(3)])


@pytest.mark.parametrize("start_step", [1, 6, 7, 1000])
def test_resuming_needs_the_step_alone(start_step):
    got = take(3, start_step=start_step)
    assert_same(got, [expected_batch(t) for t in range(start_step, start_step + 3)])


def test_augmentation_differs_between_epochs_and_seeds():
    noise = {
        (seed, epoch): float(batch["image"][batch["image"][:, 0, 0, 0] == 5][0, 0, 1, 0])
        for seed in (0, 1)
        for epoch, batch in enumerate(take(3, size=16, seed=seed))
    }
    assert len(set(noise.values())) == 6


class ProcessOf(Sharding):
    """The sharding as process `index` of `count` sees it: its devices are the addressable ones."""

    def __init__(self, sharding, index, count):
        self.sharding, self.index, self.count = sharding, index, count

    def addressable_devices_indices_map(self, shape):
        indices = self.sharding.devices_indices_map(shape)
        share = len(indices) // self.count
        devices = list(indices)[self.index * share : (self.index + 1) * share]
        return {device: indices[device] for device in devices}


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (2, 4)])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [100, 7])
def test_processes_load_their_rows_of_the_same_batch(shape, count, size):
    batch_size, step = 80, 9
    expected = expected_batch(step, size=size, batch_size=batch_size)
    covered = set()
    for index in range(count):
        sharding = ProcessOf(mesh_sharding(*shape), index, count)
        rows = pipeline.local_rows(sharding, batch_size=batch_size)
        assert len(rows) == batch_size * max(1, shape[0] // count) // shape[0]
        covered.update(rows.tolist())
        load = ExampleLoader(Numbers(size), noisy, 3)
        plan = pipeline.functools.partial(
            pipeline._train_plan,
            start_step=step,
            batch_size=batch_size,
            num_examples=size,
            seed=3,
        )
        blocks = Blocks(load, plan, rows=rows, num_batches=None, like=load(0, epoch=0))
        parts = [blocks[i] for i in range(blocks.per_batch)]
        for key, value in expected.items():
            local = np.concatenate([part[key] for part in parts])
            np.testing.assert_array_equal(local, value[rows])
    assert covered == set(range(batch_size))


@pytest.mark.parametrize("size", [1, 7, 8, 9, 100])
@pytest.mark.parametrize("batch_size", [8, 72])
@pytest.mark.parametrize("mesh", [(1, 8), (8, 1)])
def test_evaluation_sees_every_example_once(size, batch_size, mesh):
    with pipeline.eval_batches(
        Numbers(size), noisy, batch_size=batch_size, sharding=mesh_sharding(*mesh), **LOADER
    ) as batches:
        got = [jax.device_get(batch) for batch in batches]
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

    with pipeline.eval_batches(
        Many(5), noisy, batch_size=8, sharding=one_device(), **LOADER
    ) as batches:
        label = jax.device_get(next(batches))["label"]
    assert label.dtype == np.float32
    np.testing.assert_array_equal(label.sum(1), [2] * 5 + [0] * 3)


def evaluate(source, *, transform=noisy, on_bad=None, batch_size=8, **loader):
    with pipeline.eval_batches(
        source,
        transform,
        batch_size=batch_size,
        sharding=one_device(),
        on_bad=on_bad,
        **{**LOADER, **loader},
    ) as batches:
        return [jax.device_get(batch) for batch in batches]


@pytest.mark.medium
@pytest.mark.parametrize(("workers", "bad"), [(0, 0), (0, 13), (1, 13)])
def test_a_bad_example_is_named(workers, bad):
    with pytest.raises(DataError) as error:
        evaluate(Numbers(20, bad=(bad,)), workers=workers)
    assert str(error.value) == f"numbers train[{bad}]: it is broken."


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

    with pytest.raises(DataError, match=r"train\[1\]: image of shape \(3, 2, 1\) .* Add a resize"):
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
    with pytest.raises(ConfigError, match="seed=-2 is negative"):
        take(1, seed=-2)


@pytest.mark.medium
def test_memory_is_bounded():
    """Nothing is loaded beyond what the options allow, however long the consumer takes."""
    source, loader = Numbers(100), {"workers": 0, "threads": 2, "prefetch": 2}
    with pipeline.train_batches(
        source,
        noisy,
        batch_size=64,
        seed=0,
        start_step=0,
        sharding=one_device(),
        **loader,
    ) as batches:
        next(batches)
        time.sleep(0.5)
        # One taken, `prefetch` on the devices, one in the thread's hand, `prefetch` in Grain.
        assert source.reads <= 64 * (1 + 2 + 1 + 2) + 1


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
    with (
        pytest.raises(KeyboardInterrupt),
        pipeline.train_batches(
            Numbers(100),
            noisy,
            batch_size=64,
            seed=0,
            start_step=0,
            sharding=one_device(),
            **{**LOADER, "workers": workers},
        ) as batches,
    ):
        next(batches)
        raise KeyboardInterrupt
    assert_nothing_lives()
    assert list(batches) == []  # Closed: exhausted.


@pytest.mark.medium
def test_a_dropped_iterator_closes_itself():
    batches = pipeline.train_batches(
        Numbers(100), noisy, batch_size=8, seed=0, start_step=0, sharding=one_device(), **LOADER
    )
    next(batches)
    del batches
    gc.collect()
    assert_nothing_lives()


def test_no_transfer_is_implicit():
    with jax.transfer_guard("disallow"):
        jax.config.update("jax_transfer_guard", "disallow")  # For the thread as well.
        try:
            batches = pipeline.train_batches(
                Numbers(50),
                noisy,
                batch_size=16,
                seed=0,
                start_step=0,
                sharding=mesh_sharding(8, 1),
                **LOADER,
            )
            with batches:
                assert next(batches)["image"].shape == (16, 2, 3, 1)
        finally:
            jax.config.update("jax_transfer_guard", None)


PARENT = """
import sys, multiprocessing
sys.path[:0] = sys.argv[1:3]
if __name__ == "__main__":
    from data_pipeline_test import Numbers, noisy, one_device
    from vit_jax.data import pipeline
    batches = pipeline.train_batches(
        Numbers(100), noisy, batch_size=64, seed=0, start_step=0, sharding=one_device(),
        workers=2, threads=1, prefetch=1)
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
@pytest.mark.parametrize(
    "how",
    [
        signal.SIGKILL,
        *(pytest.param(how, marks=pytest.mark.campaign) for how in (signal.SIGTERM, None)),
    ],
)
def test_workers_do_not_outlive_their_process(how, tmp_path):
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
        if how:
            parent.send_signal(how)
        else:
            parent.stdin.close()  # It ends by itself, without closing the iterator.
        parent.wait(timeout=60)
    deadline = time.monotonic() + 10
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, workers
        time.sleep(0.1)


PROCESS = """
import os, pickle, sys
sys.path[:0] = sys.argv[1:3]
address, index, folder = sys.argv[3], int(sys.argv[4]), sys.argv[5]
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
if __name__ == "__main__":
    import jax
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, index)
    import data_pipeline_test as t
    shards = []
    for shape in ((8, 1), (2, 4), (1, 8)):
        sharding = t.mesh_sharding(*shape)
        loader = dict(batch_size=16, sharding=sharding, workers=0, threads=2, prefetch=2)
        with t.pipeline.train_batches(
            t.Numbers(100), t.noisy, seed=3, start_step=5, **loader) as batches:
            train = [next(batches) for _ in range(4)]
        with t.pipeline.eval_batches(t.Numbers(19), t.noisy, **loader) as batches:
            evals = list(batches)
        for batch in train + evals:
            shards.append({k: [(s.index, jax.device_get(s.data)) for s in v.addressable_shards]
                           for k, v in batch.items()})
        # One collective over the global array, as the train step would.
        total = jax.jit(lambda x: x.sum())(train[0]["label"])
        shards.append(int(jax.device_get(total.addressable_data(0))))
    with open(f"{folder}/{index}", "wb") as f:
        pickle.dump(shards, f)
"""


@pytest.mark.slow
def test_two_real_processes_see_the_same_batches(tmp_path):
    import pickle
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    command = [sys.executable, script, HERE, HERE.parent, address]
    running = [subprocess.Popen([*command, str(i), tmp_path]) for i in range(2)]
    assert [process.wait(timeout=200) for process in running] == [0, 0]

    results = [pickle.loads((tmp_path / str(i)).read_bytes()) for i in range(2)]
    train = [expected_batch(t) for t in range(5, 9)]
    evals = evaluate(Numbers(19), batch_size=16)
    expected = 3 * [*train, *evals, int(train[0]["label"].sum())]
    for result in results:
        assert len(result) == len(expected)
        for got, whole in zip(result, expected, strict=True):
            if isinstance(whole, int):
                assert got == whole
                continue
            for key in whole:
                for index, shard in got[key]:
                    np.testing.assert_array_equal(shard, whole[key][index])
    # Between them, they hold every row: of the first mesh each one half, of the last both all.
    halves = [{index[0].start or 0 for index, _ in result[0]["label"]} for result in results]
    assert halves == [{0, 2, 4, 6}, {8, 10, 12, 14}]
