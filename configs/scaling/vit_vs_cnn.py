"""How much data does a ViT need? ViT, hybrid and ResNet on nested parts of one data set.

    vit-jax sweep --config=scaling/vit_vs_cnn --workdir=...
    vit-jax sweep --config=scaling/vit_vs_cnn:data=fashion_mnist \
        --workdir=runs/vit_vs_cnn
    vit-jax train --config=scaling/vit_vs_cnn:model=BiT-R50x1 \
        --config.data.examples=1_000_000 --workdir=...

The study of section 4.3 and figure 4 of the ViT paper (arXiv 2010.11929): each model is trained on
nested random parts of the data, with the same number of updates, the same hyperparameters and only
weight decay as regularisation. Instead of the paper's early stopping, the checkpoint that is best
on held-out training data is kept in addition to the last one.

Arguments: model, any of `vit_jax.models.variants`, such as B/32, R50+B/16, BiT-R50x1, Mixer-B/16,
or one of `LAPTOP` for data=fashion_mnist; data: imagenet21k (see `vit_i21k.py`), imagenet2012 or
fashion_mnist.

Hardware and time: fashion_mnist on 2 busy cores of an AMD EPYC: 270 (mixer) to 500 img/s (resnet)
measured, so 8 to 15 minutes for each of the 20 runs. The others: a pod, not measured.
Expected: in the paper, on JFT and by 5-shot accuracy, ResNets are better on 9 million images and
ViTs on 90 million and more: B/32 overtakes R50x1 near 24 million, L/16 R152x2 near 80 million.
Nobody has measured it with this code.
"""

from typing import Any

from ml_collections import ConfigDict

from vit_jax.config import base_config, classification_eval, parse_args
from vit_jax.data.recipes import augreg, evaluation
from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.sweeps.grids import Point, grid, subset

# Training split and its number of examples; held-out and test split; batch size; steps.
DATA = {
    # The splits of big_vision; 90 epochs of the whole.
    "imagenet21k": (
        "full[51200:]", 14_145_922, "full[25600:51200]", "full[:25600]", 4096, 310_823
    ),
    # 300 epochs of the whole.
    "imagenet2012": (
        "train[:1268355]", 1_268_355, "train[1268355:]", "validation", 4096, 92_897
    ),
    "fashion_mnist": ("train[:55000]", 55_000, "train[55000:]", "test", 128, 1500),
}  # fmt: skip
# Models of the sweep on the ImageNets: the paper's.
MODELS = ("B/32", "B/16", "L/32", "L/16", "BiT-R50x1", "BiT-R101x1", "BiT-R152x2", "R50+B/16")
SHARES = (0.01, 0.03, 0.1, 0.3, 1)

# For 28 pixels: 49 tokens, or a first feature map of 7x7. Keys of model and of model.resnet.
_NARROW = {"width": 96, "mlp_dim": 384, "depth": 4, "scan": False}
LAPTOP: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vit": ({"variant": "Ti/4", "num_heads": 4, **_NARROW}, {}),
    "hybrid": ({"variant": "R26+S/32", "num_heads": 4, **_NARROW, "depth": 3}, {"units": (1,)}),
    "resnet": ({"variant": "BiT-R26x1"}, {"units": (1, 1)}),
    "mixer": ({"variant": "Mixer-S/4", "token_mlp_dim": 48, **_NARROW}, {}),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of one model, with the same number of updates for all."""
    args = parse_args(arg, model="", data="imagenet21k")
    if args.data not in DATA:
        raise ConfigError(f'Config argument data="{args.data}": {did_you_mean(args.data, DATA)}')
    split, _, held_out, test, batch_size, steps = DATA[args.data]
    c = base_config()
    c.batch_size, c.total_steps = batch_size, steps
    c.data.split = split
    if args.data == "fashion_mnist":
        _small(c, args.model or "vit")
    else:
        _large(c, args.model or "B/32", args.data)

    c.optim.update({"name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "clip_norm": 1.0})
    c.optim.schedule.name = "cosine"
    every = steps // 15
    c.evals = ConfigDict(
        {
            "val": classification_eval(split=held_out, every_steps=every),
            "test": classification_eval(split=test),
        }
    )
    c.checkpoint.every_steps, c.checkpoint.best_metric = every, "val/top1"
    return c


def sweep(arg: str | None = None) -> list[Point]:
    """Returns every model (or that of the argument) on every part of the data."""
    args = parse_args(arg, model="", data="imagenet21k")
    models = LAPTOP if args.data == "fashion_mnist" else MODELS
    examples = DATA[args.data][1]
    return grid({":model": (args.model,) if args.model else models}, subset(examples, SHARES))


def _large(c: ConfigDict, variant: str, data: str) -> None:
    c.model.variant, c.model.dtype = variant, "bfloat16"
    if data == "imagenet21k":  # Its classes overlap.
        c.loss.name, c.model.head_bias_init = "sigmoid_xent", -10.0
    c.data.source, c.data.name, c.data.workers = "tfds", data, 16
    c.data.train_transforms, _ = augreg("none")
    c.data.eval_transforms = evaluation("big_vision", resize=256, exif=True)
    c.optim.schedule.warmup_steps = 10_000


def _small(c: ConfigDict, name: str) -> None:
    if name not in LAPTOP:
        raise ConfigError(f'Config argument model="{name}": {did_you_mean(name, LAPTOP)}')
    fields, resnet = LAPTOP[name]
    c.model.update({**fields, "image_size": (28,), "channels": 1})
    c.model.resnet.update(resnet)
    c.data.source = "fashion_mnist"
    decode = {"op": "decode", "channels": 1}
    c.data.train_transforms = (decode, {"op": "flip_lr"}, {"op": "value_range"})
    c.data.eval_transforms = (decode, {"op": "resize"}, {"op": "value_range"})
    c.optim.schedule.warmup_percent = 0.1
