r"""Compares our input pipeline with tf.data, from JPEG files to float32 batches.

    python -m benchmarks.input --out=DIR [--tf_python=PYTHON]

Writes images of photographs (pieces of the two that come with scikit-learn): JPEGs of 500 x 400 and
of 12 megapixels at quality 90, PNGs and WebPs, and prints the sizes of their files. Each pipeline
runs in a process of its own, in turns; the table has the median and the range of images per second,
and the processor time of an image (of the main process), which other work on the machine changes
less. tf.data runs in the Python that `--tf_python` names; without it, its rows are "not measured".
All pipelines use the cores that this process may use (`taskset`).

Ours crops as tf.data's usual recipe does (areas from 5% to 100%), but resizes with antialiasing;
tf.data is measured without (its default) and with it. For RandAugment, tf.data applies two
operations drawn from nine of ours that are few lines there: an easier task than ours.
"""

import dataclasses
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from absl import app, flags

_SIZE = 224


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is measured: files of each kind, images in a batch and in a run, repeats."""

    files: int
    batch: int
    images: int
    repeats: int


SCALES = {"full": Scale(64, 64, 1280, 3), "toy": Scale(2, 2, 4, 1)}  # toy: only tests this program.


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
      name: in the table.
      files: folder of the files.
      ours: value of `data.decode`; "" for tf.data.
      augment: whether RandAugment is applied.
      antialias: of tf.data.
      cost: divides the number of images.
      threads: of our loader; 0: automatic.
      workers: processes of our loader.
      cache: value of `data.cache`: "ram", or "disk" for a folder beside the files.
    """

    name: str
    files: str
    ours: str = ""
    augment: bool = False
    antialias: bool = False
    cost: int = 1
    threads: int = 0
    workers: int = 0
    cache: str = ""


def _three(name: str, files: str, **options) -> list[Case]:
    return [
        Case(f"{name}, ours, exact", files, "exact", **options),
        Case(f"{name}, ours, fast", files, "fast", **options),
        Case(f"{name}, tf.data", files, **options),
    ]


CASES = (
    *_three("JPEG 500x400", "jpeg"),
    Case("JPEG 500x400, tf.data, antialias", "jpeg", antialias=True),
    *_three("JPEG 500x400, RandAugment", "jpeg", augment=True),
    *_three("JPEG 4000x3000", "large", cost=16),
    *_three("PNG 500x400", "png", cost=4)[::2],
    Case("WebP 500x400, ours, exact", "webp", "exact", cost=4),
    *(
        Case(f"JPEG 500x400, ours, fast, {threads} thread(s)", "jpeg", "fast", threads=threads)
        for threads in (1, 2)
    ),
    *(
        Case(f"JPEG 500x400, ours, fast, {workers} worker(s)", "jpeg", "fast", workers=workers)
        for workers in (1, 2)
    ),
    *(
        Case(f"{name}, ours, exact, cached ({cache})", files, "exact", cost=cost, cache=cache)
        for name, files, cost in (("JPEG 500x400", "jpeg", 1), ("PNG 500x400", "png", 4))
        for cache in ("ram", "disk")
    ),
)


def write(folder: pathlib.Path, files: int) -> dict[str, float]:
    """Writes the files; returns the mean size of a file in kilobytes, by folder."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng, photographs = np.random.default_rng(0), load_sample_images().images

    def piece(i: int) -> np.ndarray:
        pixels = photographs[i % 2]
        height, width, _ = pixels.shape
        y, x = int(rng.integers(height - 399)), int(rng.integers(width - 499))
        pixels = pixels[y : y + 400, x : x + 500]
        return pixels[:, ::-1] if i % 4 > 1 else pixels

    def large(i: int) -> np.ndarray:
        image = Image.fromarray(photographs[i % 2]).resize((4000, 3000), Image.Resampling.BICUBIC)
        noise = 4 * rng.standard_normal((3000, 4000, 3), np.float32)  # Of a camera's sensor.
        return np.clip(np.asarray(image) + noise + 0.5, 0, 255).astype(np.uint8)

    sizes = {}
    for name, make, kind, count in (
        ("jpeg", piece, "JPEG", files),
        ("png", piece, "PNG", files),
        ("webp", piece, "WEBP", files),
        ("large", large, "JPEG", max(files // 8, 2)),
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            path = folder / name / f"{i:03}.{kind.lower()}"
            Image.fromarray(make(i)).save(path, kind, quality=90)
        kilobytes = [path.stat().st_size / 1e3 for path in (folder / name).iterdir()]
        sizes[name] = statistics.mean(kilobytes)
    return sizes


def our_batches(case: Case, paths: list[str], batch: int):
    """Returns our iterator of batches; they are ready when `next` returns."""
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from ml_collections import FrozenConfigDict

    from vit_jax.data import recipes
    from vit_jax.data.batches import AUTOMATIC, LoaderOptions
    from vit_jax.data.decoded_cache import open_cache
    from vit_jax.data.files import Files
    from vit_jax.data.pipeline import train_batches
    from vit_jax.data.transforms import compose

    transforms, _ = recipes.augreg("medium1" if case.augment else "none")
    folder = pathlib.Path(paths[0]).parents[1] / "cache"
    cache = str(folder) if case.cache == "disk" else case.cache
    transform = compose(
        transforms,
        image_size=_SIZE,
        channels=3,
        decode=case.ours,
        cache=open_cache(FrozenConfigDict({"cache": cache, "cache_gb": 1.0}), processes=1),
    )
    source = Files([pathlib.Path(path) for path in paths], class_names=["any"])
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:1]), "data"), PartitionSpec("data"))
    with train_batches(
        source,
        transform,
        batch_size=batch,
        seed=0,
        start_step=0,
        sharding=sharding,
        options=LoaderOptions(case.workers, case.threads or AUTOMATIC),
    ) as batches:
        yield from map(jax.block_until_ready, batches)


def tf_batches(case: Case, paths: list[str], batch: int):
    """Returns tf.data's iterator of batches."""
    import tensorflow as tf

    cores = len(os.sched_getaffinity(0))
    tf.config.threading.set_intra_op_parallelism_threads(cores)
    tf.config.threading.set_inter_op_parallelism_threads(cores)
    kind = pathlib.Path(paths[0]).suffix

    def load(path):
        data = tf.io.read_file(path)
        image = tf.io.decode_png(data, channels=3) if kind == ".png" else None
        shape = tf.io.extract_jpeg_shape(data) if image is None else tf.shape(image)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.zeros([0, 0, 4], tf.float32),
            area_range=(0.05, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            min_object_covered=0,
            use_image_if_no_bounding_boxes=True,
        )
        if image is None:
            window = tf.concat([begin[:2], size[:2]], 0)
            image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        else:
            image = tf.slice(image, begin, size)
        image = tf.image.resize(image, (_SIZE, _SIZE), antialias=case.antialias)
        image = tf.image.random_flip_left_right(image)
        if case.augment:
            image = tf.cast(_tf_randaugment(tf, tf.cast(image, tf.uint8)), tf.float32)
        return image * (2 / 255) - 1

    data = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
    data = data.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(batch).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = cores
    yield from data.with_options(options)


def _tf_randaugment(tf, image):
    """Applies two of nine operations, each in a few lines of TensorFlow, at medium strength."""

    def translate(image, axis):
        return tf.concat(tf.split(image, [100, _SIZE - 100], axis)[::-1], axis)

    operations: list[Callable] = [
        lambda image: 255 - image,
        lambda image: tf.bitwise.bitwise_and(image, 0xE0),
        lambda image: tf.where(image < 160, image, 255 - image),
        lambda image: tf.image.adjust_saturation(image, 1.8),
        lambda image: tf.image.adjust_contrast(image, 1.8),
        lambda image: tf.image.adjust_brightness(image, 0.3),
        lambda image: translate(image, 0),
        lambda image: translate(image, 1),
        lambda image: tf.where(image < 128, image + 40, image),
    ]
    for _ in range(2):
        index = tf.random.uniform([], maxval=len(operations), dtype=tf.int32)
        image = tf.switch_case(index, [lambda op=op, image=image: op(image) for op in operations])
    return image


def run(case: Case, folder: pathlib.Path, scale: Scale) -> dict[str, float]:
    """Measures one pipeline in this process, after two batches to warm up.

    With a cache these follow a first epoch, in which every image is decoded and stored.
    """
    paths = sorted(map(str, (folder / case.files).iterdir()))
    batch = max(scale.batch // case.cost, 1)
    count = max(scale.images // case.cost // batch, 1)
    batches = (our_batches if case.ours else tf_batches)(case, paths * 4, batch)
    for _ in range(2 + (len(paths) * 4 // batch if case.cache else 0)):
        next(batches)
    start, before = time.perf_counter(), _processor_seconds()
    for _ in range(count):
        next(batches)
    seconds, processor = time.perf_counter() - start, _processor_seconds() - before
    batches.close()
    images = count * batch
    return {
        "rate": images / seconds,
        "processor": processor / images * 1e3,
        "mebibytes": _peak_mebibytes(),
    }


def _peak_mebibytes() -> float:
    """Returns the peak resident memory of this process (Linux)."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(case: Case, python: str, out: str, size: str) -> dict[str, float] | None:
    """Measures one pipeline in a new process; None: TensorFlow is not there."""
    if not python:
        return None
    command = [python, "-m", "benchmarks.input", f"--out={out}", f"--size={size}"]
    index = CASES.index(case)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(
        [*command, f"--case={index}"], env=env, check=True, capture_output=True, text=True
    )
    return json.loads(result.stdout.splitlines()[-1])


def main(argv: Sequence[str]) -> None:
    """Prints the table, or measures one case in the child process."""
    del argv
    folder, scale = pathlib.Path(_OUT.value), SCALES[_SCALE.value]
    if _CASE.value >= 0:
        print(json.dumps(run(CASES[_CASE.value], folder, scale)))
        return
    for name, kilobytes in write(folder, scale.files).items():
        print(f"{name}: {kilobytes:,.0f} kB per file")
    chosen = [case for case in CASES if _ONLY.value in case.name]
    results: dict[Case, list[dict[str, float]]] = {case: [] for case in chosen}
    for _ in range(_REPEATS.value or scale.repeats):
        for case in chosen:
            python = sys.executable if case.ours else _TF_PYTHON.value
            if (result := measure(case, python, _OUT.value, _SCALE.value)) is not None:
                results[case].append(result)
    print("| pipeline | img/s (least to most) | processor ms per image | peak MiB |")
    print("|---|---|---|---|")
    for case, runs in results.items():
        print(f"| {case.name} | {_cells(runs)} |")


def _cells(runs: list[dict[str, float]]) -> str:
    if not runs:
        return "not measured | | "
    rates = sorted(run["rate"] for run in runs)
    middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return (
        f"{middle['rate']:,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f}) | "
        f"{middle['processor']:.2f} | {middle['mebibytes']:,.0f}"
    )


if __name__ == "__main__":
    _OUT = flags.DEFINE_string("out", "", "Folder for the files, 60 MB.")
    _TF_PYTHON = flags.DEFINE_string("tf_python", "", "A Python with TensorFlow, absl and NumPy.")
    _SCALE = flags.DEFINE_enum("size", "full", list(SCALES), "How much is measured.")
    _ONLY = flags.DEFINE_string("only", "", "Only the rows whose name contains this.")
    _REPEATS = flags.DEFINE_integer("repeats", 0, "Repeats; 0: those of the size.")
    _CASE = flags.DEFINE_integer("case", -1, "Measure this case, and print it as JSON.")
    app.run(main)
