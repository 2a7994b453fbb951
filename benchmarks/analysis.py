r"""Measures memory and time of the measures of `vit_jax.analysis`.

    python -m benchmarks.analysis [--counts=1000,10000] [--images=fashion_mnist:test] [--only=NAME]

Memory: the peak of the resident memory of a process of its own for each measure and number of
images, JAX and compilation included; a ViT-Ti/4 with random parameters on images of 28 pixels.
Time: one image of a ViT-B/16 at 224 pixels, relative to one forward pass of the same images, both
in batches of eight, interleaved in one process; the median of the rounds and their range.

faithfulness takes 238 forward passes of an image; its memory alone, of a smaller model:
    python -m benchmarks.analysis --only=faithfulness --model=mu/4 --counts=1000 --child
"""

import dataclasses
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from absl import app, flags

# Measures over many images.
MEASURES = (
    "attention_distance", "token_norms", "branch_norms", "layer_similarity", "feature_pca",
    "nearest_images",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Time per image relative to a forward pass: the median of the rounds, and their range."""

    median: float
    low: float
    high: float


def peak_mebibytes(measure: str, images: str, count: int, model: str, image_size: int) -> float:
    """Returns the peak memory of a process that measures `count` images."""
    command = [sys.executable, "-m", "benchmarks.analysis", f"--only={measure}"]
    command += [f"--images={images}", f"--counts={count}", f"--model={model}"]
    command += [f"--image_size={image_size}", "--child"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(out.split()[-1])  # A data set that is prepared prints, too.


def _measure_once(measure: str, images: str, count: int, model: str, image_size: int) -> float:
    import vit_jax

    pretrained = vit_jax.create(model, image_size=image_size, channels=1, num_classes=10)
    getattr(vit_jax.analysis, measure)(pretrained, images, num_images=count)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def relative_times(
    names: Sequence[str], *, model: str = "B/16", image_size: int = 224, images: int = 16,
    rounds: int = 5,
) -> dict[str, Ratio]:  # fmt: skip
    """Returns the time of each measure relative to a forward pass of the same images."""
    import jax

    import vit_jax

    pretrained = vit_jax.create(model, image_size=image_size, num_classes=1000)
    shape = (images, *pretrained.config.image_size, 3)
    batch = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def forward() -> None:
        for start in range(0, images, 8):
            jax.block_until_ready(pretrained(batch[start : start + 8])[0])

    def run(name: str) -> Callable[[], object]:
        measure = getattr(vit_jax.analysis, name)
        return lambda: measure(pretrained, batch, batch_size=8)

    works = {name: run(name) for name in names}
    ratios = {name: [] for name in names}
    for work in (forward, *works.values()):  # Compiles.
        work()
    for _ in range(rounds):
        for name, work in works.items():
            base = min(_seconds(forward), _seconds(forward))
            ratios[name].append(_seconds(work) / base)
    return {
        name: Ratio(statistics.median(values), min(values), max(values))
        for name, values in ratios.items()
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    _COUNTS = flags.DEFINE_list("counts", ["1000", "10000"], "Numbers of images.")
    _IMAGES = flags.DEFINE_string("images", "fashion_mnist:test", "Images for the memory.")
    _ONLY = flags.DEFINE_list("only", list(MEASURES), "Measures.")
    _MODEL = flags.DEFINE_string("model", "Ti/4", "Model for the memory.")
    _SIZE = flags.DEFINE_integer("image_size", 28, "Its image size.")
    _CHILD = flags.DEFINE_bool("child", False, "Measure once, and print the peak in MiB.")

    def main(argv: Sequence[str]) -> None:
        """Measures, and prints a table."""
        counts = list(map(int, _COUNTS.value))
        if _CHILD.value:
            print(
                _measure_once(_ONLY.value[0], _IMAGES.value, counts[0], _MODEL.value, _SIZE.value)
            )
            return
        ratios = relative_times(_ONLY.value)
        print("| measure | time per image, forward passes | " + " | ".join(
            f"peak at {count:,} images, MiB" for count in counts) + " |")  # fmt: skip
        print("|---" * (2 + len(counts)) + "|")
        for name, ratio in ratios.items():
            peaks = [
                peak_mebibytes(name, _IMAGES.value, count, _MODEL.value, _SIZE.value)
                for count in counts
            ]
            time_text = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
            print(
                f"| `{name}` | {time_text} | {' | '.join(f'{p:.0f}' for p in peaks)} |", flush=True
            )

    app.run(main)
