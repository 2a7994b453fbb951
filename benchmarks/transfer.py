"""Does pre-training pay? One half of Fashion-MNIST's classes for the other, with few labels.

    python -m benchmarks.transfer --workdir=runs/transfer

A small ViT is trained on the classes 0 to 4 (shirts, dresses, ...) at 28 pixels. The classes 5 to 9
(shoes, bags, ...) are then learned from a few labelled pictures of each at 42 pixels, with position
embeddings resized from 4 x 4 to 6 x 6 patches, in four ways: from scratch, fine-tuned, by a linear
probe, by LoRA. All have the same model, pictures, augmentation (but the probe, which has none),
number of updates and batch size. Each way has the learning rate that was best, with the fewest
labels, on pictures of `train` that no run is trained on, for a seed that is not reported.

Repeating the command goes on where it stopped. Measured on 2 cores of an AMD EPYC, shared with
others (pre-training 13 minutes, a run half a minute, a probe 5 seconds); mean and standard
deviation of test accuracy over three seeds:

                                       10 labels a class    25 labels a class
    from scratch (AdamW, lr .003)      62.0% +- 1.3         67.8% +- 2.4
    linear probe (SGD, lr .1)          64.9% +- 4.2         75.2% +- 1.8
    fine-tuned (SGD, lr .03)           70.0% +- 4.8         78.3% +- 2.5
    LoRA, rank 8 (AdamW, lr .003)      74.8% +- 2.0         81.1% +- 2.2
"""

import contextlib
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
SEEDS = 3
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


def architecture(c: ConfigDict) -> None:
    """Six narrow blocks on 16 patches at 28 pixels: 0.7 million parameters."""
    c.model.variant = "Ti/7"
    c.model.update({"width": 96, "depth": 6, "mlp_dim": 384, "num_heads": 4, "pool": "gap"})


def pre_training() -> ConfigDict:
    """AdamW on 30,000 pictures of the first five classes."""
    c = _base(image_size=28)
    architecture(c)
    c.batch_size, c.total_epochs = 256, 10.0
    c.data.classes = BEFORE
    c.optim.lr = 2e-3
    c.evals = ConfigDict({"test": classification_eval(split="test", every_steps=400)})
    c.checkpoint.every_steps = 400
    return c


def transfer(way: str, *, origin: str, shots: int, seed: int, lr: float) -> ConfigDict:
    """The other five classes at 42 pixels, for 200 updates of 50 pictures.

    Args:
      way: a key of `LEARNING_RATES`; all but "scratch" are modes of configs/finetune.py.
      origin: work directory of the pre-training.
      shots: labelled pictures of each class.
      seed: decides which, their order and what is random in them.
      lr: at the schedule's peak.
    """
    c = _base(image_size=42)
    if way == "scratch":
        architecture(c)
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
    c.batch_size, c.total_steps = 50, 200
    c.data.classes, c.data.shots, c.data.split = AFTER, shots, "train[:10000]"
    c.evals = ConfigDict({"test": classification_eval(split="test")})
    return c


def chosen(way: str, *, origin: str, shots: int, folder: pathlib.Path) -> float:
    """The learning rate that is best on the last 5,000 pictures of `train`.

    It is trained on few of the first 10,000, for a seed that no reported run has.
    """
    found = {}
    for lr in LEARNING_RATES[way]:
        c = transfer(way, origin=origin, shots=shots, seed=SEEDS, lr=lr)
        c.evals = ConfigDict({"val": classification_eval(split="train[55000:]")})
        found[lr] = measured(c, folder / f"{way}-{shots}-lr{lr:g}", "val/top1")
    said = ", ".join(f"{lr:g}: {value:.2%}" for lr, value in found.items())
    print(f"{way}, {shots} labels a class, learning rates by validation: {said}", flush=True)
    return max(found, key=found.get)


def measured(config: ConfigDict, workdir: pathlib.Path, metric: str) -> float:
    """Trains, or goes on, or finds it done; gives the metric after the last update."""
    with contextlib.redirect_stdout(io.StringIO()):
        train(freeze(config), workdir)
    return read_jsonl(workdir / "metrics.jsonl")[-1][metric]


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all the runs.")
    _SHOTS = flags.DEFINE_list("shots", ["10", "25"], "Labelled pictures of each class.")
    flags.mark_flag_as_required("workdir")

    def main(argv: Sequence[str]) -> None:
        cli.no_arguments(argv)
        folder = pathlib.Path(_WORKDIR.value).absolute()
        origin = str(folder / "pre_training")
        value = measured(pre_training(), pathlib.Path(origin), "test/top1")
        print(f"pre-training: {value:.2%} of the test pictures of its own five classes", flush=True)
        every = [int(shots) for shots in _SHOTS.value]
        for way in LEARNING_RATES:
            lr = chosen(way, origin=origin, shots=every[0], folder=folder)
            for shots in every:
                values = []
                for seed in range(SEEDS):
                    c = transfer(way, origin=origin, shots=shots, seed=seed, lr=lr)
                    run = folder / f"{way}-{shots}-seed{seed}"
                    values.append(measured(c, run, "test/top1"))
                each = ", ".join(f"{value:.2%}" for value in values)
                print(
                    f"{way}, {shots} labels a class, lr {lr:g}: mean {statistics.mean(values):.2%},"
                    f" standard deviation {statistics.stdev(values):.2%} ({each})",
                    flush=True,
                )

    cli.run(main)
