"""The memory of decoding, cropping and batching does not grow with the number of batches."""

import gc
import itertools
import multiprocessing
import os
import pathlib
import re
import statistics

import numpy as np
import pytest

from tests.data_fast_decode_test import jpeg
from tests.data_pipeline_test import one_device
from vit_jax.data import recipes
from vit_jax.data.base import Source
from vit_jax.data.batches import LoaderOptions
from vit_jax.data.decoded_cache import DecodedCache
from vit_jax.data.pipeline import train_batches
from vit_jax.data.pixel_files import PixelFiles
from vit_jax.data.transforms import compose

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")

# Large, because other memory that this process frees or takes meanwhile is some megabytes.
HEIGHT, WIDTH = 800, 1000
IMAGE_BYTES = HEIGHT * WIDTH * 3
BATCH = 4
LEAKED = []


class Photographs(Source):
    name, split, class_names = "photographs", "train", ("a", "b")

    def __init__(self):
        self.data = jpeg(HEIGHT, WIDTH)

    def __len__(self):
        return 10 * BATCH

    def __getitem__(self, index):
        return {"image": self.data, "label": index % 2}


class Leaky(Photographs):
    """Keeps the decoded size of one image for each batch."""

    def __getitem__(self, index):
        if index % BATCH == 0:
            LEAKED.append(np.ones(IMAGE_BYTES, np.uint8))
        return super().__getitem__(index)


def allocated_bytes():
    """Memory that this process and its loader processes have written, wherever it lies.

    Without pages of files, which the system drops and reads again as it likes.
    """
    pids = [os.getpid(), *(process.pid for process in multiprocessing.active_children())]
    texts = [pathlib.Path(f"/proc/{pid}/status").read_text() for pid in pids]
    found = [re.findall(r"(?:RssAnon|RssShmem|VmSwap):\s+(\d+) kB", text) for text in texts]
    return sum(int(size) * 1024 for sizes in found for size in sizes)


def leaked_images_per_batch(source, *, workers=0, cache=None, warm_up=10, steps=15):
    """Growth of the allocated memory in decoded images per batch, after a warm-up.

    The median of three periods: a leak grows in each; that the process takes or frees other memory
    happens in one.
    """
    transform = compose(recipes.augreg("none")[0], image_size=32, channels=3, cache=cache)
    with train_batches(
        source,
        transform,
        batch_size=BATCH,
        seed=0,
        start_step=0,
        sharding=one_device(),
        options=LoaderOptions(workers, 2, 2),
    ) as batches:
        for _ in range(warm_up):
            next(batches)
        gc.collect()  # what earlier tests left must not be freed in the middle
        sizes = [allocated_bytes()]
        for _ in range(3):
            for _ in range(steps):
                next(batches)
            sizes.append(allocated_bytes())
        growth = statistics.median(after - before for before, after in itertools.pairwise(sizes))
        return growth / (steps * IMAGE_BYTES)


@pytest.mark.medium
@pytest.mark.parametrize("cached", [False, True])
def test_threads_do_not_grow(cached, tmp_path):
    cache = DecodedCache(PixelFiles(str(tmp_path), limit_bytes=10**9)) if cached else None
    assert leaked_images_per_batch(Photographs(), cache=cache) < 0.5


@pytest.mark.slow
def test_worker_processes_do_not_grow():
    assert leaked_images_per_batch(Photographs(), workers=2) < 0.5


@pytest.mark.medium
def test_a_leak_of_one_image_a_batch_is_noticed():
    try:
        assert leaked_images_per_batch(Leaky()) > 0.5
    finally:
        LEAKED.clear()
