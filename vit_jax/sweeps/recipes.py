"""Shared config of the runs of a scaling study, on ImageNet-21k and on Fashion-MNIST.

No setting depends on the length of a run or on its amount of data, as in the data-size study of the
ViT paper (arXiv 2010.11929, section 4.3). The cooldown can start from any state (Zhai et al., arXiv
2106.04560).
"""

from ml_collections import ConfigDict

from vit_jax.config import base_config, classification_eval
from vit_jax.data.recipes import augreg, evaluation
from vit_jax.errors import ConfigError, did_you_mean

# Number of training examples.
EXAMPLES = {"imagenet21k": 14_145_922, "fashion_mnist": 60_000}

COOLDOWN = 0.2  # Share of a run's steps.

# Models for images of 28 pixels; a name gives the approximate number of parameters.
# Width, depth and heads of ViTs on 16 patches of 7 x 7 pixels; mlp_dim is four times the width.
LAPTOP_VITS = {
    "vit-8k": (16, 2, 2),
    "vit-40k": (32, 3, 2),
    "vit-120k": (48, 4, 3),
    "vit-320k": (80, 4, 5),
    "vit-1m": (128, 5, 8),
}
# Units per stage of ResNets with 32 channels in the root, whose feature map is 7 x 7.
LAPTOP_RESNETS = {"resnet-20k": (1,), "resnet-120k": (1, 1), "resnet-500k": (1, 1, 1)}


def check_data(data: str) -> None:
    """Raises ConfigError unless the config argument `data` is a key of `EXAMPLES`."""
    if data not in EXAMPLES:
        raise ConfigError(f'Config argument data="{data}": {did_you_mean(data, EXAMPLES)}')


def imagenet21k(variant: str, *, steps: int) -> ConfigDict:
    """Returns the config for ImageNet-21k: `configs/vit_i21k.py` with weight decay only."""
    c = base_config()
    c.batch_size, c.total_steps = 4096, steps
    c.model.variant, c.model.image_size, c.model.dtype = variant, (224,), "bfloat16"
    if "/" in variant:  # A patch size: the model is not a ResNet.
        c.model.pool = "map"
    c.loss.name, c.model.head_bias_init = "sigmoid_xent", -10.0  # Its classes overlap.

    c.data.source, c.data.name, c.data.workers = "tfds", "imagenet21k", 16
    c.data.split = "full[51200:]"  # The split of big_vision.
    c.data.train_transforms, _ = augreg("none")
    c.data.eval_transforms = evaluation("big_vision", resize=256, exif=True)

    c.optim.update({"name": "adamw", "lr": 8e-4, "weight_decay": 0.03, "clip_norm": 1.0})
    c.optim.schedule.update({"name": "rsqrt", "timescale_steps": 10_000, "warmup_steps": 10_000})
    c.optim.schedule.cooldown_percent = COOLDOWN
    c.mesh.data, c.mesh.fsdp = -1, 8
    c.evals = ConfigDict(
        {
            "val": classification_eval(split="full[25600:51200]"),
            "test": classification_eval(split="full[:25600]"),
        }
    )
    c.checkpoint.every_steps = 5000
    return c


def fashion_mnist(model: str, *, steps: int) -> ConfigDict:
    """Returns the config for Fashion-MNIST with a model small enough for two CPU cores.

    Args:
      model: a key of `LAPTOP_VITS` or `LAPTOP_RESNETS`.
      steps: number of updates.

    Raises:
      ConfigError: the model is unknown.
    """
    if model in LAPTOP_VITS:
        width, depth, heads = LAPTOP_VITS[model]
        return fashion_vit(width, depth, 4 * width, heads=heads, steps=steps)
    if model not in LAPTOP_RESNETS:
        hint = did_you_mean(model, [*LAPTOP_VITS, *LAPTOP_RESNETS])
        raise ConfigError(f'Config argument model="{model}": {hint}')
    units = LAPTOP_RESNETS[model]
    c = _fashion(
        steps, lr=1.28 / (32 * 2 ** (len(units) + 1))
    )  # Over the channels of the last feature map.
    c.model.variant = "BiT-R26x1"
    c.model.resnet.width_factor, c.model.resnet.units = 0.5, units
    return c


def fashion_vit(width: int, depth: int, mlp_dim: int, *, heads: int, steps: int) -> ConfigDict:
    """Returns the config for Fashion-MNIST with a ViT of any shape.

    Half of the test images (`val`) serves for choices, such as the best duration; the other half
    (`test`) is for reported results. All 60,000 training images are available for training.

    Args:
      width: width of the model.
      depth: number of blocks.
      mlp_dim: hidden width of the MLPs.
      heads: number of attention heads; divides the width.
      steps: number of updates.
    """
    c = _fashion(steps, lr=0.16 / width)
    c.model.variant, c.model.pool, c.model.posemb = "Ti/7", "gap", "sincos2d"
    c.model.update({"width": width, "depth": depth, "num_heads": heads, "mlp_dim": mlp_dim})
    c.model.scan = False
    return c


def _fashion(steps: int, *, lr: float) -> ConfigDict:
    c = base_config()
    c.batch_size, c.total_steps = 128, steps
    c.model.image_size, c.model.channels = (28,), 1
    c.data.source = "fashion_mnist"
    decode = {"op": "decode", "channels": 1}
    crop = {"op": "random_crop", "padding": 1}
    c.data.train_transforms = (decode, crop, {"op": "flip_lr"}, {"op": "value_range"})
    c.data.eval_transforms = (decode, {"op": "resize"}, {"op": "value_range"})
    c.data.threads = 1  # Many runs share the machine.

    # Adam's best learning rate falls as 1 / width (Yang et al., arXiv 2203.03466). Best on `val`
    # after 400 updates on all the data, for the smallest and largest models: vit-8k .01 of (.001,
    # .003, .01); vit-1m .001 of (.001, .003); resnet-20k .01 of (.001, .003, .01); resnet-500k .003
    # of (.001, .003).
    c.optim.update({"name": "adamw", "lr": lr, "weight_decay": 0.1, "clip_norm": 1.0})
    c.optim.schedule.update({"name": "constant", "warmup_steps": 100})
    c.optim.schedule.cooldown_percent = COOLDOWN
    c.evals = ConfigDict(
        {
            "val": classification_eval(split="test[:5000]"),
            "test": classification_eval(split="test[5000:]"),
        }
    )
    c.log.tensorboard = False
    return c
