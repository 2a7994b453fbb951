"""Does pre-training pay? One half of Fashion-MNIST's classes for the other, with few labels.

    python -m benchmarks.transfer --workdir=runs/transfer

A small ViT is trained on the classes 0 to 4 (shirts, dresses, ...) at 28 pixels. The classes 5 to 9
(shoes, bags, ...) are then learned from a few labelled images of each at 42 pixels, with position
embeddings resized from 4 x 4 to 6 x 6 patches, in four ways: from scratch, fine-tuned, by a linear
probe, by LoRA. All have the same model, images, augmentation (but the probe, which has none),
number of updates and batch size. Each way has the learning rate that was best, with the fewest
labels, on images of `train` that no run is trained on, for a seed that is not reported.

Repeating the command goes on where it stopped; --size=toy only shows that this program works.
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
from vit_jax.train import train

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
    """How much is trained, on which part of "train", and on which part learning rates are judged.

    Attributes:
      width: of the model; the hidden units of its MLP are four times as many.
      depth: of the model.
      epochs: of pre-training.
      steps: of each transfer.
      batch_size: of pre-training and of transfers.
      train: the split that labelled images are taken from.
      val: the split that learning rates are judged on.
      seeds: how many are reported; the next one is for choosing learning rates.
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
# What is tried of each way; half a decade apart.
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
    """Six narrow blocks on 16 patches at 28 pixels, in full 0.7 million parameters."""
    c.model.variant = "Ti/7"
    c.model.update({"width": size.width, "depth": size.depth, "mlp_dim": 4 * size.width})
    c.model.update({"num_heads": 4, "pool": "gap"})


def pre_training(size: Size) -> ConfigDict:
    """AdamW on the images of the first five classes, 30,000 in all."""
    c = _base(image_size=28)
    architecture(c, size)
    c.batch_size, c.total_epochs = size.batch_size[0], size.epochs
    c.data.classes = BEFORE
    c.optim.lr = 2e-3
    c.evals = ConfigDict({"test": classification_eval(split="test", every_steps=400)})
    c.checkpoint.every_steps = 400
    return c


def transfer(way: str, size: Size, *, origin: str, shots: int, seed: int, lr: float) -> ConfigDict:
    """The other five classes at 42 pixels, in full for 200 updates of 50 images.

    Args:
      way: a key of `LEARNING_RATES`; all but "scratch" are modes of configs/finetune.py.
      size: of the study.
      origin: work directory of the pre-training.
      shots: labelled images of each class.
      seed: decides which, their order and what is random in them.
      lr: at the schedule's peak.
    """
    c = _base(image_size=42)
    if way == "scratch":
        architecture(c, size)
    else:
        recipe = finetune.get_config(f"mode={way},size=42,rank=8")
        c.init_from, c.init_skip, c.model.variant = origin, recipe.init_skip, ""
        c.model.lora_rank, c.cache_features = recipe.model.lora_rank, recipe.cache_features
        c.optim.freeze = recipe.optim.freeze
        for key in ("name", "momentum", "momentum_dtype", "weight_decay"):
            c.optim[key] = recipe.optim[key]
        if way == "probe":
            c.data.train_transforms = PLAIN
    c.seed, c.optim.lr = seed, lr
    c.batch_size, c.total_steps = size.batch_size[1], size.steps
    c.data.classes, c.data.shots, c.data.split = AFTER, shots, size.train
    c.evals = ConfigDict({"test": classification_eval(split="test")})
    return c


def chosen(way: str, size: Size, *, origin: str, shots: int, folder: pathlib.Path) -> float:
    """The learning rate that is best on images that no run is trained on.

    They are the last 5,000 of "train", those of the runs among the first 10,000. Its seed is one
    that no reported run has.
    """
    found = {}
    for lr in LEARNING_RATES[way]:
        c = transfer(way, size, origin=origin, shots=shots, seed=size.seeds, lr=lr)
        c.evals = ConfigDict({"val": classification_eval(split=size.val)})
        found[lr] = measured(c, folder / f"{way}-{shots}-lr{lr:g}", "val/top1")
    said = ", ".join(f"{lr:g}: {value:.2%}" for lr, value in found.items())
    print(f"{way}, {shots} labels a class, learning rates by validation: {said}", flush=True)
    return max(found, key=found.get)


def measured(config: ConfigDict, workdir: pathlib.Path, metric: str) -> float:
    """Trains, or goes on, or finds it done; gives the metric after the last update."""
    with contextlib.redirect_stdout(io.StringIO()):
        train(freeze(config), workdir)
    return read_jsonl(workdir / "metrics.jsonl")[-1][metric]


def study(folder: pathlib.Path, size: Size, ways: Sequence[str], every: Sequence[int]) -> None:
    """Trains all runs of the study below a folder, and prints a line for each cell of the table.

    Args:
      folder: of all the runs.
      size: of the study.
      ways: keys of `LEARNING_RATES`.
      every: numbers of labelled images of each class, ascending.
    """
    origin = str(folder / "pre_training")
    value = measured(pre_training(size), pathlib.Path(origin), "test/top1")
    print(f"pre-training: {value:.2%} of the test images of its own five classes", flush=True)
    for way in ways:
        lr = chosen(way, size, origin=origin, shots=every[0], folder=folder)
        for shots in every:
            values = []
            for seed in range(size.seeds):
                c = transfer(way, size, origin=origin, shots=shots, seed=seed, lr=lr)
                values.append(measured(c, folder / f"{way}-{shots}-seed{seed}", "test/top1"))
            each = ", ".join(f"{value:.2%}" for value in values)
            print(
                f"{way}, {shots} labels a class, lr {lr:g}: mean {statistics.mean(values):.2%},"
                f" standard deviation {statistics.stdev(values):.2%} ({each})",
                flush=True,
            )


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all the runs.")
    _SHOTS = flags.DEFINE_list("shots", ["10", "25"], "Labelled images of each class.")
    _SIZE = flags.DEFINE_enum("size", "full", list(SIZES), "Of models and runs.")
    flags.mark_flag_as_required("workdir")

    def main(argv: Sequence[str]) -> None:
        cli.no_arguments(argv)
        folder = pathlib.Path(_WORKDIR.value).absolute()
        study(folder, SIZES[_SIZE.value], list(LEARNING_RATES), [int(n) for n in _SHOTS.value])

    cli.run(main)
