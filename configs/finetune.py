r"""Adapting a pre-trained ViT: fine-tuned as in Table 4 of arXiv 2010.11929, a linear probe, LoRA.

    python -m vit_jax.train --config=configs/finetune.py:dataset=cifar10 \
        --config.init_from=CHECKPOINT --workdir=...

CHECKPOINT is a work directory of ours or any published checkpoint (a file, a folder, hf:NAME,
timm:NAME, gs://...). Arguments:

model       its variant, such as B/16, checked against it; "": as it is
dataset     one of `TASKS`
size        of the images: the nearest multiple of the patch size, where `model` says that; position
            embeddings are resized to it
mode        full; probe: the head alone, on features that are computed once, without augmentation;
            lora: the head and low-rank adapters of attention (arXiv 2106.09685)
decay       learning rate times this per layer counted from the head: .65 to .85 is usual for MAE
rank        of LoRA's adapters
pixels      half: from -1 to 1 (Google's models, SigLIP); imagenet: by ImageNet's statistics (DeiT,
            DINO, MAE, torchvision). A run warns where that is not what the checkpoint was fed.
pre_logits  drop: the new head reads the body, as in the paper; keep: the tanh layer before it stays

Hardware and time: not measured. --config.optim.accum_steps=8 fits it into an eighth of the memory;
--config.model.dtype=bfloat16 makes it faster.
Expected of mode=full, from models pre-trained on ImageNet-21k, at 384 pixels and without dropout,
for cifar10, cifar100, imagenet2012: B/16 99.02%, 92.06%, 84.53%; B/32 98.88%, 92.31%, 81.66%; L/16
99.13%, 92.91%, 84.47%; L/32 99.06%, 93.29%, 81.89% (google-research/vision_transformer). AugReg's
B/32 with the learning rates below: cifar10 98.55%, cifar100 91.35%, imagenet2012 83.27%,
oxford_iiit_pet 93.78%, oxford_flowers102 99.43% (google-research/big_vision). Nobody has measured
these with this code; benchmarks/transfer.py is what was.
"""

from ml_collections import ConfigDict

from vit_jax.config import base_config, classification_eval, parse_args
from vit_jax.data.recipes import evaluation
from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.models.variants import parse_variant

# Steps, warm-up, learning rate, share of train that is trained on (choose on the rest), test split.
# Learning rates are big_vision's choices for AugReg's B/32. The paper chooses for each model: from
# .003, .01, .03, .06 on ImageNet and .001, .003, .01, .03 elsewhere.
TASKS = {
    "cifar10": (10_000, 500, 0.003, "98%", "test"),
    "cifar100": (10_000, 500, 0.01, "98%", "test"),
    "oxford_iiit_pet": (500, 100, 0.003, "90%", "test"),
    "oxford_flowers102": (500, 100, 0.003, "90%", "test"),
    "imagenet2012": (20_000, 500, 0.03, "99%", "validation"),
}
# What is frozen: all paths but these.
MODES = {
    "full": (),
    "probe": ("(?!(head|head_dist)/).*",),
    "lora": ("(?!(head|head_dist)/|.*_lora/).*",),
}
PIXELS = {"half": {"op": "value_range"}, "imagenet": {"op": "normalize"}}
PRE_LOGITS = {"drop": "(head|head_dist|pre_logits)/.*", "keep": "(head|head_dist)/.*"}


def get_config(arg: str | None = None) -> ConfigDict:
    """Short, with plain momentum and no regularisation: the features are already there."""
    args = parse_args(
        arg, model="", dataset="cifar10", size=384, mode="full", decay=1.0, rank=8, pixels="half",
        pre_logits="drop")  # fmt: skip
    choices = {"dataset": TASKS, "mode": MODES, "pixels": PIXELS, "pre_logits": PRE_LOGITS}
    for key, accepted in choices.items():
        if args[key] not in accepted:
            hint = did_you_mean(args[key], accepted)
            raise ConfigError(f'Config argument {key}="{args[key]}": {hint}')
    steps, warmup, lr, share, test = TASKS[args.dataset]
    patch = parse_variant(args.model)[1] if args.model else 1
    size = max(1, round(args.size / patch)) * patch
    margin = round(size * 7 / 6)  # 448 for 384.

    c = base_config()
    c.init_skip = (PRE_LOGITS[args.pre_logits],)  # The new head is linear, and starts at zero.
    c.batch_size = 512
    c.total_steps = steps

    c.model.variant = args.model
    c.model.image_size = (size,)
    c.model.rep_size = 0 if args.pre_logits == "drop" else None

    c.data.source, c.data.name = "tfds", args.dataset
    c.data.split = f"train[:{share}]"
    # CIFAR's objects fill their images, and are cut little.
    crop = (
        ({"op": "resize_small", "size": margin}, {"op": "random_crop"})
        if args.dataset.startswith("cifar")
        else ({"op": "random_resized_crop", "area": (0.05, 1.0)},)
    )
    last = PIXELS[args.pixels]
    c.data.train_transforms = ({"op": "decode"}, *crop, {"op": "flip_lr"}, dict(last))
    c.data.eval_transforms = (*evaluation("big_vision", resize=margin, exif=True)[:-1], dict(last))
    c.data.workers = 8

    c.loss.name = "softmax_xent"
    c.optim.name = "sgd"
    c.optim.lr = lr
    c.optim.momentum, c.optim.momentum_dtype = 0.9, "bfloat16"
    c.optim.weight_decay = 0.0
    c.optim.clip_norm = 1.0
    c.optim.layer_decay = args.decay
    c.optim.freeze = MODES[args.mode]
    c.optim.schedule.name = "cosine"
    c.optim.schedule.warmup_steps = warmup
    if args.mode == "probe":
        c.cache_features = True
        c.data.train_transforms = tuple(map(dict, c.data.eval_transforms))
    if args.mode == "lora":
        c.model.lora_rank = args.rank
        c.optim.name, c.optim.lr = "adamw", 1e-3  # As Hu et al.: adapters start far from tuned.

    c.evals = ConfigDict(
        {
            "val": classification_eval(split=f"train[{share}:]", every_steps=steps // 20),
            "test": classification_eval(split=test),
        }
    )
    c.checkpoint.every_steps = min(1000, steps // 5)
    c.log.every_steps = 10
    return c
