r"""Adapts any checkpoint to a folder of your own images, or to a data set of TFDS.

    vit-jax train --config=finetune:root=IMAGES,epochs=10 \
        --config.init_from=CHECKPOINT --workdir=...
    vit-jax train --config=finetune:dataset=cifar10 \
        --config.init_from=CHECKPOINT --workdir=...

CHECKPOINT is one of our work directories or any published checkpoint (a file, a folder, hf:NAME,
timm:NAME, gs://...). Model and preprocessing (size, crop, interpolation, pixel values) are the
checkpoint's own; what is not stated below comes from it. Arguments:

root        IMAGES/CLASS/*.jpg (or png, webp, ...), of which a fifth is held out for evaluation; or
            IMAGES/train/CLASS/*.jpg with val (valid, validation), test or both beside it; or a
            table, a data set of Hugging Face's `datasets`, tar files: vit_jax.data.locate
dataset     instead of root: one of `TASKS`
init        the checkpoint, instead of --config.init_from
epochs      length of the run; 0: 10 for a folder, the published number of steps for `TASKS`
size        image size in pixels, a multiple of the patch size; position embeddings are resized; 0:
            the checkpoint's for a folder, 384 for `TASKS`
mode        full; probe: the head alone, on features that are computed once, without augmentation;
            lora: the head and low-rank adapters of attention (arXiv 2106.09685)
model       variant of the checkpoint, such as B/16, which is then checked; "": any
decay       learning-rate factor per layer, counted from the head: .65 to .85 is usual for MAE
rank        rank of LoRA's adapters
pixels      "": as the checkpoint's; half: pixels from -1 to 1; imagenet: normalised by ImageNet's
            statistics; both with big_vision's resize and crop
pre_logits  drop: the new head follows the body, as in the paper; keep: also keeps the tanh layer

A folder is trained with AdamW and evaluated after every epoch; its batches have 8 to 128 images, at
least eight batches an epoch if possible. `TASKS` follow Table 4 of arXiv 2010.11929: momentum SGD,
a cosine, no regularisation.

Hardware and time: not measured. --config.optim.accum_steps=8 divides the memory of activations by
eight; --config.model.dtype=bfloat16 is faster.
Expected of mode=full, from models pre-trained on ImageNet-21k, at 384 pixels and without dropout,
for cifar10, cifar100, imagenet2012: B/16 99.02%, 92.06%, 84.53%; B/32 98.88%, 92.31%, 81.66%; L/16
99.13%, 92.91%, 84.47%; L/32 99.06%, 93.29%, 81.89% (google-research/vision_transformer). AugReg's
B/32 with the learning rates below: cifar10 98.55%, cifar100 91.35%, imagenet2012 83.27%,
oxford_iiit_pet 93.78%, oxford_flowers102 99.43% (google-research/big_vision). Nobody has measured
these with this code; benchmarks/transfer.py was measured.
"""

from ml_collections import ConfigDict

from vit_jax.config import base_config, classification_eval, parse_args
from vit_jax.data.layout import find_data
from vit_jax.data.recipes import Transforms, evaluation
from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.models.variants import parse_variant

# Steps, warm-up steps, learning rate, training share of train (the rest: for choices), test split.
# Learning rates are big_vision's choices for AugReg's B/32. The paper chooses one for each model,
# from .003, .01, .03, .06 on ImageNet and .001, .003, .01, .03 elsewhere.
TASKS = {
    "cifar10": (10_000, 500, 0.003, "98%", "test"),
    "cifar100": (10_000, 500, 0.01, "98%", "test"),
    "oxford_iiit_pet": (500, 100, 0.003, "90%", "test"),
    "oxford_flowers102": (500, 100, 0.003, "90%", "test"),
    "imagenet2012": (20_000, 500, 0.03, "99%", "validation"),
}
# Patterns of frozen parameters: all paths except the heads' (and adapters').
MODES = {
    "full": (),
    "probe": ("(?!(head|head_dist)/).*",),
    "lora": ("(?!(head|head_dist)/|.*_lora/).*",),
}
PIXELS = {
    "": {"op": "inherit", "part": "normalization"},
    "half": {"op": "value_range"},
    "imagenet": {"op": "normalize"},
}
PRE_LOGITS = {"drop": "(head|head_dist|pre_logits)/.*", "keep": "(head|head_dist)/.*"}


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config: a short run from the checkpoint `init_from`."""
    args = parse_args(
        arg, root="", dataset="", init="", epochs=0.0, size=0, mode="full", model="", decay=1.0,
        rank=8, pixels="", pre_logits="drop")  # fmt: skip
    _check(args)
    c = base_config()
    c.init_from = args.init
    c.init_skip = (PRE_LOGITS[args.pre_logits],)  # The new head is linear and initialised to zero.
    c.model.variant = args.model
    c.model.rep_size = 0 if args.pre_logits == "drop" else None
    c.optim.schedule.name = "cosine"
    c.optim.clip_norm = 1.0
    c.optim.layer_decay = args.decay
    c.optim.freeze = MODES[args.mode]
    c.log.every_steps = 10
    if args.root:
        _own_images(c, args)
    else:
        _task(c, args)
    if args.mode == "probe":
        c.cache_features = True
        c.data.train_transforms = tuple(map(dict, c.data.eval_transforms))
    if args.mode == "lora":
        c.model.lora_rank = args.rank
        # As in Hu et al.; adapters are trained from scratch.
        c.optim.name, c.optim.lr = "adamw", 1e-3
    return c


def _check(args: ConfigDict) -> None:
    if args.root and args.dataset:
        raise ConfigError("The config arguments root and dataset are both set: keep one.")
    args.dataset = args.dataset or "cifar10"
    choices = {"dataset": TASKS, "mode": MODES, "pixels": PIXELS, "pre_logits": PRE_LOGITS}
    for key, accepted in choices.items():
        if args[key] not in accepted:
            hint = did_you_mean(args[key], [name for name in accepted if name])
            raise ConfigError(f'Config argument {key}="{args[key]}": {hint}')


def _own_images(c: ConfigDict, args: ConfigDict) -> None:
    """Sets the data, the optimizer and the length of a run on a folder of images."""
    layout = find_data(c.data, args.root)
    c.data.split = layout.train
    # A power of two with at least eight batches an epoch, from 8 to 128.
    c.batch_size = min(128, max(8, 1 << (layout.num_examples // 8).bit_length() >> 1))
    c.total_epochs = args.epochs or 10.0
    if args.size:
        c.model.image_size = _size(args)
    _transforms(c, args, ({"op": "random_resized_crop", "area": (0.3, 1.0)},))

    c.optim.name, c.optim.lr, c.optim.weight_decay = "adamw", 1e-4, 0.05
    # The head is new: it learns faster than the body.
    c.optim.lr_rules = (("(head|head_dist)/.*", 10.0), (".*", 1.0))
    if args.mode != "full":
        c.optim.lr, c.optim.lr_rules = 1e-3, ((".*", 1.0),)
    c.optim.schedule.warmup_percent = 0.1
    c.evals = ConfigDict(
        {
            name: classification_eval(split=split, every_epochs=1.0)
            for name, split in layout.evals.items()
        }
    )
    # Checkpoints of large models take seconds each.
    c.checkpoint.every_steps, c.checkpoint.every_percent = None, 0.25


def _task(c: ConfigDict, args: ConfigDict) -> None:
    """Sets the published recipe of a data set of TFDS."""
    steps, warmup, lr, share, test = TASKS[args.dataset]
    args.size = args.size or 384
    c.data.source, c.data.name = "tfds", args.dataset
    c.data.split = f"train[:{share}]"
    c.batch_size = 512
    c.model.image_size = _size(args)
    # CIFAR's objects fill their images, so crops are large.
    crop = (
        ({"op": "resize_small", "size": _margin(args)}, {"op": "random_crop"})
        if args.dataset.startswith("cifar")
        else ({"op": "random_resized_crop", "area": (0.05, 1.0)},)
    )
    _transforms(c, args, crop)

    c.optim.name, c.optim.lr, c.optim.weight_decay = "sgd", lr, 0.0
    c.optim.momentum, c.optim.momentum_dtype = 0.9, "bfloat16"
    if args.epochs:
        c.total_epochs, c.optim.schedule.warmup_percent = args.epochs, warmup / steps
    else:
        c.total_steps, c.optim.schedule.warmup_steps = steps, warmup
    c.evals = ConfigDict(
        {
            "val": classification_eval(split=f"train[{share}:]", every_percent=0.05),
            "test": classification_eval(split=test),
        }
    )
    c.checkpoint.every_steps, c.checkpoint.every_percent = None, 0.1


def _transforms(c: ConfigDict, args: ConfigDict, crop: Transforms) -> None:
    """Sets the transforms: the checkpoint's, or with `pixels` those of big_vision."""
    last = PIXELS[args.pixels]
    if args.pixels:
        decode = {"op": "decode"}
        resize = _margin(args) if args.size else None
        others = evaluation("big_vision", resize=resize, exif=True)[:-1]
        c.data.eval_transforms = (*others, dict(last))
    else:
        decode = {"op": "inherit", "part": "decode"}
        crop = ({**crop[0], "method": "inherit"}, *crop[1:])
        c.data.eval_transforms = ({"op": "inherit"},)
    c.data.train_transforms = (decode, *crop, {"op": "flip_lr"}, dict(last))


def _size(args: ConfigDict) -> tuple[int]:
    """Returns the image size: a multiple of the patch size, if the variant is given."""
    patch = parse_variant(args.model)[1] if args.model else 1
    return (max(1, round(args.size / patch)) * patch,)


def _margin(args: ConfigDict) -> int:
    """Returns the side before a crop: 448 for 384."""
    return round(_size(args)[0] * 7 / 6)
