"""Measures transfer from one half of Fashion-MNIST's classes to the other, with few labels.

    python -m benchmarks.transfer --workdir=runs/transfer

A small ViT is pre-trained on the classes 0 to 4 (shirts, dresses, ...) at 28 pixels. The classes 5
to 9 (shoes, bags, ...) are then learned from a few labelled images of each at 42 pixels, with
position embeddings resized from 4 x 4 to 6 x 6 patches, by four methods: from scratch, fine-tuning,
a linear probe, LoRA. All use the same model, images, augmentation (none for the probe), number of
updates and batch size. The learning rate of each method is the best with the fewest labels on
images of `train` that no run is trained on, for a seed that is not reported.

The same command resumes after an interruption; --size=toy only tests this program.
Measured on 2 cores of an AMD EPYC, shared with others (pre-training 13 minutes, a run half a
minute, a probe 5 seconds); mean and standard deviation of test accuracy over three seeds:

                                       10 labels a class    25 labels a class
    from scratch (AdamW, lr .003)      62.0% +- 1.3         67.8% +- 2.4
    linear probe (SGD, lr .1)          64.9% +- 4.2         75.2% +- 1.8
    fine-tuned (SGD, lr .03)           70.0% +- 4.8         78.3% +- 2.5
    LoRA, rank 8 (AdamW, lr .003)      74.8% +- 2.0         81.1% +- 2.2
"""

import contextlib
import dataclasses
import io
import pathlib
import statistics
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from configs import finetune
from vit_jax import cli
from vit_jax.config import base_config, classification_eval, freeze
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.training.run import train

BEFORE, AFTER = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
DECODE = {"op": "decode", "channels": 1}
AUGMENTED = (
    DECODE,
    {"op": "random_resized_crop", "area": (0.5, 1.0)},
    {"op": "flip_lr"},
    {"op": "value_range"},
)


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of the study.

    Attributes:
      width: width of the model; its MLPs have four times as many hidden units.
      depth: number of blocks.
      epochs: epochs of pre-training.
      steps: steps of each transfer.
      batch_size: batch sizes of pre-training and of transfers.
      train: split of the labelled images.
      val: split on which learning rates are chosen.
      seeds: number of reported seeds; the next seed is for choosing learning rates.
    """

    width: int = 96
    depth: int = 6
    epochs: float = 10.0
    steps: int = 200
    batch_size: tuple[int, int] = (256, 50)
    train: str = "train[:10000]"
    val: str = "train[55000:]"
    seeds: int = 3


SIZES = {
    "full": Size(),
    "toy": Size(16, 1, 1.0, 2, (8, 5), "train[:50%]", "train[50%:]", seeds=2),
}
# Candidates by method, half a decade apart.
LEARNING_RATES = {
    "scratch": (1e-3, 3e-3, 1e-2),
    "full": (0.01, 0.03, 0.1),
    "probe": (0.03, 0.1, 0.3),
    "lora": (1e-3, 3e-3, 1e-2),
}
PLAIN = (DECODE, {"op": "resize"}, {"op": "value_range"})


def _base(*, image_size: int) -> ConfigDict:
    c = base_config()
    c.model.image_size, c.model.channels, c.model.scan = (image_size,), 1, False
    c.data.source = "fashion_mnist"
    c.data.train_transforms, c.data.eval_transforms = AUGMENTED, PLAIN
    c.optim.weight_decay, c.optim.clip_norm = 0.05, 1.0
    c.optim.schedule.warmup_percent = 0.1
    c.log.every_steps, c.log.tensorboard = 50, False
    return c


def architecture(c: ConfigDict, size: Size) -> None:
    """Sets the model: six narrow blocks, 16 patches at 28 pixels, 0.7 million parameters (full)."""
    c.model.variant = "Ti/7"
    c.model.update({"width": size.width, "depth": size.depth, "mlp_dim": 4 * size.width})
    c.model.update({"num_heads": 4, "pool": "gap"})


def pre_training(size: Size) -> ConfigDict:
    """Returns the config of pre-training: AdamW on 30,000 images of the first five classes."""
    c = _base(image_size=28)
    architecture(c, size)
    c.batch_size, c.total_epochs = size.batch_size[0], size.epochs
    c.data.classes = BEFORE
    c.optim.lr = 2e-3
    c.evals = ConfigDict({"test": classification_eval(split="test", every_steps=400)})
    c.checkpoint.every_steps = 400
    return c


def transfer(
    method: str, size: Size, *, origin: str, shots: int, seed: int, lr: float
) -> ConfigDict:
    """Returns the config of a transfer to the other five classes, at 42 pixels.

    Args:
      method: a key of `LEARNING_RATES`; all except "scratch" are modes of configs/finetune.py.
      size: size of the study.
      origin: work directory of the pre-training.
      shots: number of labelled images of each class.
      seed: seed of their choice, order and augmentation.
      lr: peak learning rate.
    """
    c = _base(image_size=42)
    if method == "scratch":
        architecture(c, size)
    else:
        recipe = finetune.get_config(f"mode={method},size=42,rank=8")
        c.init_from, c.init_skip, c.model.variant = origin, recipe.init_skip, ""
        c.model.lora_rank, c.cache_features = recipe.model.lora_rank, recipe.cache_features
        c.optim.freeze = recipe.optim.freeze
        for key in ("name", "momentum", "momentum_dtype", "weight_decay"):
            c.optim[key] = recipe.optim[key]
        if method == "probe":
            c.data.train_transforms = PLAIN
    c.seed, c.optim.lr = seed, lr
    c.batch_size, c.total_steps = size.batch_size[1], size.steps
    c.data.classes, c.data.shots, c.data.split = AFTER, shots, size.train
    c.evals = ConfigDict({"test": classification_eval(split="test")})
    return c


def best_learning_rate(
    method: str, size: Size, *, origin: str, shots: int, folder: pathlib.Path
) -> float:
    """Returns the learning rate that is best on images that no run is trained on.

    These are the last 5,000 of "train"; labelled images are among the first 10,000. Uses a seed
    that no reported run has.
    """
    accuracy = {}
    for lr in LEARNING_RATES[method]:
        c = transfer(method, size, origin=origin, shots=shots, seed=size.seeds, lr=lr)
        c.evals = ConfigDict({"val": classification_eval(split=size.val)})
        accuracy[lr] = train_and_measure(c, folder / f"{method}-{shots}-lr{lr:g}", "val/top1")
    text = ", ".join(f"{lr:g}: {value:.2%}" for lr, value in accuracy.items())
    print(f"{method}, {shots} labels a class, learning rates by validation: {text}", flush=True)
    return max(accuracy, key=accuracy.get)


def train_and_measure(config: ConfigDict, workdir: pathlib.Path, metric: str) -> float:
    """Trains or resumes a run, if it is not finished; returns the metric after the last update."""
    with contextlib.redirect_stdout(io.StringIO()):
        train(freeze(config), workdir)
    return read_jsonl(workdir / "metrics.jsonl")[-1][metric]


def study(
    folder: pathlib.Path, size: Size, methods: Sequence[str], all_shots: Sequence[int]
) -> None:
    """Trains all runs of the study below a folder, and prints a line for each cell of the table.

    `all_shots` are numbers of labelled images of each class, ascending.
    """
    origin = str(folder / "pre_training")
    value = train_and_measure(pre_training(size), pathlib.Path(origin), "test/top1")
    print(f"pre-training: {value:.2%} of the test images of its own five classes", flush=True)
    for method in methods:
        lr = best_learning_rate(method, size, origin=origin, shots=all_shots[0], folder=folder)
        for shots in all_shots:
            values = []
            for seed in range(size.seeds):
                c = transfer(method, size, origin=origin, shots=shots, seed=seed, lr=lr)
                values.append(
                    train_and_measure(c, folder / f"{method}-{shots}-seed{seed}", "test/top1")
                )
            each = ", ".join(f"{value:.2%}" for value in values)
            print(
                f"{method}, {shots} labels a class, lr {lr:g}: mean {statistics.mean(values):.2%},"
                f" standard deviation {statistics.stdev(values):.2%} ({each})",
                flush=True,
            )


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("workdir", None, "Folder of all runs.", flag_values=values)
    flags.DEFINE_list("shots", ["10", "25"], "Labelled images of each class.", flag_values=values)
    flags.DEFINE_enum("size", "full", list(SIZES), "Size of models and runs.", flag_values=values)


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Measures."""
    folder = pathlib.Path(values.workdir).absolute()
    study(folder, SIZES[values.size], list(LEARNING_RATES), [int(n) for n in values.shots])


if __name__ == "__main__":
    cli.run(cli.Command(__doc__, define, main, required=("workdir",)))
