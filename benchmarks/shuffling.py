"""Measures how well an order shuffles class-sorted data: classes in a batch, and accuracy of a run.

    python -m benchmarks.shuffling [--seeds=3] [--epochs=1]

The first table is of the order alone, for as many examples and classes as ImageNet has, sorted by
class: the probability that two examples of a batch are of the same class, times the number of
classes (1 if examples are drawn independently), and the share of all classes that a batch contains.

The second trains a small ViT (two blocks of width 64, 16 patches) on Fashion-MNIST sorted by class,
with each order, and reports the mean and the standard deviation of the test accuracy over seeds.
Results: benchmarks/README.md.
"""

import dataclasses
import statistics
from collections.abc import Sequence

import jax
import numpy as np
from absl import app, flags
from ml_collections import FrozenConfigDict

from vit_jax.config import base_config, freeze
from vit_jax.data import order
from vit_jax.data.fashion_mnist import PACKAGE_DIR, read_idx
from vit_jax.data.order import Chunks
from vit_jax.models import build, read_section
from vit_jax.parallel import mesh as meshes
from vit_jax.training.experiment import Program
from vit_jax.training.state import run_keys

_IMAGENET, _CLASSES = 1_281_167, 1000


@dataclasses.dataclass(frozen=True)
class Order:
    """An order of the training examples.

    Attributes:
      name: in the tables.
      chunks: examples in a chunk and in a window; None: one permutation of all examples.
      shuffled: False: the order of the data, in each epoch.
    """

    name: str
    chunks: tuple[int, int] | None = None
    shuffled: bool = True

    def ids(self, step: int, *, batch_size: int, num_examples: int, seed: int) -> np.ndarray:
        """Returns the examples of a batch."""
        if not self.shuffled:
            return np.arange(step * batch_size, (step + 1) * batch_size) % num_examples
        chunks = self.chunks and Chunks(*self.chunks, batch_size)
        return order.example_ids(
            step, batch_size=batch_size, num_examples=num_examples, seed=seed, chunks=chunks
        )


def orders(chunks: Sequence[tuple[int, int]]) -> list[Order]:
    """Returns the orders of a table: the global one, the given ones, and none."""
    two_level = [Order(f"chunks of {c:,}, window {w:,}", (c, w)) for c, w in chunks]
    return [Order("global"), *two_level, Order("not shuffled", shuffled=False)]


def classes_in_batches(
    of: Order, *, batch_size: int, num_examples: int, num_classes: int, batches: int
) -> tuple[float, float]:
    """Returns the two measures of the first table, means over batches spread over an epoch."""
    pairs, present = [], []
    last = num_examples // batch_size - 1
    for step in np.linspace(0, last, batches).astype(int).tolist():
        ids = of.ids(step, batch_size=batch_size, num_examples=num_examples, seed=0)
        counts = np.bincount(ids * num_classes // num_examples, minlength=num_classes)
        same = (counts * (counts - 1)).sum() / (batch_size * (batch_size - 1))
        pairs.append(same * num_classes)
        present.append(np.count_nonzero(counts) / num_classes)
    return statistics.fmean(pairs), statistics.fmean(present)


def run_config(epochs: float) -> FrozenConfigDict:
    """Returns the config of the runs."""
    c = base_config()
    c.batch_size, c.total_epochs = 128, epochs
    c.model.variant = "Ti/7"
    c.model.update({"width": 64, "depth": 2, "mlp_dim": 256, "num_heads": 4})
    c.model.image_size, c.model.channels = (28,), 1
    c.model.pool, c.model.posemb, c.model.scan = "gap", "sincos2d", False
    c.optim.lr, c.optim.weight_decay, c.optim.clip_norm = 2e-3, 0.05, 1.0
    c.optim.schedule.warmup_percent = 0.1
    return freeze(c)


Split = tuple[np.ndarray, np.ndarray]


def sorted_fashion_mnist() -> tuple[Split, Split]:
    """Returns images in [-1, 1] and labels of train, sorted by class, and of test."""
    parts = []
    for name, count in (("train", 60_000), ("t10k", 10_000)):
        images = read_idx(PACKAGE_DIR / f"{name}-images-idx3-ubyte.gz", shape=(count, 28, 28))
        labels = read_idx(PACKAGE_DIR / f"{name}-labels-idx1-ubyte.gz", shape=(count,))
        by_class = np.argsort(labels, kind="stable")
        pixels = images[by_class, ..., None].astype(np.float32) / 127.5 - 1
        parts.append((pixels, labels[by_class].astype(np.int32)))
    return parts[0], parts[1]


class Trainer:
    """Trains the model with any order; compiled once."""

    def __init__(self, config: FrozenConfigDict, train: Split, test: Split):
        self._config, self._train, self._test = config, train, test
        model_config = read_section(config.model, num_classes=10)
        self._mesh = meshes.make_mesh(config.mesh)
        self._program = Program.of(config, model_config, self._mesh, num_examples=len(train[1]))
        model = build(model_config)
        self._logits = jax.jit(lambda params, images: model.apply({"params": params}, images)[0])

    def accuracy(self, of: Order, *, seed: int) -> float:
        """Returns the test accuracy of a run; the seed is of the order and the parameters."""
        images, labels = self._train
        batch_size = self._config.batch_size
        state = self._program.init(run_keys(seed)[0])
        state = jax.device_put(state, self._program.layout)
        stop = np.zeros(1, bool)
        for step in range(int(self._config.total_epochs * len(labels) / batch_size)):
            ids = of.ids(step, batch_size=batch_size, num_examples=len(labels), seed=seed)
            weight = np.ones(batch_size, np.float32)
            batch = {"image": images[ids], "label": labels[ids], "weight": weight}
            state, _ = self._program.train_step(state, batch, stop)
        images, labels = self._test
        predicted = [
            np.asarray(self._logits(state.params, part)).argmax(-1)
            for part in np.split(images, len(images) // 500)
        ]
        return float((np.concatenate(predicted) == labels).mean())


def main(argv: Sequence[str]) -> None:
    """Prints both tables."""
    del argv
    print("| order | batch | same class x classes | share of classes in a batch |")
    print("|---|---|---|---|")
    for batch_size in (1024, 4096):
        for of in orders([(64, 4096), (64, 8192), (64, 32768), (256, 8192), (256, 32768)]):
            same, present = classes_in_batches(
                of,
                batch_size=batch_size,
                num_examples=_IMAGENET,
                num_classes=_CLASSES,
                batches=50,
            )
            print(f"| {of.name} | {batch_size:,} | {same:.2f} | {present:.1%} |", flush=True)
    print("\n| order | same class x classes | test accuracy |")
    print("|---|---|---|")
    trainer = Trainer(run_config(_EPOCHS.value), *sorted_fashion_mnist())
    for of in orders([(64, 8192), (64, 2048), (64, 512), (64, 128), (512, 8192)]):
        same, _ = classes_in_batches(
            of, batch_size=128, num_examples=60_000, num_classes=10, batches=50
        )
        values = [100 * trainer.accuracy(of, seed=seed) for seed in range(_SEEDS.value)]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        print(f"| {of.name} | {same:.2f} | {statistics.fmean(values):.2f}{spread}% |", flush=True)


if __name__ == "__main__":
    _SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each order.", lower_bound=1)
    _EPOCHS = flags.DEFINE_float("epochs", 1.0, "Length of a run.")
    app.run(main)
